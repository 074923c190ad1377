//! What `ocssd` reads: the superblock, traces of media, and what an NVMe device says of itself.

use terrane_ocssd::flash::{ChunkDescriptor, DESCRIPTOR_BYTES, Ppa};
use terrane_ocssd::nvme::identify;
use terrane_ocssd::superblock::{SUPERBLOCK_BYTES, Superblock};
use terrane_ocssd::trace::{Event, Trace, TraceWriter};
use terrane_ocssd::{ChunkId, ChunkState, DeviceKind, DeviceShape, Geometry, LifetimeClass};

use crate::seal;

/// Two copies of a superblock, the second behind the first.
pub(crate) fn superblock(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    for sealed in [false, true] {
        let at = bytes.len().min(SUPERBLOCK_BYTES);
        let (first, second) = bytes.split_at_mut(at);
        if sealed {
            for copy in [&mut *first, &mut *second] {
                seal(copy, SUPERBLOCK_BYTES - 4);
            }
        }
        if let Ok(found) = Superblock::choose([first, second]) {
            assert_eq!(Superblock::choose([&found.encode(), &[]]), Ok(found));
            let _ = (found.layout(), found.slice_geometry());
        }
    }
}

/// A trace, with the checksums of its header and of each frame as they are, and made right.
pub(crate) fn trace(bytes: &[u8]) {
    check_trace(bytes);
    let mut sealed = bytes.to_vec();
    seal(&mut sealed, 60);
    let mut at = 64;
    while let Some(frame) = sealed.get_mut(at..).filter(|frame| frame.len() >= 20) {
        let (header, rest) = frame.split_at_mut(20);
        let claimed = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let payload = &rest[..claimed.min(rest.len())];
        header[12..16].copy_from_slice(&crc32c::crc32c(payload).to_le_bytes());
        at += 20 + payload.len();
        seal(header, 16);
    }
    check_trace(&sealed);
}

fn check_trace(bytes: &[u8]) {
    let Ok(trace) = Trace::read(bytes) else { return };
    let again = write_trace(&trace.geometry, &trace.events);
    let read = Trace::read(&again[..]).expect("what was written is read");
    assert_eq!((read.geometry, read.events), (trace.geometry, trace.events));
}

fn write_trace(geometry: &Geometry, events: &[Event]) -> Vec<u8> {
    let mut writer = TraceWriter::new(Vec::new(), geometry).expect("memory can be written");
    events.iter().for_each(|event| writer.push(event).expect("memory can be written"));
    writer.end().expect("memory can be written")
}

/// Everything that an NVMe device answers.
pub(crate) fn identify(bytes: &[u8]) {
    let (selector, bytes) = bytes.split_first().map_or((0, bytes), |(first, rest)| (*first, rest));
    let _ = identify::CommandSet::parse(bytes);
    let _ = identify::Namespace::parse(bytes);
    let _ = identify::Controller::parse(bytes);
    let _ = identify::append_bytes_max(bytes);
    if let Ok(limits) = identify::DeallocateLimits::parse(bytes) {
        let ranges: u64 =
            limits.commands(8, 1000).iter().flatten().map(|(_, blocks)| u64::from(*blocks)).sum();
        assert!(ranges == 0 || ranges == 1000, "{ranges} blocks");
    }
    let _ = identify::ZonedNamespace::parse(bytes, selector);
    let _ = identify::parse_zones(bytes);
    let _ = identify::configurations_bytes(bytes);
    let _ = identify::PlacementConfiguration::parse(bytes, selector);
    let _ = identify::count_handles(bytes);
    let _ = identify::parse_handles(bytes);
    let _ = identify::handle_use_bytes(bytes);
    let _ = identify::parse_handle_use(bytes);
    if let Ok(statistics) = identify::PlacementStatistics::parse(bytes) {
        let _ = statistics.amplification_since(&statistics);
    }
}

/// A chunk's descriptor in the chunk information log.
pub(crate) fn descriptor(bytes: &[u8]) {
    if let Some(bytes) = bytes.first_chunk::<DESCRIPTOR_BYTES>()
        && let Some(descriptor) = ChunkDescriptor::decode(bytes)
    {
        assert_eq!(ChunkDescriptor::decode(&descriptor.encode()), Some(descriptor));
    }
}

pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let geometry = Geometry {
        groups: 1,
        parallel_units: 2,
        chunks: 64,
        chunk_sectors: 2048,
        sector_bytes: 4096,
        ws_min: 4,
        ws_opt: 8,
        mw_cunits: 0,
        max_open: 16,
    };
    let slice_bytes = 32 * geometry.chunk_bytes();
    let superblock = Superblock {
        version: 2,
        sequence: 1,
        cluster: 7,
        node: 1,
        shards: 2,
        sector_bytes: 4096,
        chunk_bytes: geometry.chunk_bytes(),
        slice_bytes,
        kind: DeviceKind::Zoned,
        shape: DeviceShape {
            geometry,
            zone_bytes: geometry.chunk_bytes(),
            size_bytes: geometry.slice_bytes(),
        },
    };
    let events = [
        Event::Reset { chunk: ChunkId(3) },
        Event::Write { chunk: ChunkId(3), sector: 0, sectors: 300, class: LifetimeClass(2) },
        Event::Write { chunk: ChunkId(100), sector: 8, sectors: 4, class: LifetimeClass(0) },
        Event::Finish { chunk: ChunkId(3) },
    ];
    let descriptor = ChunkDescriptor {
        state: ChunkState::Open,
        wear_index: 3,
        start: Ppa(1 << 20),
        sectors: 2048,
        write_pointer: Some(16),
    };
    // A page of an answer: what it says is of no matter, only its length, and some numbers that are not all zero.
    let identify: Vec<u8> = (0..1024_u32).map(|at| (at.wrapping_mul(97) % 5) as u8).collect();
    vec![
        ("superblock", [superblock.encode(), superblock.encode()].concat()),
        ("trace", write_trace(&geometry, &events)),
        ("identify", identify),
        ("identify", vec![0; 200]),
        ("descriptor", descriptor.encode().to_vec()),
    ]
}
