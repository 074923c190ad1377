//! What the emulated Open-Channel device promises beyond the contract of every medium: the rules of the specification,
//! wear, faults, power, time, and that a seed repeats them.

mod faults;
mod file;
mod harness;
mod power;
mod timing;
mod vector;
mod wear;
