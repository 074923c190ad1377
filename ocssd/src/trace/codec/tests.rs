//! Golden bytes, and what is done about every kind of damage.

use expect_test::expect;
use proptest::prelude::*;

use super::*;

const GEOMETRY: Geometry = Geometry {
    groups: 2,
    parallel_units: 4,
    chunks: 100,
    chunk_sectors: 4096,
    sector_bytes: 512,
    ws_min: 8,
    ws_opt: 64,
    mw_cunits: 24,
    max_open: 0,
};

fn encode(events: &[Event]) -> Vec<u8> {
    let mut writer = TraceWriter::new(Vec::new(), &GEOMETRY).unwrap();
    for event in events {
        writer.push(event).unwrap();
    }
    writer.end().unwrap()
}

fn sample() -> Vec<Event> {
    vec![
        Event::Write { chunk: ChunkId(3), sector: 0, sectors: 8, class: LifetimeClass(0) },
        Event::Write { chunk: ChunkId(799), sector: 4032, sectors: 64, class: LifetimeClass(7) },
        Event::Finish { chunk: ChunkId(3) },
        Event::Reset { chunk: ChunkId(300) },
    ]
}

fn resealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let checksum = crc32c::crc32c(&bytes[..60]);
    bytes[60..64].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

#[test]
fn golden_bytes() {
    let lines: Vec<String> = encode(&sample())
        .chunks(16)
        .map(|row| row.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "))
        .collect();
    expect![[r#"
        54 45 52 52 54 52 43 0a 01 00 00 00 40 00 00 00
        02 00 00 00 04 00 00 00 64 00 00 00 00 10 00 00
        00 02 00 00 08 00 00 00 40 00 00 00 18 00 00 00
        00 00 00 00 00 00 00 00 00 00 00 00 d2 79 51 e1
        11 00 00 00 04 00 00 00 00 00 00 00 9c 95 a7 b0
        a6 5b 15 d9 01 00 03 00 08 01 07 9f 06 c0 1f 40
        03 03 02 ac 02 00 00 00 00 00 00 00 00 01 00 00
        00 00 00 00 00 cd e7 4c 0b"#]]
    .assert_eq(&lines.join("\n"));
}

#[test]
fn a_trace_without_events_is_one() {
    let trace = Trace::read(&encode(&[])[..]).unwrap();
    assert_eq!(trace, Trace { geometry: GEOMETRY, events: Vec::new(), tail: Tail::Ended });
}

#[test]
fn long_traces_take_several_frames() {
    let event = |index: u32| Event::Write {
        chunk: ChunkId(index % 800),
        sector: index % 4000,
        sectors: 1 + index % 96,
        class: LifetimeClass(index as u8),
    };
    let events: Vec<Event> = (0..50_000).map(event).collect();
    let bytes = encode(&events);
    assert!(bytes.len() > 4 * FRAME_TARGET_BYTES);
    assert_eq!(Trace::read(&bytes[..]).unwrap().events, events);
}

#[test]
fn what_is_no_trace_is_told() {
    assert!(matches!(Trace::read(&b""[..]), Err(TraceError::NotATrace)));
    assert!(matches!(Trace::read(&b"something else"[..]), Err(TraceError::NotATrace)));
    assert!(matches!(Trace::read(&encode(&[])[..20]), Err(TraceError::Damaged { at: 0, .. })));
    let mut newer = encode(&sample());
    newer[8] = 2;
    assert!(matches!(Trace::read(&resealed(newer)[..]), Err(TraceError::Newer { version: 2 })));
    // No chunks, and more bytes than there are numbers.
    for (at, value) in [(24, 0u32), (24, u32::MAX), (32, 0)] {
        let mut bytes = encode(&sample());
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
        assert!(matches!(Trace::read(&resealed(bytes)[..]), Err(TraceError::Damaged { at: 0, .. })), "{at}");
    }
    let mut longer = encode(&sample());
    longer.push(0);
    assert!(matches!(Trace::read(&longer[..]), Err(TraceError::Damaged { .. })));
}

/// What a checksum cannot tell: our own mistakes, and malice.
#[test]
fn events_outside_the_geometry_are_damage() {
    let write = |chunk, sector, sectors| Event::Write { chunk, sector, sectors, class: LifetimeClass(0) };
    for event in [
        write(ChunkId(800), 0, 8),
        write(ChunkId(0), 4096, 1),
        write(ChunkId(0), 4095, 2),
        write(ChunkId(0), 1, u32::MAX),
        write(ChunkId(0), 0, 0),
        Event::Reset { chunk: ChunkId(u32::MAX) },
        Event::Finish { chunk: ChunkId(800) },
    ] {
        let found = Trace::read(&encode(&[event])[..]);
        assert!(matches!(found, Err(TraceError::Damaged { at: 84, .. })), "{event:?}: {found:?}");
    }
}

#[test]
fn numbers_have_one_encoding() {
    let decode = |mut bytes: &[u8]| decode_number(&mut bytes);
    assert_eq!(decode(&[0]), Ok(0));
    assert_eq!(decode(&[0xff, 0xff, 0xff, 0xff, 0x0f]), Ok(u32::MAX));
    assert!(decode(&[0xff, 0xff, 0xff, 0xff, 0x1f]).is_err());
    assert!(decode(&[0x80, 0]).is_err());
    assert!(decode(&[0x80, 0x80, 0x80, 0x80, 0x80, 0]).is_err());
    assert!(decode(&[]).is_err());
    assert!(decode(&[0x80]).is_err());
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let chunk = (0u32..800).prop_map(ChunkId);
    let write =
        (chunk.clone(), 0u32..4096, 1u32..4096, any::<u8>()).prop_map(|(chunk, sector, sectors, class)| {
            let sectors = sectors.min(4096 - sector);
            Event::Write { chunk, sector, sectors, class: LifetimeClass(class) }
        });
    let event = prop_oneof![
        write,
        chunk.clone().prop_map(|chunk| Event::Reset { chunk }),
        chunk.prop_map(|chunk| Event::Finish { chunk }),
    ];
    prop::collection::vec(event, 0..60)
}

proptest! {
    #[test]
    fn what_is_written_is_read(events in events()) {
        let trace = Trace::read(&encode(&events)[..]).unwrap();
        prop_assert_eq!(trace, Trace { geometry: GEOMETRY, events, tail: Tail::Ended });
    }

    #[test]
    fn every_changed_byte_is_noticed(events in events(), at: prop::sample::Index, flip in 1..=255u8) {
        let mut bytes = encode(&events);
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(Trace::read(&bytes[..]).is_err(), "byte {} of {}", at, bytes.len());
    }

    /// A trace cut anywhere behind its header gives what is whole, and says that something may be missing.
    #[test]
    fn a_cut_off_tail_is_told(first in events(), second in events(), at: prop::sample::Index) {
        let mut writer = TraceWriter::new(Vec::new(), &GEOMETRY).unwrap();
        first.iter().for_each(|event| writer.push(event).unwrap());
        writer.write_frame().unwrap();
        let first_whole = writer.sink.len();
        second.iter().for_each(|event| writer.push(event).unwrap());
        let bytes = writer.end().unwrap();
        prop_assume!(!first.is_empty());
        let cut = HEADER_BYTES + at.index(bytes.len() - HEADER_BYTES);
        let trace = Trace::read(&bytes[..cut]).unwrap();
        let Tail::CutOff { whole_bytes } = trace.tail else { panic!("cut at {cut} of {} is not told", bytes.len()) };
        prop_assert!(whole_bytes <= cut as u64);
        let whole = if cut >= first_whole { first.len() } else { 0 };
        prop_assert!(trace.events.len() == whole || trace.events.len() == first.len() + second.len());
        prop_assert!(first.iter().chain(&second).zip(&trace.events).all(|(written, read)| written == read));
    }

    #[test]
    fn any_bytes_are_judged_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), ours: bool) {
        let mut bytes = bytes;
        if ours {
            let mut trace = encode(&[]);
            trace.truncate(HEADER_BYTES);
            trace.append(&mut bytes);
            bytes = trace;
        }
        let _ = Trace::read(&bytes[..]);
    }

    /// Behind the checksums the events themselves may be anything.
    #[test]
    fn any_payload_is_judged_without_panic(payload in prop::collection::vec(any::<u8>(), 1..200), count in 0u32..80) {
        let mut writer = TraceWriter::new(Vec::new(), &GEOMETRY).unwrap();
        writer.payload = payload;
        writer.events = count;
        let bytes = writer.end().unwrap();
        if let Ok(trace) = Trace::read(&bytes[..]) {
            prop_assert_eq!(encode(&trace.events), bytes);
        }
    }
}
