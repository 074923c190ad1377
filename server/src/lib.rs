//! Shards, mesh, group hosting, transport, sessions; the terrane binary.

pub mod cli;
pub mod cluster;
pub mod config;
pub mod mesh;
pub mod node;
pub mod notify;
pub mod peer;
pub mod process;
pub mod reactor;
pub mod seam;
mod select;
pub mod shard;
pub mod sim;
mod stall;
