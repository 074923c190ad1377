//! Finding the frames of a slice: which chunks hold segments, and every valid frame in them; or what the footer of a sealed
//! segment says of them ([`crate::footer`]).
//!
//! A chunk is never believed for being written: a conventional device reports all of them as full, and shows what an
//! earlier use left behind. Only a frame whose checksums fit its segment's generation exists.
//!
//! Invariant: the frames of a segment are found in the order in which they were written,
//! and a bad frame hides only itself: the search goes on at the next smallest write. A chunk of which so much is
//! unreadable that nothing says whether it held log is handed over as lost, never passed over.

use terrane_ocssd::{AlignedBuf, ChunkId, ChunkInfo, ChunkState, Media, MediaError};

use crate::anchor;
use crate::footer::{self, FrameHints, Trailer};
use crate::frame::{self, FrameHeader};
use crate::pipeline::Pipeline;
use crate::record::Record;
use crate::segment::{Generation, SegmentHeader, Stamp};
use crate::slice::{LOG_CHUNK_FIRST, Layout, SliceId};

/// Bytes of one read while segments are scanned.
const PIECE_BYTES: u32 = 1 << 20;
/// Pieces are whole smallest writes, so that a frame's padding is read with its records.
fn piece_bytes(layout: &Layout) -> u32 {
    (PIECE_BYTES / layout.unit_bytes).max(1) * layout.unit_bytes
}

/// Reads under way at once.
const READS_AT_ONCE: usize = 8;

/// Bytes of footers that are read at once, but for one that is longer.
const FOOTER_BYTES_AT_ONCE: u32 = 16 << 20;

/// A chunk that holds (or held) log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FoundSegment {
    pub(crate) generation: Generation,
    pub(crate) chunk: u32,
    /// Bytes that may be read.
    pub(crate) readable: u32,
    /// Stream and birth, as its header says them; zeros if that cannot be read.
    pub(crate) stream: u32,
    pub(crate) born: u64,
}

/// What a scan meets, in order.
pub(crate) enum Met<'a> {
    /// A valid frame.
    Frame(MetFrame<'a>),
    /// A frame that a valid footer names.
    Hinted { segment: FoundSegment, frame: FrameHints },
    /// A valid header whose records are not all there, and its bytes from the start of the chunk. It proves that its flush
    /// had begun.
    Torn { segment: FoundSegment, offset: u32, header: FrameHeader },
    /// The device does not give this smallest write back.
    Unreadable { segment: FoundSegment, offset: u32 },
}

/// A valid frame and where it stands.
#[derive(Clone, Copy)]
pub(crate) struct MetFrame<'a> {
    pub(crate) segment: FoundSegment,
    /// Bytes from the start of the chunk to the header.
    pub(crate) offset: u32,
    pub(crate) header: FrameHeader,
    /// The records' bytes.
    pub(crate) body: &'a [u8],
    /// The records, each with its offset in the body.
    pub(crate) records: &'a [(u32, Record<'a>)],
}

/// Bytes, and the offsets (in the chunk) of the parts that could not be read and are zeros.
struct Piece {
    bytes: AlignedBuf,
    unreadable: Vec<u32>,
}

/// Reads a part of a chunk. What fails as a whole is read again in smallest writes, so that one bad sector hides no
/// other.
async fn read_piece<M: Media>(
    media: &M,
    layout: &Layout,
    chunk: u32,
    offset: u32,
    bytes: u32,
) -> Result<Piece, MediaError> {
    let at = |offset| (ChunkId(chunk), layout.sector_of(offset));
    let (whole_chunk, whole_sector) = at(offset);
    match media.read(whole_chunk, whole_sector, AlignedBuf::zeroed(bytes as usize)).await {
        (Ok(()), bytes) => return Ok(Piece { bytes, unreadable: Vec::new() }),
        (Err(error), _) if error.is_bad_content() => {}
        (Err(error), _) => return Err(error),
    }
    let mut piece = Piece { bytes: AlignedBuf::zeroed(bytes as usize), unreadable: Vec::new() };
    let mut unit = AlignedBuf::zeroed(layout.unit_bytes as usize);
    for start in (0..bytes).step_by(layout.unit_bytes as usize) {
        let (chunk, sector) = at(offset + start);
        let (result, buf) = media.read(chunk, sector, unit).await;
        unit = buf;
        match result {
            Ok(()) => {
                let range = start as usize..(start + layout.unit_bytes) as usize;
                piece.bytes[range].copy_from_slice(&unit);
            }
            Err(error) if error.is_bad_content() => piece.unreadable.push(offset + start),
            Err(error) => return Err(error),
        }
    }
    Ok(piece)
}

/// What a slice's chunks turned out to hold.
pub(crate) struct FoundChunks {
    /// By generation.
    pub(crate) segments: Vec<FoundSegment>,
    /// Chunk and offset of every smallest write that cannot be read in a chunk that names no segment. It may have held
    /// one. A chunk that is offline is named once.
    pub(crate) lost: Vec<(u32, u32)>,
    pub(crate) bytes_read: u64,
}

/// Tells the chunks that hold segments from the others.
///
/// `counts` says whether frames of an epoch can count at all.
pub(crate) async fn find_segments<M: Media>(
    media: &M,
    layout: &Layout,
    slice: SliceId,
    report: &[ChunkInfo],
    counts: impl Fn(u32) -> bool,
) -> Result<FoundChunks, MediaError> {
    let offline = report[LOG_CHUNK_FIRST as usize..].iter().filter(|info| info.state == ChunkState::Offline);
    let mut lost: Vec<_> = offline.map(|info| (info.id.0, 0)).collect();
    let mut segments = Vec::new();
    let mut bytes_read = 0;
    let mut chunks = report[LOG_CHUNK_FIRST as usize..].iter().filter_map(|info| {
        let readable = anchor::readable_bytes(layout, info.state, info.write_pointer);
        let readable = readable / layout.unit_bytes * layout.unit_bytes;
        (readable > layout.unit_bytes).then_some((info.id.0, readable))
    });
    let mut pipeline = Pipeline::new();
    loop {
        while pipeline.len() < 4 * READS_AT_ONCE
            && let Some((chunk, readable)) = chunks.next()
        {
            // The header, and the first frame's header in case the former is damaged.
            let bytes = 2 * layout.unit_bytes;
            pipeline.push(async move {
                read_piece(media, layout, chunk, 0, bytes).await.map(|piece| (chunk, readable, piece))
            });
        }
        let Some(probe) = pipeline.next().await else { break };
        let (chunk, readable, piece) = probe?;
        bytes_read += piece.bytes.len() as u64;
        let (mut stream, mut born) = (0, 0);
        let generation = match SegmentHeader::decode(&piece.bytes) {
            Some(header) if header.slice == slice && header.chunk == chunk => {
                (stream, born) = (header.stream, header.born);
                Some(header.generation)
            }
            Some(_) => None,
            None if piece.unreadable.is_empty() && piece.bytes.iter().all(|byte| *byte == 0) => None,
            // Torn or damaged: only frames can tell.
            None => {
                bytes_read += u64::from(readable);
                let (newest, unreadable) =
                    newest_generation(media, layout, slice, (chunk, readable), &counts).await?;
                if newest.is_none() {
                    lost.extend(unreadable.into_iter().map(|offset| (chunk, offset)));
                }
                newest
            }
        };
        let found = |generation| FoundSegment { generation, chunk, readable, stream, born };
        segments.extend(generation.map(found));
    }
    segments.sort_unstable();
    Ok(FoundChunks { segments, lost, bytes_read })
}

/// The newest generation that any frame header in the chunk names, and the offsets of what cannot be read.
async fn newest_generation<M: Media>(
    media: &M,
    layout: &Layout,
    slice: SliceId,
    (chunk, readable): (u32, u32),
    counts: &impl Fn(u32) -> bool,
) -> Result<(Option<Generation>, Vec<u32>), MediaError> {
    let mut newest = None;
    let mut unreadable = Vec::new();
    let mut offset = 0;
    while offset < readable {
        let piece =
            read_piece(media, layout, chunk, offset, piece_bytes(layout).min(readable - offset)).await?;
        for unit in piece.bytes.chunks(layout.unit_bytes as usize) {
            let claimed = FrameHeader::claimed_generation(unit, slice);
            newest = newest.max(claimed.filter(|claimed| counts(claimed.epoch())));
        }
        offset += piece.bytes.len() as u32;
        unreadable.extend(piece.unreadable);
    }
    Ok((newest, unreadable))
}

/// What reading the segments came to.
#[derive(Debug, Default)]
pub(crate) struct ReadSegments {
    pub(crate) bytes_read: u64,
    /// Segments that were known by their footers, in number.
    pub(crate) hinted: u64,
    /// A footer whose checksums hold makes no sense. What was met is not to be used.
    pub(crate) nonsense: bool,
}

/// Hands over what the segments hold: as their footers say if they have valid ones and `footers` are to be used, else as
/// a scan finds it.
pub(crate) async fn read_segments<M: Media>(
    media: &M,
    layout: &Layout,
    slice: SliceId,
    segments: &[FoundSegment],
    footers: bool,
    mut meet: impl FnMut(Met<'_>),
) -> Result<ReadSegments, MediaError> {
    let mut read = ReadSegments::default();
    let trailers = match footers {
        true => find_trailers(media, layout, slice, segments, &mut read).await?,
        false => vec![None; segments.len()],
    };
    let known = || segments.iter().copied().zip(&trailers);
    // What is scanned comes first: the newest states are there, and say of most other entries that they are committed, so
    // that these need not wait for it.
    let without = known().filter(|(_, trailer)| trailer.is_none()).map(|(segment, _)| segment);
    read.bytes_read += scan_segments(media, layout, slice, &without.collect::<Vec<_>>(), &mut meet).await?;
    let mut hinted = known().filter_map(|(segment, trailer)| Some((segment, (*trailer)?)));
    let mut rotten = Vec::new();
    let mut pipeline = Pipeline::new();
    let mut bytes_under_way = 0;
    loop {
        while (pipeline.len() == 0 || bytes_under_way < FOOTER_BYTES_AT_ONCE)
            && pipeline.len() < READS_AT_ONCE
            && let Some((segment, trailer)) = hinted.next()
        {
            let bytes = layout.footer_bytes(trailer.block_bytes);
            bytes_under_way += bytes;
            pipeline.push(async move {
                let piece = read_piece(media, layout, segment.chunk, layout.chunk_bytes - bytes, bytes).await;
                piece.map(|piece| (segment, trailer, piece.bytes))
            });
        }
        let Some(result) = pipeline.next().await else { break };
        let (segment, trailer, bytes) = result?;
        bytes_under_way -= bytes.len() as u32;
        read.bytes_read += bytes.len() as u64;
        let stamp = Stamp::new(slice, segment.generation);
        let end = bytes.len() - footer::TRAILER_BYTES as usize;
        let blocks = &bytes[end - trailer.block_bytes as usize..end];
        if !trailer.covers(blocks, stamp) {
            rotten.push(segment);
            continue;
        }
        let said = footer::read(&trailer, blocks, segment.generation, layout, |frame| {
            meet(Met::Hinted { segment, frame });
        });
        if said.is_none() {
            tracing::warn!(chunk = segment.chunk, "a footer makes no sense");
            read.nonsense = true;
            return Ok(read);
        }
        read.hinted += 1;
    }
    read.bytes_read += scan_segments(media, layout, slice, &rotten, &mut meet).await?;
    Ok(read)
}

/// The trailers of the segments' footers, where they have valid ones.
async fn find_trailers<M: Media>(
    media: &M,
    layout: &Layout,
    slice: SliceId,
    segments: &[FoundSegment],
    read: &mut ReadSegments,
) -> Result<Vec<Option<Trailer>>, MediaError> {
    let mut trailers = Vec::with_capacity(segments.len());
    let mut rest = segments.iter();
    let mut pipeline = Pipeline::new();
    loop {
        while pipeline.len() < 4 * READS_AT_ONCE
            && let Some(segment) = rest.next()
        {
            let unit = layout.unit_bytes.max(layout.round_up(footer::TRAILER_BYTES));
            pipeline.push(async move {
                // It ends where the chunk does.
                if segment.readable < layout.chunk_bytes {
                    return Ok((segment, None));
                }
                let piece = read_piece(media, layout, segment.chunk, layout.chunk_bytes - unit, unit).await?;
                Ok::<_, MediaError>((segment, Some(piece.bytes)))
            });
        }
        let Some(result) = pipeline.next().await else { return Ok(trailers) };
        let (segment, bytes) = result?;
        read.bytes_read += bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
        let stamp = Stamp::new(slice, segment.generation);
        trailers.push(bytes.and_then(|bytes| Trailer::decode(&bytes, stamp, layout)));
    }
}

/// A frame that was looked up.
pub(crate) enum LookedUp {
    /// It is as it was to be: its header, and its records' bytes.
    Whole(FrameHeader, Vec<u8>),
    Broken,
    /// The device does not give all of it back.
    Unreadable,
}

/// Looks up a frame that a footer names.
pub(crate) async fn look_up<M: Media>(
    media: &M,
    layout: &Layout,
    stamp: Stamp,
    chunk: u32,
    frame: &FrameHints,
) -> Result<LookedUp, MediaError> {
    let expected = &frame.header;
    let bytes = layout.frame_bytes(expected.body_bytes);
    let piece = read_piece(media, layout, chunk, frame.offset, bytes).await?;
    if !piece.unreadable.is_empty() {
        return Ok(LookedUp::Unreadable);
    }
    let found = FrameHeader::decode(&piece.bytes, stamp).filter(|found| {
        let FrameHeader { body_crc, .. } = *found;
        *found == FrameHeader { body_crc, ..*expected }
    });
    let Some(header) = found else { return Ok(LookedUp::Broken) };
    let body = &piece.bytes[frame::HEADER_BYTES..];
    Ok(match frame::decode_body(&header, stamp, body) {
        Some(_) => LookedUp::Whole(header, body[..header.body_bytes as usize].to_vec()),
        None => LookedUp::Broken,
    })
}

/// Reads the segments in order and hands over what they hold. Returns the bytes read.
pub(crate) async fn scan_segments<M: Media>(
    media: &M,
    layout: &Layout,
    slice: SliceId,
    segments: &[FoundSegment],
    mut meet: impl FnMut(Met<'_>),
) -> Result<u64, MediaError> {
    let piece_bytes = piece_bytes(layout);
    let mut parts = segments.iter().flat_map(|segment| {
        let starts = (0..segment.readable).step_by(piece_bytes as usize);
        starts.map(move |offset| (*segment, offset, piece_bytes.min(segment.readable - offset)))
    });
    let mut pipeline = Pipeline::new();
    let mut walk: Option<Walk> = None;
    let mut bytes_read = 0;
    loop {
        while pipeline.len() < READS_AT_ONCE
            && let Some((segment, offset, bytes)) = parts.next()
        {
            pipeline.push(async move {
                let piece = read_piece(media, layout, segment.chunk, offset, bytes).await;
                piece.map(|piece| (segment, offset, piece))
            });
        }
        let Some(read) = pipeline.next().await else { return Ok(bytes_read) };
        let (segment, offset, piece) = read?;
        bytes_read += piece.bytes.len() as u64;
        if offset == 0 {
            walk = Some(Walk::new(slice, segment));
        }
        let current = walk.as_mut().expect("the first piece of a segment starts its walk");
        current.add(piece, layout, &mut meet);
    }
}

/// The walk along one segment.
pub(crate) struct Walk {
    segment: FoundSegment,
    stamp: Stamp,
    /// Bytes from `at` on, as far as they were read.
    window: Vec<u8>,
    /// Bytes from the start of the chunk; a multiple of the smallest write.
    at: u32,
    /// Bytes from the start of the chunk to what was not read yet.
    read: u32,
}

impl Walk {
    pub(crate) fn new(slice: SliceId, segment: FoundSegment) -> Self {
        let stamp = Stamp::new(slice, segment.generation);
        Self { segment, stamp, window: Vec::new(), at: 0, read: 0 }
    }

    /// Reads the next piece, and meets every frame that ends in it. False at the end of the segment.
    pub(crate) async fn step<M: Media>(
        &mut self,
        media: &M,
        layout: &Layout,
        mut meet: impl FnMut(Met<'_>),
    ) -> Result<bool, MediaError> {
        if self.read >= self.segment.readable {
            return Ok(false);
        }
        let bytes = piece_bytes(layout).min(self.segment.readable - self.read);
        let piece = read_piece(media, layout, self.segment.chunk, self.read, bytes).await?;
        self.add(piece, layout, &mut meet);
        Ok(true)
    }

    fn add(&mut self, piece: Piece, layout: &Layout, meet: &mut impl FnMut(Met<'_>)) {
        for unreadable in piece.unreadable {
            meet(Met::Unreadable { segment: self.segment, offset: unreadable });
        }
        self.read += piece.bytes.len() as u32;
        self.window.extend_from_slice(&piece.bytes);
        let last = self.read >= self.segment.readable;
        self.advance(layout, last, meet);
    }

    /// Meets every frame that lies wholly in the window; with `last`, no more bytes will come.
    fn advance(&mut self, layout: &Layout, last: bool, meet: &mut impl FnMut(Met<'_>)) {
        let unit = layout.unit_bytes as usize;
        let mut from = 0;
        while self.window.len() - from >= unit {
            let rest = &self.window[from..];
            let offset = self.at + from as u32;
            let header = FrameHeader::decode(rest, self.stamp).filter(|header| {
                header.body_bytes <= layout.chunk_bytes - offset - frame::HEADER_BYTES as u32
            });
            let Some(header) = header else {
                from += unit;
                continue;
            };
            let body = &rest[frame::HEADER_BYTES..];
            if body.len() < header.body_bytes as usize && !last {
                break;
            }
            let Some(records) = frame::decode_body(&header, self.stamp, body) else {
                meet(Met::Torn { segment: self.segment, offset, header });
                from += unit;
                continue;
            };
            let body = &body[..header.body_bytes as usize];
            meet(Met::Frame(MetFrame { segment: self.segment, offset, header, body, records: &records }));
            from += layout.frame_bytes(header.body_bytes) as usize;
        }
        self.window.drain(..from);
        self.at += from as u32;
    }
}
