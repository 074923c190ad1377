//! One shard's store: the Raft log as the value log, the index over it, recovery.
