//! Shards, mesh, group hosting, transport, sessions; the terrane binary.
