//! What an emulated device keeps in its file besides data: header, state, and a record of each chunk. The layouts are in
//! `docs/format.md`, section "Emulated Open-Channel device (file)".
//!
//! Invariants:
//! - Each block ends with the CRC-32C of what is before it.
//! - A record says how much of its chunk the storage has, never what was merely accepted.
//! - Magic, version, length and checksum of the header keep their places in every later version.

use std::time::Duration;

use super::address::AddressFormat;
use super::chunk::{Chunk, Stop};
use super::descriptor::{ChunkDescriptor, DESCRIPTOR_BYTES};
use super::options::{Endurance, FlashOptions, WearOdds};
use super::timing::NandTiming;
use super::wear;
use crate::geometry::Geometry;
use crate::media::ChunkState;

/// The newest format this program reads, and the one it writes.
pub const IMAGE_VERSION: u32 = 1;

pub(super) const MAGIC: [u8; 8] = *b"TRNFLASH";
pub(super) const HEADER_BYTES: usize = 256;
pub(super) const STATE_BYTES: usize = 64;
pub(super) const RECORD_BYTES: usize = 64;

const FLAG_WRITE_FAILED: u8 = 1;
const FLAG_CLOSED_EARLY: u8 = 1 << 1;

// The descriptor comes first in a record, and leaves room for what the device knows beyond it.
const _: () = assert!(DESCRIPTOR_BYTES + 4 + 1 + 4 <= RECORD_BYTES);

/// Why a header is of no use.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeaderError {
    NotOurs,
    Newer { version: u32 },
    Damaged(&'static str),
}

/// What belongs to the device as a whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct DeviceState {
    /// Times the file was opened, so that no two openings draw the same chances.
    pub(super) openings: u64,
    /// Notifications ever made.
    pub(super) notifications: u64,
}

/// Fields one after the other, in a block that ends with its checksum.
struct Fields<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl Fields<'_> {
    fn put(&mut self, field: &[u8]) {
        self.bytes[self.at..self.at + field.len()].copy_from_slice(field);
        self.at += field.len();
    }
}

/// The same, read.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let field = self.bytes[self.at..self.at + N].try_into().expect("the block holds all fields");
        self.at += N;
        field
    }

    fn u8(&mut self) -> u8 {
        let [byte] = self.take();
        byte
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    fn f64(&mut self) -> f64 {
        f64::from_bits(self.u64())
    }
}

fn seal(bytes: &mut [u8]) {
    let (body, checksum) = bytes.split_at_mut(bytes.len() - 4);
    checksum.copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
}

fn is_sealed(bytes: &[u8]) -> bool {
    let (body, checksum) = bytes.split_at(bytes.len() - 4);
    checksum == crc32c::crc32c(body).to_le_bytes()
}

pub(super) fn encode_header(options: &FlashOptions) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    let mut fields = Fields { bytes: &mut bytes, at: 0 };
    fields.put(&MAGIC);
    fields.put(&IMAGE_VERSION.to_le_bytes());
    fields.put(&(HEADER_BYTES as u32).to_le_bytes());
    let shape = &options.geometry;
    for size in [
        shape.groups,
        shape.parallel_units,
        shape.chunks,
        shape.chunk_sectors,
        shape.sector_bytes,
        shape.ws_min,
        shape.ws_opt,
        shape.mw_cunits,
        shape.max_open,
        options.max_open_per_unit,
        options.page_sectors,
        options.ecc_page_reads,
        options.endurance.erases_mean,
        options.yields_max,
    ] {
        fields.put(&size.to_le_bytes());
    }
    fields.put(&options.seed.to_le_bytes());
    let endurance = &options.endurance;
    for share in [
        options.bad_at_birth,
        endurance.variation,
        endurance.program_failure.fresh,
        endurance.program_failure.worn,
        endurance.early_close.fresh,
        endurance.early_close.worn,
    ] {
        fields.put(&share.to_bits().to_le_bytes());
    }
    let flags = [options.reset_free, options.reset_open, options.protected_buffer, options.timing.is_some()];
    fields.put(&flags.map(u8::from));
    fields.put(&[options.wear_threshold, 0, 0, 0]);
    if let Some(timing) = &options.timing {
        for time in [timing.read_page, timing.program_page, timing.erase] {
            fields.put(&(time.as_nanos() as u64).to_le_bytes());
        }
        fields.put(&timing.channel_bytes_per_s.to_le_bytes());
        fields.put(&timing.planes.to_le_bytes());
    }
    seal(&mut bytes);
    bytes
}

/// The options in a header that begins with our magic.
pub(super) fn decode_header(bytes: &[u8; HEADER_BYTES]) -> Result<FlashOptions, HeaderError> {
    let mut reader = Reader { bytes, at: 0 };
    if reader.take() != MAGIC {
        return Err(HeaderError::NotOurs);
    }
    let version = reader.u32();
    let length = reader.u32();
    // A newer header may be longer, so its checksum is not ours to judge.
    if version > IMAGE_VERSION {
        return Err(HeaderError::Newer { version });
    }
    if !is_sealed(bytes) {
        return Err(HeaderError::Damaged("the header has a bad checksum"));
    }
    if version != IMAGE_VERSION || length as usize != HEADER_BYTES {
        return Err(HeaderError::Damaged(
            "the header has another version or length than any that was written",
        ));
    }
    let geometry = Geometry {
        groups: reader.u32(),
        parallel_units: reader.u32(),
        chunks: reader.u32(),
        chunk_sectors: reader.u32(),
        sector_bytes: reader.u32(),
        ws_min: reader.u32(),
        ws_opt: reader.u32(),
        mw_cunits: reader.u32(),
        max_open: reader.u32(),
    };
    let max_open_per_unit = reader.u32();
    let page_sectors = reader.u32();
    let ecc_page_reads = reader.u32();
    let erases_mean = reader.u32();
    let yields_max = reader.u32();
    let seed = reader.u64();
    let bad_at_birth = reader.f64();
    let variation = reader.f64();
    let program_failure = WearOdds { fresh: reader.f64(), worn: reader.f64() };
    let early_close = WearOdds { fresh: reader.f64(), worn: reader.f64() };
    let [reset_free, reset_open, protected_buffer, timed] = reader.take::<4>().map(|flag| flag != 0);
    let [wear_threshold, ..] = reader.take::<4>();
    let timing = timed.then(|| {
        let mut time = || Duration::from_nanos(reader.u64());
        let (read_page, program_page, erase) = (time(), time(), time());
        NandTiming { read_page, program_page, erase, channel_bytes_per_s: reader.u64(), planes: reader.u32() }
    });
    Ok(FlashOptions {
        geometry,
        max_open_per_unit,
        seed,
        bad_at_birth,
        endurance: Endurance { erases_mean, variation, program_failure, early_close },
        ecc_page_reads,
        wear_threshold,
        reset_free,
        reset_open,
        protected_buffer,
        page_sectors,
        timing,
        yields_max,
    })
}

pub(super) fn encode_state(state: &DeviceState) -> [u8; STATE_BYTES] {
    let mut bytes = [0; STATE_BYTES];
    let mut fields = Fields { bytes: &mut bytes, at: 0 };
    fields.put(&state.openings.to_le_bytes());
    fields.put(&state.notifications.to_le_bytes());
    seal(&mut bytes);
    bytes
}

pub(super) fn decode_state(bytes: &[u8; STATE_BYTES]) -> Option<DeviceState> {
    let mut reader = Reader { bytes, at: 0 };
    is_sealed(bytes).then(|| DeviceState { openings: reader.u64(), notifications: reader.u64() })
}

/// The chunk as the storage has it, which may be less than was accepted.
pub(super) fn encode_record(
    options: &FlashOptions,
    format: &AddressFormat,
    index: u32,
    chunk: &Chunk,
) -> [u8; RECORD_BYTES] {
    let landed = chunk.landed();
    let state = match (chunk.state, landed) {
        (ChunkState::Offline, _) => ChunkState::Offline,
        _ if chunk.stop.is_some() => ChunkState::Closed,
        (_, 0) => ChunkState::Free,
        (_, landed) if landed == options.geometry.chunk_sectors => ChunkState::Closed,
        _ => ChunkState::Open,
    };
    let descriptor = ChunkDescriptor {
        state,
        wear_index: wear::wear_index(chunk.erases, options.endurance.erases_mean),
        start: format.pack(format.chunk_place(index)),
        sectors: options.geometry.chunk_sectors.into(),
        write_pointer: (state != ChunkState::Offline).then_some(landed.into()),
    };
    let flags = match chunk.stop {
        None => 0,
        Some(Stop::WriteFailed) => FLAG_WRITE_FAILED,
        Some(Stop::ClosedEarly) => FLAG_CLOSED_EARLY,
    };
    let mut bytes = [0; RECORD_BYTES];
    let mut fields = Fields { bytes: &mut bytes, at: 0 };
    fields.put(&descriptor.encode());
    fields.put(&chunk.erases.to_le_bytes());
    fields.put(&[flags]);
    seal(&mut bytes);
    bytes
}

pub(super) fn decode_record(
    options: &FlashOptions,
    format: &AddressFormat,
    index: u32,
    bytes: &[u8; RECORD_BYTES],
) -> Result<Chunk, &'static str> {
    if !is_sealed(bytes) {
        return Err("has a bad checksum");
    }
    let mut reader = Reader { bytes, at: 0 };
    let descriptor: [u8; DESCRIPTOR_BYTES] = reader.take();
    let descriptor = ChunkDescriptor::decode(&descriptor).ok_or("holds no descriptor")?;
    let erases = reader.u32();
    let stop = match reader.u8() {
        0 => None,
        FLAG_WRITE_FAILED => Some(Stop::WriteFailed),
        FLAG_CLOSED_EARLY => Some(Stop::ClosedEarly),
        _ => return Err("has flags that nobody set"),
    };
    let shape = &options.geometry;
    let pointer = descriptor.write_pointer.unwrap_or(0);
    let belongs = descriptor.start == format.pack(format.chunk_place(index))
        && descriptor.sectors == u64::from(shape.chunk_sectors);
    let stands = pointer <= u64::from(shape.chunk_sectors) && pointer.is_multiple_of(shape.ws_min.into());
    let fits = match descriptor.state {
        ChunkState::Free => pointer == 0,
        ChunkState::Open => pointer > 0 && pointer < u64::from(shape.chunk_sectors),
        ChunkState::Closed => stop.is_some() || pointer == u64::from(shape.chunk_sectors),
        ChunkState::Offline => true,
    };
    if !belongs || !stands || !fits || (stop.is_some() && descriptor.state != ChunkState::Closed) {
        return Err("describes a chunk that cannot be");
    }
    let erases_max = wear::birth(options, index).erases_max;
    let mut chunk = Chunk::new(descriptor.state, pointer as u32, erases, erases_max);
    chunk.stop = stop;
    Ok(chunk)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn options() -> FlashOptions {
        let odds = WearOdds { fresh: 0.25, worn: 0.5 };
        FlashOptions {
            seed: 0x0102_0304,
            max_open_per_unit: 3,
            bad_at_birth: 0.125,
            endurance: Endurance {
                erases_mean: 1000,
                variation: 0.5,
                program_failure: odds,
                early_close: WearOdds::default(),
            },
            ecc_page_reads: 77,
            wear_threshold: 9,
            protected_buffer: true,
            timing: Some(NandTiming::default()),
            yields_max: 2,
            ..FlashOptions::default()
        }
    }

    fn check(bytes: &[u8], golden: &Expect) {
        let lines: Vec<String> = bytes
            .chunks(16)
            .enumerate()
            .filter(|(_, line)| line.iter().any(|byte| *byte != 0))
            .map(|(at, line)| {
                let hex: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
                format!("{:03x}: {}", at * 16, hex.join(" "))
            })
            .collect();
        golden.assert_eq(&lines.join("\n"));
    }

    #[test]
    fn golden_bytes_of_the_header() {
        check(
            &encode_header(&options()),
            &expect![[r#"
            000: 54 52 4e 46 4c 41 53 48 01 00 00 00 00 01 00 00
            010: 02 00 00 00 02 00 00 00 10 00 00 00 00 01 00 00
            020: 00 10 00 00 04 00 00 00 08 00 00 00 10 00 00 00
            030: 00 00 00 00 03 00 00 00 00 00 00 00 4d 00 00 00
            040: e8 03 00 00 02 00 00 00 04 03 02 01 00 00 00 00
            050: 00 00 00 00 00 00 c0 3f 00 00 00 00 00 00 e0 3f
            060: 00 00 00 00 00 00 d0 3f 00 00 00 00 00 00 e0 3f
            080: 01 01 01 01 09 00 00 00 60 ea 00 00 00 00 00 00
            090: 60 ae 0a 00 00 00 00 00 40 4b 4c 00 00 00 00 00
            0a0: 00 8c 86 47 00 00 00 00 01 00 00 00 00 00 00 00
            0f0: 00 00 00 00 00 00 00 00 00 00 00 00 ee dc cf f7"#]],
        );
    }

    #[test]
    fn golden_bytes_of_state_and_record() {
        check(
            &encode_state(&DeviceState { openings: 3, notifications: 0x0405 }),
            &expect![[r#"
            000: 03 00 00 00 00 00 00 00 05 04 00 00 00 00 00 00
            030: 00 00 00 00 00 00 00 00 00 00 00 00 24 c8 6a 1e"#]],
        );
        let options = options();
        let format = AddressFormat::of(&options.geometry);
        let mut chunk = Chunk::new(ChunkState::Closed, 12, 40, Some(900));
        chunk.stop = Some(Stop::WriteFailed);
        let bytes = encode_record(&options, &format, 17, &chunk);
        check(
            &bytes,
            &expect![[r#"
            000: 02 01 0a 00 00 00 00 00 00 11 00 00 00 00 00 00
            010: 00 01 00 00 00 00 00 00 0c 00 00 00 00 00 00 00
            020: 28 00 00 00 01 00 00 00 00 00 00 00 00 00 00 00
            030: 00 00 00 00 00 00 00 00 00 00 00 00 75 d2 cf 83"#]],
        );
        let back = decode_record(&options, &format, 17, &bytes).unwrap();
        assert_eq!(
            (back.state, back.write_pointer, back.stop, back.erases),
            (ChunkState::Closed, 12, Some(Stop::WriteFailed), 40)
        );
        assert!(decode_record(&options, &format, 18, &bytes).is_err(), "it is another chunk's");
    }

    /// Fails if a record speaks of data that may never come: after a crash the chunk would hold something else there.
    #[test]
    fn a_record_says_what_the_storage_has() {
        let options = options();
        let format = AddressFormat::of(&options.geometry);
        let sectors = options.geometry.chunk_sectors;
        let mut chunk = Chunk::new(ChunkState::Free, 0, 0, None);
        chunk.accept(&options.geometry, 1, 8);
        chunk.accept(&options.geometry, 2, sectors);
        let recorded = |chunk: &Chunk| {
            let back =
                decode_record(&options, &format, 0, &encode_record(&options, &format, 0, chunk)).unwrap();
            (back.state, back.write_pointer)
        };
        assert_eq!(recorded(&chunk), (ChunkState::Free, 0));
        chunk.land(2);
        assert_eq!(recorded(&chunk), (ChunkState::Free, 0), "the first of them is missing");
        chunk.land(1);
        assert_eq!(recorded(&chunk), (ChunkState::Closed, sectors));
    }

    #[test]
    fn records_that_cannot_be_are_refused() {
        let options = options();
        let format = AddressFormat::of(&options.geometry);
        let sectors = options.geometry.chunk_sectors;
        for (state, pointer) in [
            (ChunkState::Free, 4),
            (ChunkState::Open, 0),
            (ChunkState::Open, sectors),
            (ChunkState::Open, 3),
            (ChunkState::Closed, 8),
            (ChunkState::Open, sectors + 4),
        ] {
            let descriptor = ChunkDescriptor {
                state,
                wear_index: 0,
                start: format.pack(format.chunk_place(1)),
                sectors: sectors.into(),
                write_pointer: Some(pointer.into()),
            };
            let mut bytes = [0; RECORD_BYTES];
            bytes[..DESCRIPTOR_BYTES].copy_from_slice(&descriptor.encode());
            seal(&mut bytes);
            assert!(decode_record(&options, &format, 1, &bytes).is_err(), "{state:?} at {pointer}");
        }
    }
}
