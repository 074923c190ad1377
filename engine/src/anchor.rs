//! The anchor: what a start must know before it may believe the log, and the first thing it makes durable.
//!
//! ```text
//!  0  magic "TRNANCHR"        52  epoch count u32
//!  8  version u32             56  term_max u64
//! 12  record bytes u32        64  damage u32
//! 16  slice id (24 bytes)     68  damage known since (epoch) u32
//! 40  sequence u64            72  epochs: epoch u32, last valid flush u64
//! 48  epoch u32               ..  crc32c u32
//! ```
//!
//! Two chunks take turns. Each start resets the chunk that does **not** hold the newest anchor and writes the next
//! anchor there, durably, before it writes anything to the log. A crash in between leaves the newest one alone.
//!
//! Invariants:
//! - The epoch of a start is greater than every epoch before it.
//! - For each earlier epoch the anchor names the last flush that counts. A flush that recovery once dropped stays
//!   void for ever, even if its frames become readable later (rule 5). An epoch that is not listed has none.
//! - It remembers which damage is already known, so that a group that was repaired is not suspected again.

use terrane_ocssd::{AlignedBuf, ChunkId, ChunkState, Durability, Media, MediaError};

use crate::cursor::Cursor;
use crate::slice::{ANCHOR_CHUNKS, Layout, SliceId};

const MAGIC: &[u8; 8] = b"TRNANCHR";
const VERSION: u32 = 1;
const FIXED_BYTES: usize = 72;
const EPOCH_BYTES: usize = 12;

/// What is known of an earlier epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EpochEnd {
    pub(crate) epoch: u32,
    /// Frames of later flushes of the epoch are void.
    pub(crate) last_flush: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Anchor {
    pub(crate) slice: SliceId,
    pub(crate) sequence: u64,
    /// The epoch of the start that wrote it.
    pub(crate) epoch: u32,
    /// The highest term any group of the shard had known by then.
    pub(crate) term_max: u64,
    /// Which damage the newest start that found any has found: a checksum over its list; 0 if none ever did.
    pub(crate) damage: u32,
    /// The start that first found just this damage; 0 if there is none that could concern a group.
    pub(crate) damage_known_since: u32,
    /// Earlier epochs that have valid flushes, ascending.
    pub(crate) epochs: Vec<EpochEnd>,
}

/// What stands in an anchor chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// Zeros, or nothing was ever written.
    Blank,
    /// Something that is no valid anchor.
    Damaged,
    /// An anchor of a later version of the format.
    Newer(u32),
    Valid(Anchor),
}

impl Anchor {
    /// What format leaves behind.
    pub(crate) fn first(slice: SliceId) -> Self {
        let (sequence, epoch, term_max, damage, damage_known_since) = (1, 0, 0, 0, 0);
        Self { slice, sequence, epoch, term_max, damage, damage_known_since, epochs: Vec::new() }
    }

    /// The chunk it belongs in: they take turns.
    pub(crate) fn chunk(&self) -> ChunkId {
        ANCHOR_CHUNKS[(self.sequence % 2) as usize]
    }

    /// The chunk of the anchor before it and after it.
    pub(crate) fn other_chunk(&self) -> ChunkId {
        ANCHOR_CHUNKS[((self.sequence + 1) % 2) as usize]
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let record_bytes = FIXED_BYTES + EPOCH_BYTES * self.epochs.len() + 4;
        let mut out = Vec::with_capacity(record_bytes);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(record_bytes as u32).to_le_bytes());
        self.slice.encode(&mut out);
        out.extend_from_slice(&self.sequence.to_le_bytes());
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&(self.epochs.len() as u32).to_le_bytes());
        out.extend_from_slice(&self.term_max.to_le_bytes());
        out.extend_from_slice(&self.damage.to_le_bytes());
        out.extend_from_slice(&self.damage_known_since.to_le_bytes());
        for end in &self.epochs {
            out.extend_from_slice(&end.epoch.to_le_bytes());
            out.extend_from_slice(&end.last_flush.to_le_bytes());
        }
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// Bytes of the anchor that starts with `head`, as far as it says so itself (nothing is verified).
    pub(crate) fn claimed_bytes(head: &[u8]) -> Option<u32> {
        let mut cursor = Cursor::new(head);
        if cursor.take(8)? != MAGIC {
            return None;
        }
        cursor.u32()?;
        cursor.u32()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Found {
        if bytes.iter().all(|byte| *byte == 0) {
            return Found::Blank;
        }
        Self::decode_written(bytes).unwrap_or(Found::Damaged)
    }

    fn decode_written(bytes: &[u8]) -> Option<Found> {
        let record_bytes = Self::claimed_bytes(bytes)? as usize;
        let (body, crc) = bytes.get(..record_bytes)?.split_last_chunk::<4>()?;
        if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
            return None;
        }
        let mut cursor = Cursor::new(body);
        cursor.take(8)?;
        let version = cursor.u32()?;
        if version != VERSION {
            return Some(Found::Newer(version));
        }
        cursor.u32()?;
        let slice = SliceId::decode(&mut cursor)?;
        let sequence = cursor.u64()?;
        let epoch = cursor.u32()?;
        let count = cursor.u32()? as usize;
        let term_max = cursor.u64()?;
        let damage = cursor.u32()?;
        let damage_known_since = cursor.u32()?;
        if cursor.rest().len() != count.checked_mul(EPOCH_BYTES)? {
            return None;
        }
        let mut epochs = Vec::with_capacity(count);
        for _ in 0..count {
            let end_epoch = cursor.u32()?;
            let last_flush = cursor.u64()?;
            epochs.push(EpochEnd { epoch: end_epoch, last_flush });
        }
        let ascending = epochs.windows(2).all(|pair| pair[0].epoch < pair[1].epoch);
        let earlier = epochs.last().is_none_or(|end| end.epoch < epoch);
        let anchor = Anchor { slice, sequence, epoch, term_max, damage, damage_known_since, epochs };
        (ascending && earlier).then_some(Found::Valid(anchor))
    }

    /// What `epoch` ended with, for an epoch before this anchor's.
    pub(crate) fn end_of(&self, epoch: u32) -> Option<&EpochEnd> {
        let at = self.epochs.binary_search_by_key(&epoch, |end| end.epoch).ok()?;
        Some(&self.epochs[at])
    }
}

/// Reads an anchor chunk. A part the device cannot read counts as damaged; the caller decides what that means.
pub(crate) async fn read<M: Media>(
    media: &M,
    layout: &Layout,
    chunk: ChunkId,
    readable_bytes: u32,
) -> Result<Found, MediaError> {
    if readable_bytes < layout.unit_bytes {
        return Ok(Found::Blank);
    }
    let head = match media.read(chunk, 0, AlignedBuf::zeroed(layout.unit_bytes as usize)).await {
        (Ok(()), head) => head,
        (Err(error), _) if error.is_bad_content() => return Ok(Found::Damaged),
        (Err(error), _) => return Err(error),
    };
    let claimed = Anchor::claimed_bytes(&head).unwrap_or(0);
    if claimed <= layout.unit_bytes {
        return Ok(Anchor::decode(&head));
    }
    if claimed > readable_bytes {
        return Ok(Found::Damaged);
    }
    match media.read(chunk, 0, AlignedBuf::zeroed(layout.round_up(claimed) as usize)).await {
        (Ok(()), bytes) => Ok(Anchor::decode(&bytes)),
        (Err(error), _) if error.is_bad_content() => Ok(Found::Damaged),
        (Err(error), _) => Err(error),
    }
}

/// Why an anchor was not written.
#[derive(Debug)]
pub(crate) enum WriteError {
    /// It lists more epochs than its chunk can hold.
    Full,
    Media(MediaError),
}

impl From<MediaError> for WriteError {
    fn from(error: MediaError) -> Self {
        Self::Media(error)
    }
}

/// Writes `anchor` to its chunk. Resolves when it is durable. If it does not fit, nothing is touched.
pub(crate) async fn write<M: Media>(media: &M, layout: &Layout, anchor: &Anchor) -> Result<(), WriteError> {
    let record = anchor.encode();
    if record.len() > layout.chunk_bytes as usize {
        return Err(WriteError::Full);
    }
    let bytes = layout.round_up(record.len() as u32);
    let mut buf = AlignedBuf::zeroed(bytes as usize);
    buf[..record.len()].copy_from_slice(&record);
    media.reset(anchor.chunk()).await?;
    media.write(anchor.chunk(), 0, buf, Durability::Durable).await.0?;
    if bytes < layout.chunk_bytes {
        media.finish(anchor.chunk()).await?;
    }
    Ok(())
}

/// Makes sure that a chunk holds no anchor. Resolves when that is durable.
pub(crate) async fn blank<M: Media>(media: &M, layout: &Layout, chunk: ChunkId) -> Result<(), MediaError> {
    media.reset(chunk).await?;
    let zeros = AlignedBuf::zeroed(layout.unit_bytes as usize);
    media.write(chunk, 0, zeros, Durability::Durable).await.0?;
    media.finish(chunk).await
}

/// Bytes of a chunk that may be read, from its report.
pub(crate) fn readable_bytes(layout: &Layout, state: ChunkState, write_pointer: u32) -> u32 {
    match state {
        ChunkState::Free | ChunkState::Offline => 0,
        ChunkState::Open | ChunkState::Closed => {
            write_pointer.saturating_mul(layout.sector_bytes).min(layout.chunk_bytes)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;
    use expect_test::expect;
    use proptest::prelude::*;

    fn anchor() -> Anchor {
        Anchor {
            slice: SliceId { cluster: 1, node: 2, shard: 3 },
            sequence: 4,
            epoch: 9,
            term_max: 5,
            damage: 10,
            damage_known_since: 9,
            epochs: vec![EpochEnd { epoch: 6, last_flush: 7 }, EpochEnd { epoch: 8, last_flush: 9 }],
        }
    }

    #[test]
    fn golden_bytes() {
        let bytes = anchor().encode();
        let dump = golden::dump(&bytes);
        expect![[r#"
            0000  54 52 4e 41 4e 43 48 52
            0008  01 00 00 00 64 00 00 00
            0016  01 00 00 00 00 00 00 00
            0024  00 00 00 00 00 00 00 00
            0032  02 00 00 00 03 00 00 00
            0040  04 00 00 00 00 00 00 00
            0048  09 00 00 00 02 00 00 00
            0056  05 00 00 00 00 00 00 00
            0064  0a 00 00 00 09 00 00 00
            0072  06 00 00 00 07 00 00 00
            0080  00 00 00 00 08 00 00 00
            0088  09 00 00 00 00 00 00 00
            0096  6b bc 86 b9
        "#]]
        .assert_eq(&dump);
        assert_eq!(Anchor::decode(&bytes), Found::Valid(anchor()));
        assert_eq!(anchor().end_of(8).map(|end| end.last_flush), Some(9));
        assert_eq!(anchor().end_of(7), None);
    }

    #[test]
    fn zeros_are_blank_and_a_later_version_is_named() {
        assert_eq!(Anchor::decode(&[0; 512]), Found::Blank);
        let mut bytes = anchor().encode();
        bytes[8] = 2;
        let end = bytes.len() - 4;
        let crc = crc32c::crc32c(&bytes[..end]);
        bytes[end..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Anchor::decode(&bytes), Found::Newer(2));
    }

    proptest! {
        #[test]
        fn any_change_is_noticed(at in any::<prop::sample::Index>(), flip in 1_u8..) {
            let mut bytes = anchor().encode();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            prop_assert_eq!(Anchor::decode(&bytes), Found::Damaged);
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Anchor::decode(&bytes);
        }
    }
}
