//! `run` and `verify` from outside: the binary with its arguments, files and signals, against the client library's
//! in-memory cluster over TCP and the faults it can play (`cluster`, `load`, `records`, `ends`), and against the
//! embedded engine (`embedded`); and how `compare` ends the measurements that it started (`compare`).

mod cluster;
mod compare;
mod embedded;
mod ends;
mod load;
mod outside;
mod records;
