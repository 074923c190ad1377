//! The binary.
#![allow(dead_code)]
mod ledger;
mod outage;
mod phases;
mod record;
mod runner;
mod tally;
mod target;
mod workload;
mod zipf;

fn main() {}
