//! The anchor: what a start must know before it may believe the log, and which segments were freed since.
//!
//! ```text
//!  0  magic "TRNANCHR"        56  term_max u64
//!  8  version u32             64  damage u32
//! 12  record bytes u32        68  damage known since (epoch) u32
//! 16  slice id (24 bytes)     72  freed count u32
//! 40  sequence u64            76  zero u32
//! 48  epoch u32               80  frames of this epoch that were freed (24 bytes)
//! 52  epoch count u32        104  epochs: epoch u32, last valid flush u64, frames (24 bytes)
//!                             ..  freed: generation u64
//!                             ..  crc32c u32
//!
//! then, from the next smallest write on, one for each segment that is freed:
//!
//!  0  magic "TRNFREED"        16  generation u64
//!  8  sequence u64            24  frames (24 bytes)
//!                             48  crc32c u32, from the checksum of the slice id
//! ```
//!
//! Two chunks take turns. Each start resets the chunk that does **not** hold the newest anchor and writes the next
//! anchor there, durably, before it writes anything to the log. A crash in between leaves the newest one alone. When its
//! chunk is full of freed segments, the next anchor is written in the same way.
//!
//! Invariants:
//! - The epoch of a start is greater than every epoch before it.
//! - For each earlier epoch the anchor names the last flush that counts. A flush that recovery once dropped stays
//!   void for ever, even if its frames become readable later (rule 5). An epoch that is not listed has none.
//! - For each earlier epoch it says which frames there must be, and of its own epoch, which of them were freed (rule 6).
//! - That a segment is free is durable before its chunk is reset. What a freed segment still holds is void.
//! - It remembers which damage is already known, so that a group that was repaired is not suspected again.

use terrane_ocssd::{AlignedBuf, ChunkId, ChunkState, Durability, Media, MediaError};

use crate::cursor::Cursor;
use crate::frame_set::{self, FrameSet};
use crate::segment::Generation;
use crate::slice::{ANCHOR_CHUNKS, Layout, SliceId};

const MAGIC: &[u8; 8] = b"TRNANCHR";
const VERSION: u32 = 2;
const FIXED_BYTES: usize = 104;
const EPOCH_BYTES: usize = 12 + frame_set::BYTES;
const FREED_MAGIC: &[u8; 8] = b"TRNFREED";
pub(crate) const FREED_BYTES: usize = 28 + frame_set::BYTES;

/// What is known of an earlier epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EpochEnd {
    pub(crate) epoch: u32,
    /// Frames of later flushes of the epoch are void.
    pub(crate) last_flush: u64,
    /// The frames that must be there: those that counted, less those that were freed.
    pub(crate) frames: FrameSet,
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
    /// Earlier epochs of which frames must be there, ascending.
    pub(crate) epochs: Vec<EpochEnd>,
    /// Frames of this epoch that were freed.
    pub(crate) freed_frames: FrameSet,
    /// Segments that were freed and may still stand on their chunks.
    pub(crate) freed: Vec<Generation>,
}

/// What stands in an anchor chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// Zeros, or nothing was ever written.
    Blank,
    /// Something that is no valid anchor.
    Damaged,
    /// An anchor of another version of the format.
    Other(u32),
    Valid(Anchor),
}

impl Anchor {
    /// What format leaves behind.
    pub(crate) fn first(slice: SliceId) -> Self {
        Self {
            slice,
            sequence: 1,
            epoch: 0,
            term_max: 0,
            damage: 0,
            damage_known_since: 0,
            epochs: Vec::new(),
            freed_frames: FrameSet::default(),
            freed: Vec::new(),
        }
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
        let record_bytes = FIXED_BYTES + EPOCH_BYTES * self.epochs.len() + 8 * self.freed.len() + 4;
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
        out.extend_from_slice(&(self.freed.len() as u32).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        self.freed_frames.encode(&mut out);
        for end in &self.epochs {
            out.extend_from_slice(&end.epoch.to_le_bytes());
            out.extend_from_slice(&end.last_flush.to_le_bytes());
            end.frames.encode(&mut out);
        }
        for generation in &self.freed {
            out.extend_from_slice(&generation.0.to_le_bytes());
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
            return Some(Found::Other(version));
        }
        cursor.u32()?;
        let slice = SliceId::decode(&mut cursor)?;
        let sequence = cursor.u64()?;
        let epoch = cursor.u32()?;
        let count = cursor.u32()? as usize;
        let term_max = cursor.u64()?;
        let damage = cursor.u32()?;
        let damage_known_since = cursor.u32()?;
        let freed_count = cursor.u32()? as usize;
        cursor.u32()?;
        let freed_frames = FrameSet::decode(&mut cursor)?;
        if cursor.rest().len() != count.checked_mul(EPOCH_BYTES)?.checked_add(freed_count.checked_mul(8)?)? {
            return None;
        }
        let mut epochs = Vec::with_capacity(count);
        for _ in 0..count {
            let end_epoch = cursor.u32()?;
            let last_flush = cursor.u64()?;
            let frames = FrameSet::decode(&mut cursor)?;
            epochs.push(EpochEnd { epoch: end_epoch, last_flush, frames });
        }
        let mut freed = Vec::with_capacity(freed_count);
        for _ in 0..freed_count {
            freed.push(Generation(cursor.u64()?));
        }
        let ascending = epochs.windows(2).all(|pair| pair[0].epoch < pair[1].epoch);
        let earlier = epochs.last().is_none_or(|end| end.epoch < epoch);
        let anchor = Anchor {
            slice,
            sequence,
            epoch,
            term_max,
            damage,
            damage_known_since,
            epochs,
            freed_frames,
            freed,
        };
        (ascending && earlier).then_some(Found::Valid(anchor))
    }

    /// A segment is free. Nothing of it counts any more.
    pub(crate) fn free(&mut self, segment: FreedSegment) {
        let epoch = segment.generation.epoch();
        if epoch == self.epoch {
            self.freed_frames = self.freed_frames.plus(segment.frames);
        } else if let Ok(at) = self.epochs.binary_search_by_key(&epoch, |end| end.epoch) {
            self.epochs[at].frames = self.epochs[at].frames.minus(segment.frames);
        }
        self.freed.push(segment.generation);
    }

    /// What `epoch` ended with, for an epoch before this anchor's.
    pub(crate) fn end_of(&self, epoch: u32) -> Option<&EpochEnd> {
        let at = self.epochs.binary_search_by_key(&epoch, |end| end.epoch).ok()?;
        Some(&self.epochs[at])
    }
}

/// A segment that was freed, and its frames that counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FreedSegment {
    pub(crate) generation: Generation,
    pub(crate) frames: FrameSet,
}

impl FreedSegment {
    pub(crate) fn encode(&self, slice: SliceId, sequence: u64) -> Vec<u8> {
        let mut out = Vec::with_capacity(FREED_BYTES);
        out.extend_from_slice(FREED_MAGIC);
        out.extend_from_slice(&sequence.to_le_bytes());
        out.extend_from_slice(&self.generation.0.to_le_bytes());
        self.frames.encode(&mut out);
        let crc = crc32c::crc32c_append(seed(slice), &out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// The segment that `bytes` say was freed, if they are whole and belong to the anchor of this sequence.
    pub(crate) fn decode(bytes: &[u8], slice: SliceId, sequence: u64) -> Option<Self> {
        let (body, crc) = bytes.get(..FREED_BYTES)?.split_last_chunk::<4>()?;
        let mut cursor = Cursor::new(body);
        if cursor.take(8)? != FREED_MAGIC
            || cursor.u64()? != sequence
            || crc32c::crc32c_append(seed(slice), body) != u32::from_le_bytes(*crc)
        {
            return None;
        }
        Some(Self { generation: Generation(cursor.u64()?), frames: FrameSet::decode(&mut cursor)? })
    }
}

pub(crate) fn seed(slice: SliceId) -> u32 {
    let mut bytes = Vec::with_capacity(24);
    slice.encode(&mut bytes);
    crc32c::crc32c(&bytes)
}

/// Reads an anchor chunk: the anchor, with every segment that was freed since. A part the device cannot read counts as
/// damaged; the caller decides what that means.
///
/// A segment whose freeing cannot be read is taken for one that was not freed. If its chunk was written again since, its
/// frames are missed, and that is damage; never is a frame believed that should not be.
pub(crate) async fn read<M: Media>(
    media: &M,
    layout: &Layout,
    chunk: ChunkId,
    readable_bytes: u32,
) -> Result<Found, MediaError> {
    let readable_bytes = readable_bytes / layout.unit_bytes * layout.unit_bytes;
    if readable_bytes == 0 {
        return Ok(Found::Blank);
    }
    let Some(head) = read_part(media, layout, chunk, 0, layout.unit_bytes).await? else {
        return Ok(Found::Damaged);
    };
    let claimed = Anchor::claimed_bytes(&head).unwrap_or(0);
    let found = if claimed <= layout.unit_bytes {
        Anchor::decode(&head)
    } else if claimed > readable_bytes {
        Found::Damaged
    } else {
        match read_part(media, layout, chunk, 0, layout.round_up(claimed)).await? {
            Some(bytes) => Anchor::decode(&bytes),
            None => Found::Damaged,
        }
    };
    let Found::Valid(mut anchor) = found else { return Ok(found) };
    let mut offset = layout.round_up(claimed);
    while offset < readable_bytes {
        let bytes = FREED_AT_ONCE_BYTES.next_multiple_of(layout.unit_bytes).min(readable_bytes - offset);
        let Some(part) = read_part(media, layout, chunk, offset, bytes).await? else { break };
        for unit in part.chunks(layout.unit_bytes as usize) {
            let Some(freed) = FreedSegment::decode(unit, anchor.slice, anchor.sequence) else {
                return Ok(Found::Valid(anchor));
            };
            anchor.free(freed);
        }
        offset += bytes;
    }
    Ok(Found::Valid(anchor))
}

/// What one read of freed segments takes.
const FREED_AT_ONCE_BYTES: u32 = 256 << 10;

/// `None` if the device does not give all of it back.
async fn read_part<M: Media>(
    media: &M,
    layout: &Layout,
    chunk: ChunkId,
    offset: u32,
    bytes: u32,
) -> Result<Option<AlignedBuf>, MediaError> {
    match media.read(chunk, layout.sector_of(offset), AlignedBuf::zeroed(bytes as usize)).await {
        (Ok(()), buf) => Ok(Some(buf)),
        (Err(error), _) if error.is_bad_content() => Ok(None),
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

/// Writes `anchor` to its chunk, which stays open for the segments that will be freed. Resolves when it is durable, with the
/// bytes of the chunk that are written. If it does not fit, nothing is touched.
pub(crate) async fn write<M: Media>(media: &M, layout: &Layout, anchor: &Anchor) -> Result<u32, WriteError> {
    let record = anchor.encode();
    if record.len() > layout.chunk_bytes as usize {
        return Err(WriteError::Full);
    }
    let bytes = layout.round_up(record.len() as u32);
    let mut buf = AlignedBuf::zeroed(bytes as usize);
    buf[..record.len()].copy_from_slice(&record);
    media.reset(anchor.chunk()).await?;
    media.write(anchor.chunk(), 0, buf, Durability::Durable).await.0?;
    Ok(bytes)
}

/// The newest anchor, and where its chunk goes on.
#[derive(Debug)]
pub(crate) struct AnchorLog {
    pub(crate) anchor: Anchor,
    /// Bytes of its chunk that are written.
    filled: u32,
}

impl AnchorLog {
    /// The log of an anchor that is to be written.
    pub(crate) fn new(anchor: Anchor) -> Self {
        Self { anchor, filled: 0 }
    }

    /// What must be written so that `segment` is free. The caller writes it ([`write_freed`]) before it asks again.
    pub(crate) fn free(&mut self, layout: &Layout, segment: FreedSegment) -> FreedWrite {
        self.anchor.free(segment);
        if self.filled < layout.chunk_bytes {
            let mut buf = AlignedBuf::zeroed(layout.unit_bytes as usize);
            let record = segment.encode(self.anchor.slice, self.anchor.sequence);
            buf[..record.len()].copy_from_slice(&record);
            let offset = self.filled;
            self.filled += layout.unit_bytes;
            return FreedWrite::Append { chunk: self.anchor.chunk(), sector: layout.sector_of(offset), buf };
        }
        self.anchor.sequence += 1;
        FreedWrite::Next(self.anchor.clone())
    }

    /// The anchor is durable, and takes so many bytes of its chunk.
    pub(crate) fn began(&mut self, filled: u32) {
        self.filled = filled;
    }

    /// The chunk of the segment was reset: nothing of it can be met any more.
    pub(crate) fn forget(&mut self, generation: Generation) {
        self.anchor.freed.retain(|freed| *freed != generation);
    }
}

/// A write that frees a segment.
pub(crate) enum FreedWrite {
    Append {
        chunk: ChunkId,
        sector: u32,
        buf: AlignedBuf,
    },
    /// The chunk is full: the next anchor goes to the other one.
    Next(Anchor),
}

/// Resolves when the segment is free durably. Returns the bytes that the new anchor took, if there is one.
pub(crate) async fn write_freed<M: Media>(
    media: &M,
    layout: &Layout,
    write: FreedWrite,
) -> Result<Option<u32>, WriteError> {
    match write {
        FreedWrite::Append { chunk, sector, buf } => {
            media.write(chunk, sector, buf, Durability::Durable).await.0?;
            Ok(None)
        }
        FreedWrite::Next(anchor) => self::write(media, layout, &anchor).await.map(Some),
    }
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
            epochs: vec![
                EpochEnd { epoch: 6, last_flush: 7, frames: FrameSet::up_to(3) },
                EpochEnd { epoch: 8, last_flush: 9, frames: FrameSet::up_to(4) },
            ],
            freed_frames: FrameSet::up_to(2),
            freed: vec![Generation(0x0000_0008_0000_0002)],
        }
    }

    #[test]
    fn golden_bytes() {
        let bytes = anchor().encode();
        let dump = golden::dump(&bytes);
        expect![[r#"
            0000  54 52 4e 41 4e 43 48 52
            0008  02 00 00 00 bc 00 00 00
            0016  01 00 00 00 00 00 00 00
            0024  00 00 00 00 00 00 00 00
            0032  02 00 00 00 03 00 00 00
            0040  04 00 00 00 00 00 00 00
            0048  09 00 00 00 02 00 00 00
            0056  05 00 00 00 00 00 00 00
            0064  0a 00 00 00 09 00 00 00
            0072  01 00 00 00 00 00 00 00
            0080  02 00 00 00 00 00 00 00
            0088  03 00 00 00 00 00 00 00
            0096  05 00 00 00 00 00 00 00
            0104  06 00 00 00 07 00 00 00
            0112  00 00 00 00 03 00 00 00
            0120  00 00 00 00 06 00 00 00
            0128  00 00 00 00 0e 00 00 00
            0136  00 00 00 00 08 00 00 00
            0144  09 00 00 00 00 00 00 00
            0152  04 00 00 00 00 00 00 00
            0160  0a 00 00 00 00 00 00 00
            0168  1e 00 00 00 00 00 00 00
            0176  02 00 00 00 08 00 00 00
            0184  15 81 06 83
        "#]]
        .assert_eq(&dump);
        assert_eq!(Anchor::decode(&bytes), Found::Valid(anchor()));
        assert_eq!(anchor().end_of(8).map(|end| end.last_flush), Some(9));
        assert_eq!(anchor().end_of(7), None);
    }

    #[test]
    fn zeros_are_blank_and_another_version_is_named() {
        assert_eq!(Anchor::decode(&[0; 512]), Found::Blank);
        let mut bytes = anchor().encode();
        bytes[8] = 3;
        let end = bytes.len() - 4;
        let crc = crc32c::crc32c(&bytes[..end]);
        bytes[end..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Anchor::decode(&bytes), Found::Other(3));
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
