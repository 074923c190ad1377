//! The contract of every medium, run over each backend: one file a backend, which says how a medium of it is
//! made, driven and started again. The rules themselves are in `contract.rs`.

mod block;
mod contract;
mod fdp;
mod file;
mod flash;
mod hard_reset;
mod hardware;
mod overlay;
mod recorder;
mod sim;
mod volume;
mod zoned;
