//! What a host may choose about a store.

/// Options of one store (one shard).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Bytes of payloads kept after they left the tail or were read back. Default 32 MiB; 0: no cache. More saves
    /// reads, at that much memory.
    pub cache_bytes: u64,
    /// Bytes of recent payloads kept for followers and young reads. Default 32 MiB, at least 64 KiB. What is not yet
    /// durable and applied stays beyond this limit. More spares slow followers (and this shard) reads from flash.
    pub tail_bytes: u64,
    /// Bytes of memory that the index of all groups may take. Default 1 GiB, at least 1 MiB. Beyond it new keys are refused,
    /// and leaders stop a sixteenth earlier; what is committed is applied in any case, and a store whose limit was lowered
    /// opens with what it holds. A key takes about 15 bytes beside its own.
    pub index_bytes_max: u64,
    /// Bytes of entries one flush takes, at most (one entry may exceed it). Default 1 MiB, 4 KiB to 64 MiB: about
    /// what a device writes in 2 ms. More gives throughput to large values and makes votes wait longer.
    pub flush_bytes_max: u32,
    /// Bytes of one entry's payload, at most. Default 4 MiB and 128 KiB, at least 1 KiB; never more than fits in a
    /// chunk. A large entry is one large write before which others wait.
    pub record_bytes_max: u32,
    /// Chunks below which followers stop appending. Default 2, at least 1. They are left to state records, so that
    /// a full shard can still vote and learn of new terms, and to no-ops and membership entries, which a leader needs
    /// to lead.
    pub append_reserve_chunks: u32,
    /// Chunks below which leaders should stop proposing ([`Store::accepts_proposals`](crate::Store)). Default 4, more
    /// than `append_reserve_chunks`: what was proposed must still fit on followers.
    pub propose_reserve_chunks: u32,
    /// Bytes of entries a group applies before the store writes down how far it got, with the next flush. Default
    /// 256 KiB, at least 1 KiB. What lies above the mark waits for Raft after a restart, in memory; a mark costs
    /// about 150 bytes.
    pub commit_mark_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cache_bytes: 32 << 20,
            tail_bytes: 32 << 20,
            index_bytes_max: 1 << 30,
            flush_bytes_max: 1 << 20,
            record_bytes_max: (4 << 20) + (128 << 10),
            append_reserve_chunks: 2,
            propose_reserve_chunks: 4,
            commit_mark_bytes: 256 << 10,
        }
    }
}

/// An option outside its limits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{option} is {value}: {limit}")]
pub struct OptionsError {
    /// The field.
    pub option: &'static str,
    /// What it was set to.
    pub value: i128,
    /// What it must be.
    pub limit: &'static str,
}

impl Options {
    /// Checks every option against its limits.
    pub fn validate(&self) -> Result<(), OptionsError> {
        let check = |sound: bool, option, value: u64, limit| {
            if sound { Ok(()) } else { Err(OptionsError { option, value: value.into(), limit }) }
        };
        check(self.tail_bytes >= 64 << 10, "tail_bytes", self.tail_bytes, "it must be at least 64 KiB")?;
        let index = self.index_bytes_max;
        check(index >= 1 << 20, "index_bytes_max", index, "it must be at least 1 MiB")?;
        let flush = self.flush_bytes_max;
        let flush_sound = (4 << 10..=64 << 20).contains(&flush);
        check(flush_sound, "flush_bytes_max", flush.into(), "it must be 4 KiB to 64 MiB")?;
        let record = self.record_bytes_max;
        check(record >= 1 << 10, "record_bytes_max", record.into(), "it must be at least 1 KiB")?;
        let append = self.append_reserve_chunks;
        check(append >= 1, "append_reserve_chunks", append.into(), "it must be at least 1")?;
        let propose = self.propose_reserve_chunks;
        let limit = "it must exceed append_reserve_chunks";
        check(propose > append, "propose_reserve_chunks", propose.into(), limit)?;
        let mark = self.commit_mark_bytes;
        check(mark >= 1 << 10, "commit_mark_bytes", mark, "it must be at least 1 KiB")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_sound_and_each_limit_is_named() {
        let sound = Options::default();
        sound.validate().unwrap();
        let broken = [
            ("tail_bytes", Options { tail_bytes: 1, ..sound.clone() }),
            ("index_bytes_max", Options { index_bytes_max: 1, ..sound.clone() }),
            ("flush_bytes_max", Options { flush_bytes_max: 1, ..sound.clone() }),
            ("record_bytes_max", Options { record_bytes_max: 1, ..sound.clone() }),
            ("append_reserve_chunks", Options { append_reserve_chunks: 0, ..sound.clone() }),
            ("propose_reserve_chunks", Options { propose_reserve_chunks: 2, ..sound.clone() }),
            ("commit_mark_bytes", Options { commit_mark_bytes: 0, ..sound }),
        ];
        for (option, options) in broken {
            assert_eq!(options.validate().unwrap_err().option, option);
        }
    }
}
