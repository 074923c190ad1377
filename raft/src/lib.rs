//! Raft without I/O, clock or payloads: indexes, terms and sizes in, effects out.
