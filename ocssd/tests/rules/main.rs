//! The contract of every medium, run over each backend: one file a backend, which says how a medium of it is
//! made, driven and started again. The rules themselves are in `contract.rs`.

mod contract;
mod file;
mod flash;
mod recorder;
mod sim;
