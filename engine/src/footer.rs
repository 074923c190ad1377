//! The footer: hints of all records of a sealed segment, so that recovery never reads their values.
//!
//! ```text
//! | segment header | frame | frame | ... | zeros | block | block | ... | trailer |
//!                                                                     end of the chunk
//! block                                      trailer (the last 48 bytes of the chunk)
//!  0  bytes of the first part u32             0  magic "TRNHINTS"      28  end of the frames u32
//!  4  bytes of the second part u32            8  generation u64        32  zero u64
//!  8  bytes that follow u32                  16  bytes of blocks u32   40  crc32c of the blocks u32
//! 12  both parts: as they are if that is     20  frames u32            44  crc32c of bytes 0..44
//!     shorter, else as one zstd frame        24  hints u32
//! ```
//!
//! The first part has tags and numbers, the second keys and states: apart, each packs better. Numbers are LEB128, and say
//! the difference from the one before where there is one. `docs/format.md` has the tags.
//!
//! It ends where the chunk does, because that is the one place that a start knows without a pointer: a conventional device
//! has no write pointers, and any other is written at its own.
//!
//! Invariants:
//! - A footer is a help. A segment without one, or whose footer is not valid, is scanned, and nothing is lost.
//! - Checksums start from the segment's stamp: the footer of an earlier use of the chunk is not valid.
//! - It is written with the flush that leaves the segment and may be durable before that flush is. What it says of frames
//!   of the highest flush is verified ([`crate::recovery`]); of lower flushes it is true.

use std::collections::BTreeMap;

use crate::cursor::Cursor;
use crate::entry::{ENTRY_OPS, GroupId};
use crate::frame::FrameHeader;
use crate::hint::{About, Hint, put_varint};
use crate::record::{RecordHeader, RecordKind};
use crate::segment::{Generation, Stamp};
use crate::slice::Layout;

/// Bytes of the trailer.
pub(crate) const TRAILER_BYTES: u32 = 48;

/// Bytes that a frame takes in a footer beside its hints, at most: what is said of it, and the head of a block.
pub(crate) const FRAME_BYTES_MAX: u32 = BLOCK_HEAD_BYTES + 1 + 4 * 10 + 2 * 3 + 5;

const MAGIC: &[u8; 8] = b"TRNHINTS";
const BLOCK_HEAD_BYTES: u32 = 12;

/// A block is packed with the frame that brings it to this length, in bytes. Longer ones pack no better (the keys of
/// neighbours are not alike), and until then hints take their full room in the segment.
const BLOCK_BYTES: usize = 32 << 10;

/// Level 1 packs keys of letters better than levels 3 and 9 do, and faster; others alike (docs/decisions/0010-hints.md).
const ZSTD_LEVEL: i32 = 1;

/// A footer is written only if so many zeros before it, at most, are less than this share of the chunk: large records leave
/// much behind, and writing it would cost more than a scan saves.
const PADDING_SHARE: u32 = 16;

/// Contexts that are remembered: their numbers take two bytes.
const CONTEXTS_MAX: usize = (1 << 14) - 1;

/// Whether a footer is worth the zeros before it, in bytes.
pub(crate) fn is_worth(padding: u32, layout: &Layout) -> bool {
    padding <= layout.chunk_bytes / PADDING_SHARE
}

const TAG_FRAME: u8 = 0;
const TAG_PUT: u8 = 1;
const TAG_PUT_EXPIRING: u8 = 2;
const TAG_DELETE: u8 = 3;
const TAG_BARE: u8 = 4;
const TAG_STATE: u8 = 5;
const TAG_SETTLED: u8 = 6;
const TAG_SETTLED_EXPIRING: u8 = 7;
const TAG_TOMBSTONE: u8 = 8;
const TAG_MASK: u8 = 0x0f;
/// The context is that of the record before.
const SAME_CONTEXT: u8 = 0x10;
/// The index follows that of the context's record before.
const NEXT_INDEX: u8 = 0x20;
/// The index is not higher than that of the context's record before, and stands as it is.
const WHOLE_INDEX: u8 = 0x40;
/// Other records of the entry follow.
const PARTS_LEFT: u8 = 0x80;

/// What records have in common that belong together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Context {
    group: GroupId,
    incarnation: u32,
    term: u64,
    /// Of its newest record.
    index: u64,
}

/// What the next hint is told from.
#[derive(Debug, Default)]
struct Before {
    contexts: Vec<Context>,
    context: usize,
    key: Vec<u8>,
    lsn: u64,
    flush: u64,
    number: u64,
    term_max: u64,
}

/// Packs blocks.
#[derive(Default)]
pub(crate) struct Packer(Option<zstd::bulk::Compressor<'static>>);

impl std::fmt::Debug for Packer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Packer").finish_non_exhaustive()
    }
}

impl Packer {
    /// `bytes` packed, if that spares more than a sixteenth.
    fn pack(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        if self.0.is_none() {
            // Without memory for it, blocks stay as they are.
            self.0 = zstd::bulk::Compressor::new(ZSTD_LEVEL).ok();
        }
        let packed = self.0.as_mut()?.compress(bytes).ok()?;
        (packed.len() + bytes.len() / 16 < bytes.len()).then_some(packed)
    }
}

/// The footer of an open segment, as far as it is known.
#[derive(Debug, Default)]
pub(crate) struct FooterBuilder {
    blocks: Vec<u8>,
    /// The block in the making: its two parts.
    numbers: Vec<u8>,
    keys: Vec<u8>,
    before: Before,
    numbers_of_contexts: BTreeMap<(GroupId, u32, u64), usize>,
    frames: u32,
    hints: u32,
}

impl FooterBuilder {
    /// Bytes of its blocks, if no frame followed.
    pub(crate) fn bytes(&self) -> u32 {
        let open = self.numbers.len() + self.keys.len();
        let head = if open > 0 { BLOCK_HEAD_BYTES } else { 0 };
        (self.blocks.len() + open) as u32 + head
    }

    /// Adds the segment's next frame.
    pub(crate) fn frame<'a>(
        &mut self,
        header: &FrameHeader,
        hints: impl IntoIterator<Item = Hint<'a>>,
        packer: &mut Packer,
    ) {
        let before = &mut self.before;
        self.numbers.push(TAG_FRAME);
        for (value, last) in [
            (header.lsn_first, &mut before.lsn),
            (header.flush, &mut before.flush),
            (header.number, &mut before.number),
            (header.term_max, &mut before.term_max),
        ] {
            put_varint(&mut self.numbers, value - *last);
            *last = value;
        }
        before.lsn += u64::from(header.records);
        for value in [header.frames.into(), header.ordinal.into(), header.records] {
            put_varint(&mut self.numbers, value.into());
        }
        let mut count = 0;
        for hint in hints {
            self.hint(&hint);
            count += 1;
        }
        assert_eq!(count, header.records, "a frame has a hint for each record");
        self.frames += 1;
        self.hints += count;
        if self.numbers.len() + self.keys.len() >= BLOCK_BYTES {
            self.close_block(packer);
        }
    }

    fn hint(&mut self, hint: &Hint<'_>) {
        let header = &hint.header;
        let mut tag = tag_of(hint);
        if header.parts_left > 0 {
            tag |= PARTS_LEFT;
        }
        let context = (header.group, header.incarnation, header.term);
        let same = |known: &Context| (known.group, known.incarnation, known.term) == context;
        let number = match self.before.contexts.get(self.before.context) {
            Some(known) if same(known) => {
                tag |= SAME_CONTEXT;
                self.before.context
            }
            _ => self.numbers_of_contexts.get(&context).copied().unwrap_or(self.before.contexts.len()),
        };
        let last = self.before.contexts.get(number).map_or(0, |known| known.index);
        let ahead = header.index.checked_sub(last);
        tag |= match ahead {
            Some(1) => NEXT_INDEX,
            Some(1..) => 0,
            Some(0) | None => WHOLE_INDEX,
        };
        self.numbers.push(tag);
        if tag & SAME_CONTEXT == 0 {
            put_varint(&mut self.numbers, number as u64);
            if number == self.before.contexts.len() {
                if number == CONTEXTS_MAX {
                    self.before.contexts.clear();
                    self.numbers_of_contexts.clear();
                }
                self.numbers_of_contexts.insert(context, self.before.contexts.len());
                self.before.context = self.before.contexts.len();
                let (group, incarnation, term) = context;
                self.before.contexts.push(Context { group, incarnation, term, index: 0 });
                for value in [group.0, incarnation.into(), term] {
                    put_varint(&mut self.numbers, value);
                }
            } else {
                self.before.context = number;
            }
        }
        match ahead {
            Some(1) => {}
            Some(ahead @ 1..) => put_varint(&mut self.numbers, ahead),
            Some(0) | None => put_varint(&mut self.numbers, header.index),
        }
        // A state says what is committed, which the next entry does not follow.
        if header.kind != RecordKind::State {
            self.before.contexts[self.before.context].index = header.index;
        }
        if header.parts_left > 0 {
            put_varint(&mut self.numbers, header.parts_left.into());
        }
        put_varint(&mut self.numbers, header.payload_bytes.into());
        match hint.about {
            About::Put { key, expires_unix_ms } => {
                self.key(key);
                if let Some(expires) = expires_unix_ms {
                    self.numbers.extend_from_slice(&expires.to_le_bytes());
                }
            }
            About::Delete { key } => self.key(key),
            About::Bare => self.numbers.push(header.entry_kind),
            About::State(payload) => self.keys.extend_from_slice(payload),
            About::Nonsense => unreachable!("what is written makes sense"),
        }
    }

    fn key(&mut self, key: &[u8]) {
        let before = &mut self.before.key;
        let shared = before.iter().zip(key).take_while(|(a, b)| a == b).count();
        put_varint(&mut self.numbers, shared as u64);
        put_varint(&mut self.numbers, (key.len() - shared) as u64);
        self.keys.extend_from_slice(&key[shared..]);
        before.truncate(shared);
        before.extend_from_slice(&key[shared..]);
    }

    fn close_block(&mut self, packer: &mut Packer) {
        if self.numbers.is_empty() {
            return;
        }
        let parts = [self.numbers.len(), self.keys.len()];
        self.numbers.append(&mut self.keys);
        let packed = packer.pack(&self.numbers);
        let bytes = packed.as_ref().unwrap_or(&self.numbers);
        for number in parts.into_iter().chain([bytes.len()]) {
            self.blocks.extend_from_slice(&(number as u32).to_le_bytes());
        }
        self.blocks.extend_from_slice(bytes);
        self.numbers.clear();
    }

    /// No frame follows: the last block is packed. Returns the bytes of the whole footer.
    pub(crate) fn finish(&mut self, packer: &mut Packer) -> u32 {
        self.close_block(packer);
        self.blocks.len() as u32 + TRAILER_BYTES
    }

    /// Fills `out`, which ends where the chunk does, with zeros and the finished footer. The segment's frames end at `end`.
    pub(crate) fn encode(&self, stamp: Stamp, end: u32, out: &mut [u8]) {
        debug_assert!(self.numbers.is_empty(), "it is finished");
        let (body, trailer) = out.split_at_mut(out.len() - TRAILER_BYTES as usize);
        let (zeros, blocks) = body.split_at_mut(body.len() - self.blocks.len());
        zeros.fill(0);
        blocks.copy_from_slice(&self.blocks);
        let of = Trailer {
            block_bytes: self.blocks.len() as u32,
            frames: self.frames,
            hints: self.hints,
            end,
            blocks_crc: crc32c::crc32c_append(stamp.seed, blocks),
        };
        of.encode(stamp, trailer);
    }
}

fn tag_of(hint: &Hint<'_>) -> u8 {
    match (hint.header.kind, hint.about) {
        (RecordKind::Entry, About::Put { expires_unix_ms: None, .. }) => TAG_PUT,
        (RecordKind::Entry, About::Put { .. }) => TAG_PUT_EXPIRING,
        (RecordKind::Entry, About::Delete { .. }) => TAG_DELETE,
        (RecordKind::Entry, About::Bare) => TAG_BARE,
        (RecordKind::State, About::State(_)) => TAG_STATE,
        (RecordKind::Settled, About::Put { expires_unix_ms: None, .. }) => TAG_SETTLED,
        (RecordKind::Settled, About::Put { .. }) => TAG_SETTLED_EXPIRING,
        (RecordKind::Tombstone, About::Delete { .. }) => TAG_TOMBSTONE,
        (kind, about) => unreachable!("no record of kind {kind:?} is about {about:?}"),
    }
}

/// The end of a footer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Trailer {
    /// Bytes of the blocks, which stand right before it.
    pub(crate) block_bytes: u32,
    frames: u32,
    hints: u32,
    /// Bytes from the start of the chunk to the end of the last frame.
    end: u32,
    blocks_crc: u32,
}

impl Trailer {
    fn encode(&self, stamp: Stamp, out: &mut [u8]) {
        out[..8].copy_from_slice(MAGIC);
        out[8..16].copy_from_slice(&stamp.generation.0.to_le_bytes());
        for (at, value) in [(16, self.block_bytes), (20, self.frames), (24, self.hints), (28, self.end)] {
            out[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
        out[32..40].fill(0);
        out[40..44].copy_from_slice(&self.blocks_crc.to_le_bytes());
        let crc = crc32c::crc32c_append(stamp.seed, &out[..44]);
        out[44..48].copy_from_slice(&crc.to_le_bytes());
    }

    /// The trailer at the end of `bytes`, where the chunk ends too, if it is valid and of this use of the segment.
    pub(crate) fn decode(bytes: &[u8], stamp: Stamp, layout: &Layout) -> Option<Self> {
        let (_, trailer) = bytes.split_last_chunk::<{ TRAILER_BYTES as usize }>()?;
        let (body, crc) = trailer.split_last_chunk::<4>()?;
        let mut cursor = Cursor::new(body);
        if cursor.take(8)? != MAGIC
            || cursor.u64()? != stamp.generation.0
            || crc32c::crc32c_append(stamp.seed, body) != u32::from_le_bytes(*crc)
        {
            return None;
        }
        let (block_bytes, frames, hints, end) = (cursor.u32()?, cursor.u32()?, cursor.u32()?, cursor.u32()?);
        let zero = cursor.u64()?;
        let trailer = Self { block_bytes, frames, hints, end, blocks_crc: cursor.u32()? };
        let room = layout.chunk_bytes.checked_sub(end)?.checked_sub(TRAILER_BYTES)?;
        (zero == 0 && block_bytes <= room).then_some(trailer)
    }

    /// Whether these are the blocks that the trailer was written with.
    pub(crate) fn covers(&self, blocks: &[u8], stamp: Stamp) -> bool {
        blocks.len() == self.block_bytes as usize
            && crc32c::crc32c_append(stamp.seed, blocks) == self.blocks_crc
    }
}

/// A frame as a footer knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FrameHints {
    /// Its header, but for the checksum of its body (0).
    pub(crate) header: FrameHeader,
    /// Bytes from the start of the chunk to it.
    pub(crate) offset: u32,
    rows: Vec<Row>,
    keys: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Row {
    header: RecordHeader,
    tag: u8,
    /// Of its key or state in the frame's keys.
    start: u32,
    bytes: u32,
    expires_unix_ms: Option<u64>,
}

impl FrameHints {
    /// The hints, in the order of the records.
    pub(crate) fn hints(&self) -> impl ExactSizeIterator<Item = Hint<'_>> {
        self.rows.iter().map(|row| {
            let key = &self.keys[row.start as usize..][..row.bytes as usize];
            let about = match row.tag {
                TAG_BARE => About::Bare,
                TAG_STATE => About::State(key),
                TAG_DELETE | TAG_TOMBSTONE => About::Delete { key },
                _ => About::Put { key, expires_unix_ms: row.expires_unix_ms },
            };
            Hint { header: row.header, about, payload: None }
        })
    }
}

/// Meets every frame that the footer names, in order. `None` if it makes no sense, though its checksums hold: some frames may
/// have been met by then.
pub(crate) fn read(
    trailer: &Trailer,
    mut blocks: &[u8],
    generation: Generation,
    layout: &Layout,
    mut meet: impl FnMut(FrameHints),
) -> Option<()> {
    let mut unpacker = None;
    let mut reader = Reader { before: Before::default(), generation, layout, end: layout.unit_bytes };
    let (mut frames, mut hints) = (0_u32, 0_u32);
    while !blocks.is_empty() {
        let mut head = Cursor::new(blocks);
        let (numbers, keys, packed) = (head.u32()?, head.u32()?, head.u32()?);
        let whole = numbers.checked_add(keys).filter(|whole| *whole <= layout.chunk_bytes)?;
        let bytes = head.take(packed as usize)?;
        blocks = head.rest();
        let unpacked;
        let bytes = if packed == whole {
            bytes
        } else {
            let unpacker = match &mut unpacker {
                Some(unpacker) => unpacker,
                none => none.insert(zstd::bulk::Decompressor::new().ok()?),
            };
            unpacked = unpacker.decompress(bytes, whole as usize).ok()?;
            &unpacked[..]
        };
        let (numbers, keys) = bytes.split_at_checked(numbers as usize)?;
        let (mut numbers, mut keys) = (Cursor::new(numbers), Cursor::new(keys));
        while !numbers.is_empty() {
            let frame = reader.frame(&mut numbers, &mut keys)?;
            frames += 1;
            hints += frame.header.records;
            meet(frame);
        }
        if !keys.is_empty() {
            return None;
        }
    }
    ((frames, hints, reader.end) == (trailer.frames, trailer.hints, trailer.end)).then_some(())
}

struct Reader<'a> {
    before: Before,
    generation: Generation,
    layout: &'a Layout,
    end: u32,
}

fn take_varint(cursor: &mut Cursor<'_>) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = cursor.u8()?;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn take_number<T: TryFrom<u64>>(cursor: &mut Cursor<'_>) -> Option<T> {
    T::try_from(take_varint(cursor)?).ok()
}

impl Reader<'_> {
    fn frame(&mut self, numbers: &mut Cursor<'_>, keys: &mut Cursor<'_>) -> Option<FrameHints> {
        if numbers.u8()? != TAG_FRAME {
            return None;
        }
        let before = &mut self.before;
        for last in [&mut before.lsn, &mut before.flush, &mut before.number, &mut before.term_max] {
            *last = last.checked_add(take_varint(numbers)?)?;
        }
        let (lsn_first, flush, number, term_max) = (before.lsn, before.flush, before.number, before.term_max);
        let (frames, ordinal, records) =
            (take_number(numbers)?, take_number::<u16>(numbers)?, take_number::<u32>(numbers)?);
        before.lsn = before.lsn.checked_add(records.into())?;
        let mut rows = Vec::with_capacity((records as usize).min(numbers.rest().len()));
        let mut frame_keys = Vec::new();
        let mut body_bytes = 0_u32;
        for _ in 0..records {
            let row = self.row(numbers, keys, &mut frame_keys)?;
            let bytes = row.header.payload_bytes.checked_add(crate::record::HEADER_BYTES as u32)?;
            body_bytes = body_bytes.checked_add(bytes)?;
            rows.push(row);
        }
        let header = FrameHeader {
            generation: self.generation,
            lsn_first,
            flush,
            frames,
            ordinal,
            records,
            body_bytes,
            term_max,
            number,
            body_crc: 0,
        };
        let offset = self.end;
        let room = self.layout.chunk_bytes - offset;
        let fits = body_bytes < room && self.layout.frame_bytes(body_bytes) <= room;
        if !fits || !header.is_sound() {
            return None;
        }
        self.end = offset + self.layout.frame_bytes(body_bytes);
        Some(FrameHints { header, offset, rows, keys: frame_keys })
    }

    fn row(
        &mut self,
        numbers: &mut Cursor<'_>,
        keys: &mut Cursor<'_>,
        frame_keys: &mut Vec<u8>,
    ) -> Option<Row> {
        let flags = numbers.u8()?;
        let tag = flags & TAG_MASK;
        let before = &mut self.before;
        if flags & SAME_CONTEXT == 0 {
            before.context = take_number(numbers)?;
            if before.context == before.contexts.len() {
                if before.context == CONTEXTS_MAX {
                    before.contexts.clear();
                }
                before.context = before.contexts.len();
                let group = GroupId(take_varint(numbers)?);
                let (incarnation, term) = (take_number(numbers)?, take_varint(numbers)?);
                before.contexts.push(Context { group, incarnation, term, index: 0 });
            }
        }
        let context = before.contexts.get_mut(before.context)?;
        let index = match flags & (NEXT_INDEX | WHOLE_INDEX) {
            NEXT_INDEX => context.index.checked_add(1)?,
            WHOLE_INDEX => take_varint(numbers)?,
            0 => context.index.checked_add(take_varint(numbers)?)?,
            _ => return None,
        };
        if tag != TAG_STATE {
            context.index = index;
        }
        let Context { group, incarnation, term, .. } = *context;
        let parts_left = if flags & PARTS_LEFT == 0 { 0 } else { take_number(numbers)? };
        let payload_bytes = take_number(numbers)?;
        let start = frame_keys.len() as u32;
        let mut entry_kind = 0;
        let mut expires_unix_ms = None;
        let kind = match tag {
            TAG_BARE => {
                entry_kind = numbers.u8()?;
                RecordKind::Entry
            }
            TAG_STATE => {
                frame_keys.extend_from_slice(keys.take(payload_bytes as usize)?);
                RecordKind::State
            }
            TAG_PUT..=TAG_DELETE | TAG_SETTLED..=TAG_TOMBSTONE => {
                let (shared, rest): (usize, usize) = (take_number(numbers)?, take_number(numbers)?);
                if shared > before.key.len() {
                    return None;
                }
                before.key.truncate(shared);
                before.key.extend_from_slice(keys.take(rest)?);
                frame_keys.extend_from_slice(&before.key);
                if matches!(tag, TAG_PUT_EXPIRING | TAG_SETTLED_EXPIRING) {
                    expires_unix_ms = Some(numbers.u64()?);
                }
                match tag {
                    TAG_TOMBSTONE => RecordKind::Tombstone,
                    TAG_SETTLED | TAG_SETTLED_EXPIRING => RecordKind::Settled,
                    _ => {
                        entry_kind = ENTRY_OPS;
                        RecordKind::Entry
                    }
                }
            }
            _ => return None,
        };
        let header =
            RecordHeader { payload_bytes, kind, entry_kind, parts_left, incarnation, group, index, term };
        let bytes = frame_keys.len() as u32 - start;
        Some(Row { header, tag, start, bytes, expires_unix_ms })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;
    use crate::op;
    use crate::record;
    use crate::slice::SliceId;
    use expect_test::expect;
    use proptest::prelude::*;
    use terrane_ocssd::Geometry;

    const GEOMETRY: Geometry = Geometry {
        groups: 1,
        parallel_units: 1,
        chunks: 8,
        chunk_sectors: 2048,
        sector_bytes: 512,
        ws_min: 1,
        ws_opt: 1,
        mw_cunits: 0,
        max_open: 0,
    };

    fn layout() -> Layout {
        Layout::new(&GEOMETRY).unwrap()
    }

    fn stamp(ordinal: u32) -> Stamp {
        Stamp::new(SliceId { cluster: 1, node: 2, shard: 3 }, Generation::new(7, ordinal))
    }

    type Written = (RecordHeader, Vec<u8>);

    fn written(kind: RecordKind, entry_kind: u8, group: u64, index: u64, payload: &[u8]) -> Written {
        let header = RecordHeader {
            payload_bytes: payload.len() as u32,
            kind,
            entry_kind,
            parts_left: 0,
            incarnation: 1,
            group: GroupId(group),
            index,
            term: if matches!(kind, RecordKind::Settled | RecordKind::Tombstone) { 0 } else { 4 },
        };
        (header, payload.to_vec())
    }

    fn hints(frame: &[Written]) -> Vec<Hint<'_>> {
        frame.iter().flat_map(|(header, payload)| record::hints(header, payload, 1)).collect()
    }

    /// A footer of these frames, its trailer last, and the headers that it should tell.
    fn footer(frames: &[Vec<Written>], stamp: Stamp) -> (Vec<u8>, Vec<FrameHeader>) {
        let (mut builder, mut packer) = (FooterBuilder::default(), Packer::default());
        let (mut headers, mut lsn, mut end) = (Vec::new(), 10, layout().unit_bytes);
        for (frame, number) in frames.iter().zip(3..) {
            let header = FrameHeader {
                generation: stamp.generation,
                lsn_first: lsn,
                flush: number - 1,
                frames: 2,
                ordinal: 1,
                records: frame.len() as u32,
                body_bytes: frame.iter().map(|(header, _)| header.record_bytes()).sum(),
                term_max: 4 + number / 3,
                number,
                body_crc: 0,
            };
            let hints = hints(frame);
            let most =
                builder.bytes() + FRAME_BYTES_MAX + hints.iter().map(|hint| hint.bytes_max()).sum::<u32>();
            builder.frame(&header, hints, &mut packer);
            assert!(builder.bytes() <= most, "hints keep within their bounds");
            headers.push(header);
            // Other streams write as well.
            lsn += frame.len() as u64 + 5;
            end += layout().frame_bytes(header.body_bytes);
        }
        let most = builder.bytes();
        let bytes = builder.finish(&mut packer);
        assert!(bytes <= most + TRAILER_BYTES);
        let mut out = vec![0xee; bytes as usize + 100];
        builder.encode(stamp, end, &mut out);
        assert_eq!(out.drain(..100).collect::<Vec<_>>(), [0; 100], "before it are zeros");
        (out, headers)
    }

    /// What a start would learn from it.
    fn decoded(footer: &[u8], stamp: Stamp) -> Option<Vec<FrameHints>> {
        let trailer = Trailer::decode(footer, stamp, &layout())?;
        let blocks = footer.len() - TRAILER_BYTES as usize;
        let blocks = &footer[blocks.checked_sub(trailer.block_bytes as usize)?..blocks];
        let mut frames = Vec::new();
        trailer.covers(blocks, stamp).then_some(())?;
        read(&trailer, blocks, stamp.generation, &layout(), |frame| frames.push(frame))?;
        Some(frames)
    }

    fn two_frames() -> Vec<Vec<Written>> {
        let entry = |index, payload: &[u8]| written(RecordKind::Entry, ENTRY_OPS, 0x11, index, payload);
        vec![
            vec![
                written(RecordKind::State, 0, 0x11, 5, b"state"),
                entry(6, &op::encode_put(b"key1", b"value", None)),
                entry(7, &op::encode_put(b"key22", b"value", Some(0x0102_0304))),
            ],
            vec![
                entry(8, &op::encode_delete(b"key2")),
                written(RecordKind::Entry, 2, 0x11, 9, b"members"),
                written(RecordKind::Settled, 0, 0x12, 3, &op::encode_put(b"kez", b"", None)),
                written(RecordKind::Settled, 0, 0x12, 2, &op::encode_put(b"kez", b"", Some(1))),
                written(RecordKind::Tombstone, 0, 0x12, 900, &op::encode_delete(b"")),
            ],
        ]
    }

    #[test]
    fn golden_bytes() {
        let (bytes, _) = footer(&two_frames(), stamp(9));
        expect![[r#"
            0000  4b 00 00 00 0c 00 00 00
            0008  57 00 00 00 00 0a 02 03
            0016  05 02 01 03 05 00 11 01
            0024  04 05 05 11 06 0c 00 04
            0032  32 15 03 02 04 03 02 01
            0040  00 00 00 00 00 05 01 01
            0048  00 02 01 05 33 06 04 00
            0056  34 07 02 06 01 12 01 00
            0064  03 06 02 01 57 02 0e 03
            0072  00 01 00 00 00 00 00 00
            0080  00 18 82 07 02 00 00 73
            0088  74 61 74 65 6b 65 79 31
            0096  32 32 7a 54 52 4e 48 49
            0104  4e 54 53 09 00 00 00 07
            0112  00 00 00 63 00 00 00 02
            0120  00 00 00 08 00 00 00 00
            0128  06 00 00 00 00 00 00 00
            0136  00 00 00 99 4a 8d 32 fc
            0144  70 38 f6
        "#]]
        .assert_eq(&golden::dump(&bytes));
    }

    #[test]
    fn a_footer_of_another_generation_is_not_valid() {
        let (bytes, _) = footer(&two_frames(), stamp(9));
        assert!(decoded(&bytes, stamp(9)).is_some());
        assert_eq!(decoded(&bytes, stamp(10)), None);
    }

    /// More groups than contexts are remembered, each of them several times.
    #[test]
    fn contexts_that_were_forgotten_are_told_again() {
        let groups = (0..CONTEXTS_MAX as u64 + 300).chain(0..500).chain(0..500);
        let records = groups.zip(1..).map(|(group, index)| written(RecordKind::Entry, 0, group, index, b""));
        let records: Vec<_> = records.collect();
        let frames: Vec<_> = records.chunks(1000).map(|frame| frame.to_vec()).collect();
        let (bytes, _) = footer(&frames, stamp(9));
        let found = decoded(&bytes, stamp(9)).unwrap();
        let found: Vec<_> = found.iter().flat_map(|frame| frame.hints().map(|hint| hint.header)).collect();
        assert_eq!(found, records.iter().map(|(header, _)| *header).collect::<Vec<_>>());
    }

    fn any_record() -> impl Strategy<Value = Written> {
        let key = prop::collection::vec(b'a'..b'd', 0..9);
        let number = prop_oneof![0..5_u64, any::<u64>().prop_map(|bits| bits >> (bits % 64))];
        (0..8_u8, key, number.clone(), number, any::<bool>(), 0..3000_usize).prop_map(
            |(kind, key, group, index, expires, length)| {
                let expires = expires.then_some(index ^ 0x55);
                let put = op::encode_put(&key, &vec![7; length], expires);
                match kind {
                    0 => written(RecordKind::State, 0, group, index, &key),
                    1 => written(RecordKind::Entry, 0, group, index, b""),
                    2 => written(RecordKind::Entry, ENTRY_OPS, group, index, b""),
                    3 => written(RecordKind::Entry, ENTRY_OPS, group, index, &op::encode_delete(&key)),
                    4 => written(RecordKind::Tombstone, 0, group, index, &op::encode_delete(&key)),
                    5 => written(RecordKind::Settled, 0, group, index, &put),
                    _ => written(RecordKind::Entry, ENTRY_OPS, group, index, &put),
                }
            },
        )
    }

    fn any_frames() -> impl Strategy<Value = Vec<Vec<Written>>> {
        prop::collection::vec(prop::collection::vec(any_record(), 0..20), 0..8)
    }

    proptest! {
        #[test]
        fn what_is_written_comes_back_without_the_values(frames in any_frames()) {
            let (bytes, headers) = footer(&frames, stamp(9));
            let found = decoded(&bytes, stamp(9)).unwrap();
            prop_assert_eq!(found.iter().map(|frame| frame.header).collect::<Vec<_>>(), headers);
            let mut offset = layout().unit_bytes;
            for (found, frame) in found.iter().zip(&frames) {
                prop_assert_eq!(found.offset, offset);
                offset += layout().frame_bytes(found.header.body_bytes);
                let expected: Vec<_> =
                    hints(frame).into_iter().map(|hint| Hint { payload: None, ..hint }).collect();
                prop_assert_eq!(found.hints().collect::<Vec<_>>(), expected);
            }
        }

        #[test]
        fn any_change_is_noticed(
            frames in any_frames(), at in any::<prop::sample::Index>(), flip in 1_u8..
        ) {
            let (mut bytes, _) = footer(&frames, stamp(9));
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            prop_assert_eq!(decoded(&bytes, stamp(9)), None);
        }

        /// As if the checksums were right.
        #[test]
        fn blocks_of_any_content_never_panic(
            frames in any_frames(), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)
        ) {
            let (bytes, _) = footer(&frames, stamp(9));
            let trailer = Trailer::decode(&bytes, stamp(9), &layout()).unwrap();
            let mut blocks = bytes[..trailer.block_bytes as usize].to_vec();
            for (at, byte) in changes {
                if !blocks.is_empty() {
                    let at = at.index(blocks.len());
                    blocks[at] = byte;
                }
            }
            let fits = |frame: FrameHints| {
                let end = frame.offset + layout().frame_bytes(frame.header.body_bytes);
                assert!(end <= layout().chunk_bytes && frame.hints().len() == frame.header.records as usize);
            };
            let _ = read(&trailer, &blocks, stamp(9).generation, &layout(), fits);
            let noise: Vec<u8> = blocks.iter().rev().copied().collect();
            let _ = read(&trailer, &noise, stamp(9).generation, &layout(), |_| ());
            prop_assert!(Trailer::decode(&noise, stamp(9), &layout()).is_none());
        }
    }

    /// `cargo test --release -p terrane-engine --lib footer::tests::what_packing -- --ignored --nocapture`: the numbers of
    /// docs/decisions/0010-hints.md.
    #[test]
    #[ignore = "a measurement"]
    fn what_packing_spares_and_costs() {
        let number =
            |index: u64| index.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31).wrapping_mul(0xd6e8_feb8);
        let user = |index| format!("user{:019}", number(index) >> 1).into_bytes();
        let random = |index| [number(index).to_le_bytes(), number(!index).to_le_bytes()].concat();
        let ordered = |index: u64| format!("user{index:019}").into_bytes();
        type Key<'a> = &'a dyn Fn(u64) -> Vec<u8>;
        let shapes =
            [("user + 19 digits", &user as Key<'_>), ("16 random bytes", &random), ("in order", &ordered)];
        for (name, key) in shapes {
            for block_bytes in [4 << 10, 16 << 10, BLOCK_BYTES - 2000] {
                let (mut builder, mut packer) = (FooterBuilder::default(), Packer::default());
                let mut blocks = Vec::new();
                let mut encoding = std::time::Duration::ZERO;
                const FRAMES: u64 = 2000;
                for flush in 1..=FRAMES {
                    let frame: Vec<_> = (flush * 64..flush * 64 + 64)
                        .map(|index| {
                            let payload = op::encode_put(&key(index), &[7; 1024], None);
                            written(RecordKind::Entry, ENTRY_OPS, 5, index, &payload)
                        })
                        .collect();
                    let hints = hints(&frame);
                    let header = FrameHeader {
                        generation: Generation::new(7, 9),
                        lsn_first: flush * 65,
                        flush,
                        frames: 1,
                        ordinal: 0,
                        records: 64,
                        body_bytes: 0,
                        term_max: 4,
                        number: flush,
                        body_crc: 0,
                    };
                    let before = std::time::Instant::now();
                    builder.frame(&header, hints, &mut packer);
                    encoding += before.elapsed();
                    if builder.numbers.len() + builder.keys.len() >= block_bytes {
                        blocks.push([&builder.numbers[..], &builder.keys[..]].concat());
                        builder.numbers.clear();
                        builder.keys.clear();
                    }
                }
                let count = (FRAMES * 64) as f64;
                let each = |took: std::time::Duration| took.as_nanos() as f64 / count;
                let raw: usize = blocks.iter().map(Vec::len).sum();
                eprintln!(
                    "{name}, blocks of {block_bytes}: {:.2} bytes, {:.0} ns",
                    raw as f64 / count,
                    each(encoding)
                );
                for level in [1, 3, 9] {
                    let mut compressor = zstd::bulk::Compressor::new(level).unwrap();
                    let before = std::time::Instant::now();
                    let packed: Vec<_> =
                        blocks.iter().map(|block| compressor.compress(block).unwrap()).collect();
                    let packing = before.elapsed();
                    let mut decompressor = zstd::bulk::Decompressor::new().unwrap();
                    let before = std::time::Instant::now();
                    for (packed, block) in packed.iter().zip(&blocks) {
                        assert_eq!(&decompressor.decompress(packed, block.len()).unwrap(), block);
                    }
                    let bytes: usize = packed.iter().map(Vec::len).sum();
                    eprintln!(
                        "    level {level}: {:.2} bytes, packed in {:.0} ns more, unpacked in {:.0} ns",
                        bytes as f64 / count,
                        each(packing),
                        each(before.elapsed())
                    );
                }
            }
        }
    }
}
