//! The commands that the host sends to an NVMe namespace or controller, and the bytes the kernel takes them as.
//!
//! The kernel's passthrough takes one struct for all of them (`struct nvme_uring_cmd` in `linux/nvme_ioctl.h`; the
//! ioctl's `struct nvme_passthru_cmd` has a result where this one has padding):
//!
//! ```text
//! byte  0       1      2     4     8     12    16        24    32            36        40           64       68
//!       | opcode | flags | 0 | nsid | cdw2 | cdw3 | metadata | addr | metadata_len | data_len | cdw10 .. 15 | timeout | 0 |
//! ```
//!
//! All numbers are in the machine's byte order, which the kernel turns into the device's. What the dwords 10 to 15
//! hold is the specifications': NVM Command Set 1.0 (read, write, flush, dataset management), Zoned Namespace
//! Command Set 1.1 (append, management send and receive), Base 2.1 (identify, get log page, get features, I/O management with
//! flexible data placement).
//!
//! Invariants:
//! - A command never names a buffer of its own: whoever submits it puts in the address of a buffer that it keeps
//!   alive, and `data_bytes` says how much of it the device may touch.
//! - Counts that the specification writes "0's based" are counted from one here.

/// Bytes of a command as the kernel takes it.
pub const COMMAND_BYTES: usize = 72;

/// Most logical blocks that one read, write or append moves: the field has 16 bits, counted from zero.
pub const BLOCKS_MAX: u32 = 1 << 16;

/// Bytes of an identify answer.
pub const IDENTIFY_BYTES: u32 = 4096;

/// Bytes of one range of a dataset management command.
pub const DEALLOCATE_RANGE_BYTES: usize = 16;

/// Most ranges of one dataset management command.
pub const DEALLOCATE_RANGES_MAX: u32 = 256;

/// `cmd_op` of an I/O command through the ring: `NVME_URING_CMD_IO`.
pub const URING_CMD_IO: u32 = 0xc048_4e80;

/// The write is durable when it completes (Force Unit Access), dword 12.
const FORCE_UNIT_ACCESS: u32 = 1 << 30;
/// Directive type "data placement", dword 12 bits 23:20.
const DATA_PLACEMENT: u32 = 2 << 20;
/// Attribute "deallocate" of a dataset management command, dword 11.
const DEALLOCATE: u32 = 1 << 2;
/// Report only what fits the buffer, dword 13 of a zone management receive.
const PARTIAL_REPORT: u32 = 1 << 16;
/// Command set "zoned namespace".
const ZONED_COMMAND_SET: u32 = 2;

/// What is done to a zone (Zoned Namespace Command Set, "Zone Send Action").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ZoneAction {
    /// Makes it full, wherever its write pointer stands.
    Finish = 2,
    /// Makes it empty.
    Reset = 4,
}

/// What an identify command asks about (Base, "Controller or Namespace Structure").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identify {
    /// The namespace: size and formats.
    Namespace,
    /// The controller.
    Controller,
    /// The namespace's identifiers, its command set among them.
    NamespaceDescriptors,
    /// What a zoned namespace adds.
    ZonedNamespace,
    /// What a controller for ordinary namespaces adds: the limits of its deallocation among it.
    NvmController,
    /// What a controller for zoned namespaces adds.
    ZonedController,
}

/// A log page of flexible data placement (Base, "Get Log Page").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum PlacementLog {
    /// The configurations that the endurance group offers.
    Configurations = 0x20,
    /// Who uses which reclaim unit handle.
    HandleUsage = 0x21,
    /// Bytes written by hosts and to the media.
    Statistics = 0x22,
}

/// One command, all but its buffer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Command {
    /// What to do.
    pub opcode: u8,
    /// The namespace; 0 where the command is about none.
    pub nsid: u32,
    /// Bytes that it moves from or to the buffer.
    pub data_bytes: u32,
    /// Where they are. 0 until it is submitted.
    pub addr: u64,
    /// Dwords 10 to 15.
    pub dwords: [u32; 6],
}

impl Command {
    /// Reads `blocks` logical blocks of `block_bytes` from `lba`.
    pub fn read(nsid: u32, lba: u64, blocks: u32, block_bytes: u32) -> Self {
        Self::transfer(0x02, nsid, lba, blocks, block_bytes, 0)
    }

    /// Writes `blocks` logical blocks at `lba`; durable when it completes if `durable`.
    pub fn write(nsid: u32, lba: u64, blocks: u32, block_bytes: u32, durable: bool) -> Self {
        Self::transfer(0x01, nsid, lba, blocks, block_bytes, durability(durable))
    }

    /// The same write, into the reclaim unit of a placement handle (flexible data placement).
    #[must_use]
    pub fn placed(mut self, placement: u16) -> Self {
        self.dwords[2] |= DATA_PLACEMENT;
        self.dwords[3] |= u32::from(placement) << 16;
        self
    }

    /// Writes `blocks` logical blocks where the device chooses within the zone that starts at `zone_lba`. The
    /// completion says where.
    pub fn append(nsid: u32, zone_lba: u64, blocks: u32, block_bytes: u32, durable: bool) -> Self {
        Self::transfer(0x7d, nsid, zone_lba, blocks, block_bytes, durability(durable))
    }

    fn transfer(opcode: u8, nsid: u32, lba: u64, blocks: u32, block_bytes: u32, flags: u32) -> Self {
        assert!((1..=BLOCKS_MAX).contains(&blocks), "{blocks} blocks do not fit one command");
        let dwords = [low(lba), high(lba), (blocks - 1) | flags, 0, 0, 0];
        Self { opcode, nsid, data_bytes: blocks * block_bytes, dwords, ..Self::default() }
    }

    /// Makes everything that completed before durable.
    pub fn flush(nsid: u32) -> Self {
        Self { opcode: 0x00, nsid, ..Self::default() }
    }

    /// Changes the state of the zone that starts at `zone_lba`.
    pub fn zone(nsid: u32, zone_lba: u64, action: ZoneAction) -> Self {
        let dwords = [low(zone_lba), high(zone_lba), 0, action as u32, 0, 0];
        Self { opcode: 0x79, nsid, dwords, ..Self::default() }
    }

    /// Describes the zones from `lba` on, as many as fit `data_bytes` (a multiple of four).
    pub fn report_zones(nsid: u32, lba: u64, data_bytes: u32) -> Self {
        let dwords = [low(lba), high(lba), data_bytes / 4 - 1, PARTIAL_REPORT, 0, 0];
        Self { opcode: 0x7a, nsid, data_bytes, dwords, ..Self::default() }
    }

    /// Deallocates `ranges` ranges, which [`deallocate_range`] describes in the buffer, one after the other.
    pub fn deallocate(nsid: u32, ranges: u32) -> Self {
        assert!((1..=DEALLOCATE_RANGES_MAX).contains(&ranges), "{ranges} ranges do not fit one command");
        let dwords = [ranges - 1, DEALLOCATE, 0, 0, 0, 0];
        Self {
            opcode: 0x09,
            nsid,
            data_bytes: ranges * DEALLOCATE_RANGE_BYTES as u32,
            dwords,
            ..Self::default()
        }
    }

    /// Lists the placement handles of the namespace and what is left of the unit of each ("Reclaim Unit Handle Status").
    pub fn handle_status(nsid: u32, data_bytes: u32) -> Self {
        let dwords = [1, data_bytes / 4 - 1, 0, 0, 0, 0];
        Self { opcode: 0x12, nsid, data_bytes, dwords, ..Self::default() }
    }

    /// Lets one placement handle, whose identifier stands in the buffer, go on in an empty reclaim unit ("Reclaim
    /// Unit Handle Update").
    pub fn handle_update(nsid: u32) -> Self {
        Self { opcode: 0x1d, nsid, data_bytes: 2, dwords: [1, 0, 0, 0, 0, 0], ..Self::default() }
    }

    /// Asks for an identify structure. An admin command.
    pub fn identify(nsid: u32, what: Identify) -> Self {
        let (about, nsid, command_set) = match what {
            Identify::Namespace => (0x00, nsid, 0),
            Identify::Controller => (0x01, 0, 0),
            Identify::NamespaceDescriptors => (0x03, nsid, 0),
            Identify::ZonedNamespace => (0x05, nsid, ZONED_COMMAND_SET),
            Identify::NvmController => (0x06, 0, 0),
            Identify::ZonedController => (0x06, 0, ZONED_COMMAND_SET),
        };
        let dwords = [about, command_set << 24, 0, 0, 0, 0];
        Self { opcode: 0x06, nsid, data_bytes: IDENTIFY_BYTES, dwords, ..Self::default() }
    }

    /// Asks for `data_bytes` (a multiple of four) of a log of an endurance group, from its start. An admin command.
    pub fn placement_log(log: PlacementLog, endurance_group: u16, data_bytes: u32) -> Self {
        let dwords_less_one = data_bytes / 4 - 1;
        let dwords = [
            u32::from(log as u8) | (dwords_less_one & 0xffff) << 16,
            dwords_less_one >> 16 | u32::from(endurance_group) << 16,
            0,
            0,
            0,
            0,
        ];
        Self { opcode: 0x02, data_bytes, dwords, ..Self::default() }
    }

    /// The same log from byte `offset` on (a multiple of four).
    #[must_use]
    pub fn from_offset(mut self, offset: u32) -> Self {
        self.dwords[2] = offset;
        self
    }

    /// Asks whether flexible data placement is on in an endurance group, and with which configuration. An admin
    /// command that answers in its result.
    pub fn placement_feature(endurance_group: u16) -> Self {
        let dwords = [0x1d, u32::from(endurance_group), 0, 0, 0, 0];
        Self { opcode: 0x0a, dwords, ..Self::default() }
    }

    /// The command as the kernel takes it.
    pub fn encode(&self) -> [u8; COMMAND_BYTES] {
        let mut bytes = [0; COMMAND_BYTES];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, &[self.opcode]);
        put(4, &self.nsid.to_ne_bytes());
        put(24, &self.addr.to_ne_bytes());
        put(36, &self.data_bytes.to_ne_bytes());
        for (index, dword) in self.dwords.iter().enumerate() {
            put(40 + 4 * index, &dword.to_ne_bytes());
        }
        bytes
    }
}

/// One range in the buffer of [`Command::deallocate`]: `blocks` logical blocks from `lba`. Little-endian, as on the wire.
pub fn deallocate_range(lba: u64, blocks: u32) -> [u8; DEALLOCATE_RANGE_BYTES] {
    let mut bytes = [0; DEALLOCATE_RANGE_BYTES];
    bytes[4..8].copy_from_slice(&blocks.to_le_bytes());
    bytes[8..].copy_from_slice(&lba.to_le_bytes());
    bytes
}

fn durability(durable: bool) -> u32 {
    if durable { FORCE_UNIT_ACCESS } else { 0 }
}

fn low(lba: u64) -> u32 {
    lba as u32
}

fn high(lba: u64) -> u32 {
    (lba >> 32) as u32
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    const LBA: u64 = 0x0102_0304_0506_0708;

    /// A line for each: its opcode, namespace, bytes of data, and dwords 10 to 15.
    fn check(commands: &[(&str, Command)], expected: &Expect) {
        let line = |(name, command): &(&str, Command)| {
            let Command { opcode, nsid, data_bytes, dwords, .. } = command;
            let dwords = dwords.map(|dword| format!("{dword:08x}")).join(" ");
            format!("{name:<12} {opcode:02x} {nsid} {data_bytes:8}  {dwords}")
        };
        expected.assert_eq(&commands.iter().map(line).collect::<Vec<_>>().join("\n"));
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn golden_bytes_of_a_command() {
        let command = Command {
            opcode: 0x01,
            nsid: 0x0203_0405,
            data_bytes: 0x0607_0809,
            addr: 0x1112_1314_1516_1718,
            dwords: [0x2122_2324, 0x3132_3334, 0x4142_4344, 0x5152_5354, 0x6162_6364, 0x7172_7374],
        };
        let rows: Vec<String> = command
            .encode()
            .chunks(24)
            .map(|row| row.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "))
            .collect();
        expect![[r#"
            01 00 00 00 05 04 03 02 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
            18 17 16 15 14 13 12 11 00 00 00 00 09 08 07 06 24 23 22 21 34 33 32 31
            44 43 42 41 54 53 52 51 64 63 62 61 74 73 72 71 00 00 00 00 00 00 00 00"#]]
        .assert_eq(&rows.join("\n"));
    }

    #[test]
    fn golden_transfers() {
        check(
            &[
                ("read", Command::read(9, LBA, 0x20, 4096)),
                ("durable", Command::write(9, LBA, 1, 512, true)),
                ("placed", Command::write(9, LBA, BLOCKS_MAX, 512, false).placed(0x4321)),
                ("append", Command::append(9, LBA, 2, 4096, true)),
                ("flush", Command::flush(9)),
                ("deallocate", Command::deallocate(9, 2)),
            ],
            &expect![[r#"
                read         02 9   131072  05060708 01020304 0000001f 00000000 00000000 00000000
                durable      01 9      512  05060708 01020304 40000000 00000000 00000000 00000000
                placed       01 9 33554432  05060708 01020304 0020ffff 43210000 00000000 00000000
                append       7d 9     8192  05060708 01020304 40000001 00000000 00000000 00000000
                flush        00 9        0  00000000 00000000 00000000 00000000 00000000 00000000
                deallocate   09 9       32  00000001 00000004 00000000 00000000 00000000 00000000"#]],
        );
    }

    #[test]
    fn golden_management() {
        check(
            &[
                ("finish", Command::zone(9, LBA, ZoneAction::Finish)),
                ("reset", Command::zone(9, LBA, ZoneAction::Reset)),
                ("report", Command::report_zones(9, LBA, 4096)),
                ("handles", Command::handle_status(9, 4096)),
                ("update", Command::handle_update(9)),
            ],
            &expect![[r#"
                finish       79 9        0  05060708 01020304 00000000 00000002 00000000 00000000
                reset        79 9        0  05060708 01020304 00000000 00000004 00000000 00000000
                report       7a 9     4096  05060708 01020304 000003ff 00010000 00000000 00000000
                handles      12 9     4096  00000001 000003ff 00000000 00000000 00000000 00000000
                update       1d 9        2  00000001 00000000 00000000 00000000 00000000 00000000"#]],
        );
    }

    #[test]
    fn golden_admin_commands() {
        let log = |log, bytes| Command::placement_log(log, 7, bytes);
        check(
            &[
                ("namespace", Command::identify(9, Identify::Namespace)),
                ("controller", Command::identify(9, Identify::Controller)),
                ("descriptors", Command::identify(9, Identify::NamespaceDescriptors)),
                ("zones of", Command::identify(9, Identify::ZonedNamespace)),
                ("nvm", Command::identify(9, Identify::NvmController)),
                ("zoned", Command::identify(9, Identify::ZonedController)),
                ("configured", log(PlacementLog::Configurations, 1 << 20)),
                ("usage", log(PlacementLog::HandleUsage, 64)),
                ("usage from", log(PlacementLog::HandleUsage, 64).from_offset(0x4_0000)),
                ("statistics", log(PlacementLog::Statistics, 64)),
                ("feature", Command::placement_feature(7)),
            ],
            &expect![[r#"
                namespace    06 9     4096  00000000 00000000 00000000 00000000 00000000 00000000
                controller   06 0     4096  00000001 00000000 00000000 00000000 00000000 00000000
                descriptors  06 9     4096  00000003 00000000 00000000 00000000 00000000 00000000
                zones of     06 9     4096  00000005 02000000 00000000 00000000 00000000 00000000
                nvm          06 0     4096  00000006 00000000 00000000 00000000 00000000 00000000
                zoned        06 0     4096  00000006 02000000 00000000 00000000 00000000 00000000
                configured   02 0  1048576  ffff0020 00070003 00000000 00000000 00000000 00000000
                usage        02 0       64  000f0021 00070000 00000000 00000000 00000000 00000000
                usage from   02 0       64  000f0021 00070000 00040000 00000000 00000000 00000000
                statistics   02 0       64  000f0022 00070000 00000000 00000000 00000000 00000000
                feature      0a 0        0  0000001d 00000007 00000000 00000000 00000000 00000000"#]],
        );
    }

    #[test]
    fn a_range_is_little_endian() {
        let range = deallocate_range(LBA, 0x1020_3040);
        assert_eq!(range, [0, 0, 0, 0, 0x40, 0x30, 0x20, 0x10, 8, 7, 6, 5, 4, 3, 2, 1]);
    }

    #[test]
    #[should_panic(expected = "do not fit one command")]
    fn more_than_a_command_holds_is_our_own_bug() {
        let _ = Command::read(1, 0, BLOCKS_MAX + 1, 512);
    }

    #[test]
    fn the_ring_s_code_is_what_the_kernel_derives() {
        // _IOWR('N', 0x80, struct nvme_uring_cmd)
        let code = 3 << 30 | (COMMAND_BYTES as u32) << 16 | u32::from(b'N') << 8 | 0x80;
        assert_eq!(code, URING_CMD_IO);
    }
}
