//! Shards, mesh, group hosting, transport, sessions; the terrane binary.

pub mod notify;
pub mod seam;
