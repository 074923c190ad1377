//! Vector commands: each rule, and the bit of each address.

use std::ops::Range;

use terrane_ocssd::flash::{ADDRESSES_MAX, Completion, Place, Ppa, Status, VectorQueue, opcode};
use terrane_ocssd::{ChunkId, ChunkState, FlashDevice, FlashOptions, Geometry};

use crate::harness::{SECTOR, block_on, device, filled, geometry, options, plain};

struct Rig {
    device: FlashDevice,
    queue: VectorQueue,
}

impl Rig {
    fn with(options: FlashOptions) -> Self {
        let device = device(options);
        let queue = device.vector_queue().unwrap();
        Self { device, queue }
    }

    /// Addresses of a chunk of the device, numbered over all.
    fn at(&self, chunk: u32, sectors: Range<u32>) -> Vec<Ppa> {
        let format = self.device.address_format();
        sectors
            .map(|sector| {
                let unit = chunk / 4;
                format.pack(Place { group: unit / 2, unit: unit % 2, chunk: chunk % 4, sector })
            })
            .collect()
    }

    fn write(&self, addresses: &[Ppa], byte: u8) -> Completion {
        block_on(self.queue.write(addresses, filled(addresses.len() as u32, byte))).0
    }

    fn read(&self, addresses: &[Ppa]) -> (Completion, Vec<u8>) {
        let (completion, buf) = block_on(self.queue.read(addresses, filled(addresses.len() as u32, 0xEE)));
        (completion, buf.chunks(SECTOR).map(|sector| sector[0]).collect())
    }

    fn reset(&self, chunks: &[u32]) -> Completion {
        let addresses: Vec<Ppa> = chunks.iter().map(|chunk| self.at(*chunk, 0..1)[0]).collect();
        block_on(self.queue.reset(&addresses))
    }
}

const OK: Completion = Completion { status: Status::SUCCESS, failed: 0 };

fn failed(status: Status, failed: u64) -> Completion {
    Completion { status, failed }
}

#[test]
fn codes_are_those_of_the_specification() {
    assert_eq!([opcode::RESET, opcode::WRITE, opcode::READ, opcode::COPY], [0x90, 0x91, 0x92, 0x93]);
    let codes = [
        (Status::OFFLINE_CHUNK, 0x2C0),
        (Status::INVALID_RESET, 0x2C1),
        (Status::HIGH_ECC, 0x2D0),
        (Status::WRITE_NEXT_UNIT, 0x2F0),
        (Status::CHUNK_EARLY_CLOSE, 0x2F1),
        (Status::OUT_OF_ORDER, 0x2F2),
        (Status::LBA_OUT_OF_RANGE, 0x080),
        (Status::UNRECOVERED_READ, 0x281),
    ];
    for (status, code) in codes {
        assert_eq!(status.0, code);
    }
}

#[test]
fn one_command_reaches_many_units() {
    let rig = Rig::with(plain());
    let everywhere: Vec<Ppa> = [0, 5, 10, 15].iter().flat_map(|chunk| rig.at(*chunk, 0..4)).collect();
    assert_eq!(rig.write(&everywhere, 3), OK);
    assert_eq!(rig.read(&everywhere), (OK, vec![3; 16]));
    let descriptor = rig.device.descriptors(5..6)[0];
    assert_eq!((descriptor.state, descriptor.write_pointer), (ChunkState::Open, Some(4)));
    assert_eq!(descriptor.start, rig.at(5, 0..1)[0]);
    // Scattered, and twice the same.
    let scattered = [everywhere[3], everywhere[9], everywhere[3]];
    assert_eq!(rig.read(&scattered), (OK, vec![3; 3]));
}

#[test]
fn each_broken_rule_of_a_write_has_its_status() {
    let rig = Rig::with(plain());
    assert_eq!(rig.write(&rig.at(0, 0..4), 1), OK);
    assert_eq!(
        rig.write(&rig.at(0, 8..12), 1),
        failed(Status::OUT_OF_ORDER, 0xF),
        "ahead of the write pointer"
    );
    assert_eq!(rig.write(&rig.at(0, 0..4), 1), failed(Status::OUT_OF_ORDER, 0xF), "behind it");
    assert_eq!(
        rig.write(&rig.at(0, 4..7), 1),
        failed(Status::INVALID_FIELD, 0b111),
        "not a multiple of ws_min"
    );
    let mut backwards = rig.at(0, 4..8);
    backwards.reverse();
    assert_eq!(rig.write(&backwards, 1), failed(Status::INVALID_FIELD, 0xF));
    assert_eq!(rig.write(&rig.at(0, 4..32), 1), OK);
    assert_eq!(rig.write(&rig.at(0, 0..4), 1), failed(Status::OUT_OF_ORDER, 0xF), "closed");
    rig.device.take_offline(ChunkId(1));
    assert_eq!(rig.write(&rig.at(1, 0..4), 1), failed(Status::OFFLINE_CHUNK, 0xF));
    assert_eq!(rig.write(&[Ppa(u64::MAX); 4], 1), failed(Status::LBA_OUT_OF_RANGE, 0xF));
}

#[test]
fn what_can_be_done_of_a_command_is_done() {
    let rig = Rig::with(plain());
    rig.device.take_offline(ChunkId(6));
    let mut addresses = rig.at(0, 0..4);
    addresses.extend(rig.at(6, 0..4));
    addresses.extend(rig.at(9, 4..8));
    addresses.extend(rig.at(12, 0..4));
    addresses.push(Ppa(1 << 60));
    // Chunk 6 is offline, chunk 9 is written out of order, and the last address names nothing.
    assert_eq!(rig.write(&addresses, 7), failed(Status::OFFLINE_CHUNK, 0x1_0FF0));
    assert_eq!(rig.read(&rig.at(0, 0..4)), (OK, vec![7; 4]));
    assert_eq!(rig.read(&rig.at(12, 0..4)), (OK, vec![7; 4]));
    let (completion, bytes) = rig.read(&addresses);
    assert_eq!(completion, failed(Status::OFFLINE_CHUNK, 0x1_0FF0));
    assert_eq!(bytes[..5], [7, 7, 7, 7, 0xEE]);
    // The status is that of the first address, whichever was found out first.
    addresses.rotate_right(1);
    assert_eq!(rig.read(&addresses).0, failed(Status::LBA_OUT_OF_RANGE, 0x1FE1));
}

#[test]
fn failed_units_have_their_bits() {
    for seed in 0..20 {
        let rig = Rig::with(FlashOptions { seed, ..plain() });
        rig.device.fail_next_write_of(ChunkId(2));
        let completion = rig.write(&rig.at(2, 0..16), 1);
        assert_eq!(completion.status, Status::WRITE_NEXT_UNIT);
        let written = completion.failed.trailing_zeros();
        assert!(written < 16 && written.is_multiple_of(4));
        assert_eq!(completion.failed, 0xFFFF & !((1 << written) - 1));
        assert_eq!(rig.device.descriptors(2..3)[0].write_pointer, Some(written.into()));
    }
    let rig = Rig::with(plain());
    rig.device.close_early(ChunkId(2));
    assert_eq!(rig.write(&rig.at(2, 0..8), 1), failed(Status::CHUNK_EARLY_CLOSE, 0xFF));
}

#[test]
fn reads_of_what_is_not_there_are_refused() {
    let rig = Rig::with(options());
    rig.write(&rig.at(0, 0..12), 1);
    assert_eq!(rig.read(&rig.at(0, 0..4)), (OK, vec![1; 4]));
    assert_eq!(rig.read(&rig.at(0, 4..5)).0, failed(Status::UNWRITTEN, 1), "hidden");
    assert_eq!(rig.read(&rig.at(0, 12..13)).0, failed(Status::UNWRITTEN, 1));
    rig.write(&rig.at(0, 12..32), 1);
    assert_eq!(rig.read(&rig.at(0, 28..32)).0, OK);
    rig.device.fail_reads_of(ChunkId(0), 30);
    let two = [rig.at(0, 2..3), rig.at(0, 30..31)].concat();
    assert_eq!(rig.read(&two).0, failed(Status::UNRECOVERED_READ, 0b10));
}

#[test]
fn much_correction_is_said_and_the_data_is_good() {
    let rig = Rig::with(FlashOptions { ecc_page_reads: 10, ..plain() });
    rig.write(&[rig.at(0, 0..4), rig.at(4, 0..4)].concat(), 1);
    for _ in 0..10 {
        rig.read(&rig.at(0, 0..1));
    }
    let both = [rig.at(4, 0..2), rig.at(0, 0..2)].concat();
    assert_eq!(rig.read(&both), (failed(Status::HIGH_ECC, 0b1100), vec![1; 4]));
}

#[test]
fn each_broken_rule_of_a_reset_has_its_status() {
    let rig = Rig::with(FlashOptions { reset_free: false, reset_open: false, ..plain() });
    rig.write(&rig.at(1, 0..4), 1);
    rig.write(&rig.at(2, 0..32), 1);
    rig.device.take_offline(ChunkId(3));
    // Free, open, closed, offline.
    assert_eq!(rig.reset(&[0, 1, 2, 3]), failed(Status::INVALID_RESET, 0b1011));
    assert_eq!(rig.reset(&[3]), failed(Status::OFFLINE_CHUNK, 1));
    assert_eq!(rig.device.descriptors(2..3)[0].state, ChunkState::Free);
    let kind = Rig::with(plain());
    kind.write(&kind.at(1, 0..4), 1);
    assert_eq!(kind.reset(&[0, 1]), OK);
    // One chunk twice: the first is under way.
    assert_eq!(kind.reset(&[0, 0]), failed(Status::INVALID_RESET, 0b10));
    kind.device.fail_next_reset_of(ChunkId(5));
    assert_eq!(kind.reset(&[4, 5]), failed(Status::OFFLINE_CHUNK, 0b10));
}

#[test]
fn too_many_open_chunks_are_a_write_fault() {
    let geometry = Geometry { max_open: 1, mw_cunits: 0, ..geometry() };
    let rig = Rig::with(FlashOptions { geometry, ..options() });
    let two = [rig.at(0, 0..4), rig.at(4, 0..4)].concat();
    assert_eq!(rig.write(&two, 1), failed(Status::WRITE_FAULT, 0xF0));
}

#[test]
fn copies_stay_in_the_device() {
    let rig = Rig::with(plain());
    rig.write(&rig.at(0, 0..8), 4);
    let from = [rig.at(0, 4..6), rig.at(0, 0..2)].concat();
    let copy = |from: &[Ppa], to: &[Ppa]| block_on(rig.queue.copy(from, to));
    assert_eq!(copy(&from, &rig.at(9, 0..4)), OK);
    assert_eq!(rig.read(&rig.at(9, 0..4)), (OK, vec![4; 4]));
    assert_eq!(copy(&rig.at(0, 8..12), &rig.at(9, 4..8)), failed(Status::UNWRITTEN, 0xF));
    assert_eq!(copy(&from, &rig.at(9, 8..12)), failed(Status::OUT_OF_ORDER, 0xF));
    assert_eq!(copy(&from, &rig.at(9, 4..7)).status, Status::INVALID_FIELD);
    let counters = rig.device.counters();
    assert_eq!((counters.received_bytes, counters.programmed_bytes), (12 * 512, 12 * 512));
}

#[test]
fn commands_have_one_to_64_addresses() {
    let big = Geometry { chunk_sectors: 128, mw_cunits: 0, ..geometry() };
    let rig = Rig::with(FlashOptions { geometry: big, ..options() });
    let addresses = rig.at(0, 0..68);
    assert_eq!(rig.write(&addresses[..ADDRESSES_MAX], 1), OK);
    assert_eq!(rig.read(&addresses[..ADDRESSES_MAX]).0, OK);
    assert_eq!(rig.write(&addresses[..ADDRESSES_MAX], 1), failed(Status::OUT_OF_ORDER, u64::MAX));
    assert_eq!(rig.write(&addresses, 1).status, Status::INVALID_FIELD);
    assert_eq!(rig.read(&addresses).0.status, Status::INVALID_FIELD);
    assert_eq!(rig.read(&[]).0.status, Status::INVALID_FIELD);
    assert_eq!(rig.reset(&[]).status, Status::INVALID_FIELD);
    let (completion, _) = block_on(rig.queue.write(&addresses[..4], filled(3, 0)));
    assert_eq!(completion.status, Status::INVALID_FIELD, "the buffer has another size");
}

#[test]
fn without_power_nothing_completes_well() {
    let rig = Rig::with(plain());
    rig.device.power_cut();
    assert_eq!(rig.write(&rig.at(0, 0..4), 1), failed(Status::POWER_LOSS, 0xF));
    rig.device.power_on();
    assert_eq!(rig.reset(&[0]), failed(Status::POWER_LOSS, 1), "the queue is of an earlier life");
    let queue = rig.device.vector_queue().unwrap();
    assert_eq!(block_on(queue.write(&rig.at(0, 0..4), filled(4, 1))).0, OK);
}
