//! The bytes of a trace.

use std::io::{self, Read, Write};

use crate::geometry::{ChunkId, Geometry};
use crate::media::LifetimeClass;

const MAGIC: [u8; 8] = *b"TERRTRC\n";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 64;
const FRAME_HEADER_BYTES: usize = 20;

/// Payload at which a frame is written out, in bytes.
const FRAME_TARGET_BYTES: usize = 64 << 10;

/// The longest payload that is believed: a frame ends with the event that reaches the target.
const FRAME_BYTES_MAX: usize = FRAME_TARGET_BYTES + EVENT_BYTES_MAX;

/// Kind, class and three numbers of five bytes.
const EVENT_BYTES_MAX: usize = 2 + 3 * 5;

const KIND_WRITE: u8 = 1;
const KIND_RESET: u8 = 2;
const KIND_FINISH: u8 = 3;

/// Something that a medium did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Sectors were written.
    Write {
        /// Where.
        chunk: ChunkId,
        /// First sector within the chunk.
        sector: u32,
        /// How many.
        sectors: u32,
        /// The lifetime that was expected of the chunk's content.
        class: LifetimeClass,
    },
    /// A chunk was reset: its content is not needed any more.
    Reset {
        /// Which.
        chunk: ChunkId,
    },
    /// A chunk was closed before it was full.
    Finish {
        /// Which.
        chunk: ChunkId,
    },
}

impl Event {
    /// Sectors that it wrote: none but of a write.
    pub fn written_sectors(&self) -> u64 {
        match self {
            Self::Write { sectors, .. } => u64::from(*sectors),
            Self::Reset { .. } | Self::Finish { .. } => 0,
        }
    }
}

/// How a trace ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tail {
    /// The recording was ended in order.
    Ended,
    /// The recording stops within or after a frame: something later may be missing.
    CutOff {
        /// Bytes that make whole frames, the header included.
        whole_bytes: u64,
    },
}

/// Why a trace cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TraceError {
    /// The file could not be read.
    #[error("the trace cannot be read")]
    Io(#[from] io::Error),
    /// It does not begin as a trace does.
    #[error("this is not a trace")]
    NotATrace,
    /// A later version wrote it.
    #[error("the trace has format {version}, this program knows {VERSION}")]
    Newer {
        /// The version it has.
        version: u32,
    },
    /// Its bytes were changed.
    #[error("the trace is damaged at byte {at}: {reason}")]
    Damaged {
        /// Where the header, frame or event begins.
        at: u64,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// A recorded trace, in memory: 20 bytes an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    /// The medium's shape.
    pub geometry: Geometry,
    /// What it did, in the order of completion.
    pub events: Vec<Event>,
    /// Whether that is all.
    pub tail: Tail,
}

impl Trace {
    /// Reads a trace to its end. A header cut short is damage, for then there is nothing to tell.
    pub fn read(mut input: impl Read) -> Result<Self, TraceError> {
        let mut bytes = Vec::new();
        input.read_to_end(&mut bytes)?;
        Self::decode(&bytes)
    }

    /// Sectors that it writes.
    pub fn written_sectors(&self) -> u64 {
        self.events.iter().map(Event::written_sectors).sum()
    }

    /// Bytes that it writes: what the medium counted while it was recorded.
    pub fn written_bytes(&self) -> u64 {
        self.written_sectors() * u64::from(self.geometry.sector_bytes)
    }

    fn decode(bytes: &[u8]) -> Result<Self, TraceError> {
        let geometry = decode_header(bytes)?;
        let mut trace = Self { geometry, events: Vec::new(), tail: Tail::Ended };
        let mut at = HEADER_BYTES;
        for sequence in 0.. {
            let rest = &bytes[at..];
            let damaged = |reason| TraceError::Damaged { at: at as u64, reason };
            let cut_off = Tail::CutOff { whole_bytes: at as u64 };
            let Some((header, rest)) = rest.split_first_chunk::<FRAME_HEADER_BYTES>() else {
                trace.tail = cut_off;
                break;
            };
            let field = |index: usize| u32_at(header, 4 * index);
            if crc32c::crc32c(&header[..16]) != field(4) {
                return Err(damaged("the checksum of a frame's header does not match"));
            }
            let (length, events) = (field(0) as usize, field(1));
            if length > FRAME_BYTES_MAX || field(2) != sequence {
                return Err(damaged("a frame is out of place"));
            }
            if length == 0 {
                if events != 0 || field(3) != 0 || !rest.is_empty() {
                    return Err(damaged("the trace goes on behind its end"));
                }
                break;
            }
            let Some((payload, _)) = rest.split_at_checked(length) else {
                trace.tail = cut_off;
                break;
            };
            if crc32c::crc32c(payload) != field(3) {
                return Err(damaged("the checksum of a frame does not match"));
            }
            at += FRAME_HEADER_BYTES;
            trace.decode_events(payload, at, events)?;
            at += length;
        }
        Ok(trace)
    }

    fn decode_events(&mut self, payload: &[u8], at: usize, count: u32) -> Result<(), TraceError> {
        let mut rest = payload;
        for _ in 0..count {
            let place = at + payload.len() - rest.len();
            let event = decode_event(&mut rest, &self.geometry)
                .map_err(|reason| TraceError::Damaged { at: place as u64, reason })?;
            self.events.push(event);
        }
        if !rest.is_empty() {
            return Err(TraceError::Damaged { at: at as u64, reason: "a frame holds more than its events" });
        }
        Ok(())
    }
}

fn decode_header(bytes: &[u8]) -> Result<Geometry, TraceError> {
    let damaged = |reason| TraceError::Damaged { at: 0, reason };
    if !bytes.starts_with(&MAGIC) {
        return Err(TraceError::NotATrace);
    }
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Err(damaged("the header is cut short"));
    };
    if crc32c::crc32c(&header[..60]) != u32_at(header, 60) {
        return Err(damaged("the checksum of the header does not match"));
    }
    let version = u32_at(header, 8);
    if version > VERSION {
        return Err(TraceError::Newer { version });
    }
    if version == 0 || u32_at(header, 12) as usize != HEADER_BYTES || header[52..60] != [0; 8] {
        return Err(damaged("the header's fields do not fit"));
    }
    let field = |index: usize| u32_at(header, 16 + 4 * index);
    let geometry = Geometry {
        groups: field(0),
        parallel_units: field(1),
        chunks: field(2),
        chunk_sectors: field(3),
        sector_bytes: field(4),
        ws_min: field(5),
        ws_opt: field(6),
        mw_cunits: field(7),
        max_open: field(8),
    };
    let units = geometry.groups.checked_mul(geometry.parallel_units);
    let chunks = units.and_then(|units| units.checked_mul(geometry.chunks));
    let bytes = u64::from(geometry.chunk_sectors) * u64::from(geometry.sector_bytes);
    match chunks.and_then(|chunks| u64::from(chunks).checked_mul(bytes)) {
        None | Some(0) => Err(damaged("the geometry makes no sense")),
        Some(_) => Ok(geometry),
    }
}

fn encode_header(geometry: &Geometry) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[..8].copy_from_slice(&MAGIC);
    let fields = [
        VERSION,
        HEADER_BYTES as u32,
        geometry.groups,
        geometry.parallel_units,
        geometry.chunks,
        geometry.chunk_sectors,
        geometry.sector_bytes,
        geometry.ws_min,
        geometry.ws_opt,
        geometry.mw_cunits,
        geometry.max_open,
    ];
    for (place, field) in header[8..].chunks_exact_mut(4).zip(fields) {
        place.copy_from_slice(&field.to_le_bytes());
    }
    let checksum = crc32c::crc32c(&header[..60]);
    header[60..].copy_from_slice(&checksum.to_le_bytes());
    header
}

fn decode_event(bytes: &mut &[u8], geometry: &Geometry) -> Result<Event, &'static str> {
    const SHORT: &str = "an event is cut short";
    let (kind, rest) = bytes.split_first().ok_or(SHORT)?;
    *bytes = rest;
    let mut class = LifetimeClass::default();
    if *kind == KIND_WRITE {
        let (number, rest) = bytes.split_first().ok_or(SHORT)?;
        *bytes = rest;
        class = LifetimeClass(*number);
    }
    let chunk = ChunkId(decode_number(bytes)?);
    if chunk.0 >= geometry.chunk_count() {
        return Err("an event is of no chunk");
    }
    match *kind {
        KIND_WRITE => {
            let (sector, sectors) = (decode_number(bytes)?, decode_number(bytes)?);
            let end = sector.checked_add(sectors);
            if sectors == 0 || end.is_none_or(|end| end > geometry.chunk_sectors) {
                return Err("a write is of no sectors of its chunk");
            }
            Ok(Event::Write { chunk, sector, sectors, class })
        }
        KIND_RESET => Ok(Event::Reset { chunk }),
        KIND_FINISH => Ok(Event::Finish { chunk }),
        _ => Err("an event is of no known kind"),
    }
}

fn encode_event(event: &Event, out: &mut Vec<u8>) {
    match *event {
        Event::Write { chunk, sector, sectors, class } => {
            out.extend([KIND_WRITE, class.0]);
            [chunk.0, sector, sectors].into_iter().for_each(|number| encode_number(number, out));
        }
        Event::Reset { chunk } => {
            out.push(KIND_RESET);
            encode_number(chunk.0, out);
        }
        Event::Finish { chunk } => {
            out.push(KIND_FINISH);
            encode_number(chunk.0, out);
        }
    }
}

/// LEB128: seven bits a byte, the lowest first.
fn encode_number(mut number: u32, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn decode_number(bytes: &mut &[u8]) -> Result<u32, &'static str> {
    let mut number = 0u64;
    for (index, byte) in bytes.iter().take(5).enumerate() {
        number |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 != 0 {
            continue;
        }
        if *byte == 0 && index > 0 {
            return Err("a number is not minimal");
        }
        *bytes = &bytes[index + 1..];
        return u32::try_from(number).map_err(|_| "a number is too large");
    }
    Err("a number has no end")
}

fn u32_at<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    let mut field = [0; 4];
    field.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(field)
}

/// Writes a trace, a frame at a time.
pub struct TraceWriter<W: Write> {
    sink: W,
    payload: Vec<u8>,
    events: u32,
    sequence: u32,
}

impl<W: Write> TraceWriter<W> {
    /// Begins a trace of a medium of this shape.
    pub fn new(mut sink: W, geometry: &Geometry) -> io::Result<Self> {
        sink.write_all(&encode_header(geometry))?;
        Ok(Self { sink, payload: Vec::with_capacity(FRAME_BYTES_MAX), events: 0, sequence: 0 })
    }

    /// Adds an event. It is in memory until its frame is full.
    pub fn push(&mut self, event: &Event) -> io::Result<()> {
        encode_event(event, &mut self.payload);
        self.events += 1;
        if self.payload.len() >= FRAME_TARGET_BYTES { self.write_frame() } else { Ok(()) }
    }

    /// Ends the trace and returns the sink, flushed. A writer that is dropped instead leaves a trace that is told as
    /// cut off.
    pub fn end(mut self) -> io::Result<W> {
        if self.events > 0 {
            self.write_frame()?;
        }
        self.write_frame()?;
        self.sink.flush()?;
        Ok(self.sink)
    }

    fn write_frame(&mut self) -> io::Result<()> {
        let mut header = [0; FRAME_HEADER_BYTES];
        let checksum = crc32c::crc32c(&self.payload);
        let fields = [self.payload.len() as u32, self.events, self.sequence, checksum];
        for (place, field) in header.chunks_exact_mut(4).zip(fields) {
            place.copy_from_slice(&field.to_le_bytes());
        }
        let checksum = crc32c::crc32c(&header[..16]);
        header[16..].copy_from_slice(&checksum.to_le_bytes());
        self.sink.write_all(&header)?;
        self.sink.write_all(&self.payload)?;
        self.payload.clear();
        self.events = 0;
        self.sequence += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
