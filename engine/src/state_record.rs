//! The payload of a state record: everything a group remembers beside its entries.
//!
//! ```text
//!  0  flags u8 (bit 0: suspect)      20  vote u64
//!  1  zero [3]                       28  runs: (term u64, first u64) each
//!  4  run count u32                  ..  membership, to the end
//!  8  membership bytes u32
//! 12  first index u64
//! ```
//!
//! Incarnation, commit and term stand in the record's header. The lineage goes back to the first entry, before the first
//! index too: records of entries that left the front of the log are still told apart by it.
//!
//! Invariants: it is written from memory, never copied from flash (rule 7); the newest one of a group is the whole
//! truth about it, so older ones need not be kept; it is durable no later than the entries its lineage lets in
//! (rule 2: the flusher writes states before entries).

use bytes::Bytes;

use crate::cursor::Cursor;
use crate::lineage::{self, TermRun};

const FIXED_BYTES: usize = 28;
const SUSPECT: u8 = 1;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StateRecord {
    pub(crate) suspect: bool,
    pub(crate) first_index: u64,
    pub(crate) vote: u64,
    pub(crate) runs: Vec<TermRun>,
    pub(crate) membership: Bytes,
}

/// Bytes of the payload of a state with so many runs.
pub(crate) fn payload_bytes(runs: usize, membership: usize) -> u64 {
    FIXED_BYTES as u64 + 16 * runs as u64 + membership as u64
}

impl StateRecord {
    pub(crate) fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(payload_bytes(self.runs.len(), self.membership.len()) as usize);
        out.push(if self.suspect { SUSPECT } else { 0 });
        out.extend_from_slice(&[0; 3]);
        out.extend_from_slice(&(self.runs.len() as u32).to_le_bytes());
        out.extend_from_slice(&(self.membership.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.first_index.to_le_bytes());
        out.extend_from_slice(&self.vote.to_le_bytes());
        for run in &self.runs {
            out.extend_from_slice(&run.term.to_le_bytes());
            out.extend_from_slice(&run.first.to_le_bytes());
        }
        out.extend_from_slice(&self.membership);
        Bytes::from(out)
    }

    pub(crate) fn decode(payload: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(payload);
        let flags = cursor.u8()?;
        let zero = cursor.take(3)?;
        let run_count = cursor.u32()? as usize;
        let membership_bytes = cursor.u32()? as usize;
        let first_index = cursor.u64()?;
        let vote = cursor.u64()?;
        if flags & !SUSPECT != 0 || zero != [0; 3] || run_count > cursor.rest().len() / 16 {
            return None;
        }
        let mut runs = Vec::with_capacity(run_count);
        for _ in 0..run_count {
            runs.push(TermRun { term: cursor.u64()?, first: cursor.u64()? });
        }
        let membership = Bytes::copy_from_slice(cursor.take(membership_bytes)?);
        let sound = cursor.is_empty() && lineage::is_ascending(&runs) && first_index > 0;
        sound.then_some(Self { suspect: flags & SUSPECT != 0, first_index, vote, runs, membership })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;
    use expect_test::expect;
    use proptest::prelude::*;

    fn state() -> StateRecord {
        StateRecord {
            suspect: true,
            first_index: 1,
            vote: 0x22,
            runs: vec![TermRun { term: 1, first: 1 }, TermRun { term: 0x33, first: 0x44 }],
            membership: Bytes::from_static(b"members"),
        }
    }

    #[test]
    fn golden_bytes() {
        let dump = golden::dump(&state().encode());
        expect![[r#"
            0000  01 00 00 00 02 00 00 00
            0008  07 00 00 00 01 00 00 00
            0016  00 00 00 00 22 00 00 00
            0024  00 00 00 00 01 00 00 00
            0032  00 00 00 00 01 00 00 00
            0040  00 00 00 00 33 00 00 00
            0048  00 00 00 00 44 00 00 00
            0056  00 00 00 00 6d 65 6d 62
            0064  65 72 73
        "#]]
        .assert_eq(&dump);
        assert_eq!(StateRecord::decode(&state().encode()), Some(state()));
    }

    proptest! {
        #[test]
        fn mutated_bytes_never_panic_and_what_decodes_has_one_spelling(
            at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()
        ) {
            let mut bytes = state().encode().to_vec();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Some(state) = StateRecord::decode(&bytes) {
                prop_assert_eq!(&state.encode()[..], &bytes[..]);
            }
            let _ = StateRecord::decode(&bytes[..cut.index(bytes.len())]);
        }
    }
}
