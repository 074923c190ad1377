//! Shards, mesh, group hosting, transport, sessions; the terrane binary.

pub mod config;
pub mod mesh;
pub mod notify;
pub mod reactor;
pub mod seam;
pub mod sim;
