//! What a device says of itself: identify structures, zone reports, and the logs of flexible data placement.
//!
//! Layouts: Base 2.1 (controller, namespace descriptors, flexible data placement), NVM Command Set 1.0 (namespace),
//! Zoned Namespace Command Set 1.1 (zones). All little-endian.
//!
//! Invariants:
//! - Nothing the device says is trusted: every field is read with a bounds check, and numbers that make no sense
//!   together are an [`IdentifyError`], never a panic, an overflow, or an allocation of their size.

use super::command::DEALLOCATE_RANGES_MAX;

/// Bytes of the header of a zone report, and of each zone after it.
pub const ZONE_BYTES: usize = 64;

/// Bytes of the header of a placement handle status, before the handles.
pub const HANDLES_HEADER_BYTES: usize = 16;

/// Bytes of one handle in a placement handle status.
pub const HANDLE_BYTES: usize = 32;

/// Bytes of the header of the log of placement configurations, which says how long the log is.
pub const CONFIGURATIONS_HEADER_BYTES: u32 = 16;

/// Bytes of the header of the log of reclaim unit handles, before an entry for each.
pub const HANDLE_USE_HEADER_BYTES: u32 = 8;

/// Bytes of one entry of the log of reclaim unit handles.
const HANDLE_USE_BYTES: u32 = 8;

/// Bytes of the log of placement statistics.
pub const STATISTICS_BYTES: u32 = 64;

/// The smallest memory page of a controller, by which it counts the size of transfers. Its own setting is in a
/// register that passthrough does not show; no controller may use less.
const PAGE_BYTES_MIN: u64 = 4096;

/// A limit of resources that is none.
const NO_LIMIT: u32 = u32::MAX;

/// Why an answer of the device cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the device's {structure} cannot be used: {reason}")]
pub struct IdentifyError {
    /// Which answer.
    pub structure: &'static str,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// An answer, read field by field.
#[derive(Clone, Copy)]
struct Answer<'a> {
    structure: &'static str,
    bytes: &'a [u8],
}

impl<'a> Answer<'a> {
    fn field<const N: usize>(&self, at: usize) -> Result<[u8; N], IdentifyError> {
        let tail = self.bytes.get(at..).ok_or_else(|| self.wrong("it is cut short"))?;
        tail.first_chunk().copied().ok_or_else(|| self.wrong("it is cut short"))
    }

    fn u8(&self, at: usize) -> Result<u8, IdentifyError> {
        self.field::<1>(at).map(|[byte]| byte)
    }

    fn u16(&self, at: usize) -> Result<u16, IdentifyError> {
        self.field(at).map(u16::from_le_bytes)
    }

    fn u32(&self, at: usize) -> Result<u32, IdentifyError> {
        self.field(at).map(u32::from_le_bytes)
    }

    fn u64(&self, at: usize) -> Result<u64, IdentifyError> {
        self.field(at).map(u64::from_le_bytes)
    }

    fn u128(&self, at: usize) -> Result<u128, IdentifyError> {
        self.field(at).map(u128::from_le_bytes)
    }

    fn wrong(&self, reason: &'static str) -> IdentifyError {
        IdentifyError { structure: self.structure, reason }
    }
}

/// Which commands a namespace takes (Base, "I/O Command Set").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandSet {
    /// Reads and writes anywhere.
    Nvm,
    /// Zones.
    Zoned,
    /// Another, by its number.
    Other(u8),
}

impl CommandSet {
    /// From the namespace's identification descriptors. One that names no command set is the oldest's.
    pub fn parse(bytes: &[u8]) -> Result<Self, IdentifyError> {
        let answer = Answer { structure: "list of namespace descriptors", bytes };
        let mut at = 0;
        while at + 4 <= bytes.len() {
            let (kind, length) = (answer.u8(at)?, answer.u8(at + 1)?);
            match kind {
                0 => break,
                4 => {
                    return Ok(match answer.u8(at + 4)? {
                        0 => Self::Nvm,
                        2 => Self::Zoned,
                        other => Self::Other(other),
                    });
                }
                _ => at += 4 + usize::from(length),
            }
        }
        Ok(Self::Nvm)
    }
}

/// A namespace, as formatted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Namespace {
    /// Its size in logical blocks.
    pub blocks: u64,
    /// Bytes of a logical block, a power of two from 512 to 64 KiB.
    pub block_bytes: u32,
    /// Bytes of metadata that come with each block.
    pub metadata_bytes: u16,
    /// Index of the format in use: the zoned structures have a table by it.
    pub format: u8,
    /// Logical blocks of the write that the device likes best; 1 if it does not say.
    pub best_write_blocks: u32,
    /// The endurance group it is in; 0: none.
    pub endurance_group: u16,
}

impl Namespace {
    /// From its identify structure.
    pub fn parse(bytes: &[u8]) -> Result<Self, IdentifyError> {
        let answer = Answer { structure: "namespace structure", bytes };
        let blocks = answer.u64(0)?;
        if blocks == 0 {
            return Err(answer.wrong("it has no blocks (the namespace is not active)"));
        }
        let flags = answer.u8(26)?;
        let formats_less_one = answer.u8(25)?;
        // Bits 6:5 are the upper part of the index where there are more than 16 formats.
        let upper = if formats_less_one > 15 { (flags >> 5 & 0b11) << 4 } else { 0 };
        let format = (flags & 0b1111) | upper;
        if format > formats_less_one {
            return Err(answer.wrong("it uses a format that it does not list"));
        }
        let at = 128 + 4 * usize::from(format);
        let metadata_bytes = answer.u16(at)?;
        let shift = answer.u8(at + 2)?;
        if !(9..=16).contains(&shift) {
            return Err(answer.wrong("its logical blocks are smaller than 512 bytes or larger than 64 KiB"));
        }
        let knows_best_write = answer.u8(24)? & 1 << 4 != 0;
        let best_write_blocks = if knows_best_write { u32::from(answer.u16(72)?) + 1 } else { 1 };
        Ok(Self {
            blocks,
            block_bytes: 1 << shift,
            metadata_bytes,
            format,
            best_write_blocks,
            endurance_group: answer.u16(102)?,
        })
    }
}

/// What matters of a controller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Controller {
    /// Most bytes of one command; `None`: no limit.
    pub transfer_bytes_max: Option<u64>,
    /// It can deallocate (dataset management).
    pub deallocates: bool,
    /// It has a write cache that loses power.
    pub volatile_cache: bool,
    /// It knows flexible data placement.
    pub placement: bool,
}

impl Controller {
    /// From its identify structure.
    pub fn parse(bytes: &[u8]) -> Result<Self, IdentifyError> {
        let answer = Answer { structure: "controller structure", bytes };
        Ok(Self {
            transfer_bytes_max: pages(answer.u8(77)?),
            placement: answer.u32(96)? & 1 << 19 != 0,
            deallocates: answer.u16(520)? & 1 << 2 != 0,
            volatile_cache: answer.u8(525)? & 1 != 0,
        })
    }
}

/// A size given as a power of two of memory pages, 0 for none.
fn pages(power: u8) -> Option<u64> {
    (power != 0)
        .then(|| PAGE_BYTES_MIN.checked_shl(power.into()).filter(|bytes| *bytes >= PAGE_BYTES_MIN))
        .flatten()
}

/// Most bytes of one zone append, from the zoned controller structure; `None`: as any other transfer.
pub fn append_bytes_max(bytes: &[u8]) -> Result<Option<u64>, IdentifyError> {
    let answer = Answer { structure: "zoned controller structure", bytes };
    Ok(pages(answer.u8(0)?))
}

/// How much a controller deallocates with one command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeallocateLimits {
    /// Most logical blocks of a range.
    pub range_blocks: u32,
    /// Most ranges of a command, each of that length.
    pub ranges: u32,
}

impl DeallocateLimits {
    /// From the identify structure of a controller for ordinary namespaces.
    pub fn parse(bytes: &[u8]) -> Result<Self, IdentifyError> {
        let answer = Answer { structure: "structure of a controller for ordinary namespaces", bytes };
        let or_none = |limit: u64| if limit == 0 { u64::MAX } else { limit };
        let ranges = or_none(answer.u8(3)?.into()).min(DEALLOCATE_RANGES_MAX.into());
        let blocks = or_none(answer.u64(8)?);
        let range_blocks = or_none(answer.u32(4)?.into()).min(u32::MAX.into()).min(blocks);
        // At least one: a range is no longer than all.
        let ranges = ranges.min(blocks / range_blocks);
        Ok(Self { range_blocks: range_blocks as u32, ranges: ranges as u32 })
    }

    /// The ranges that cover `blocks` blocks from `lba`: for each command, its ranges.
    pub fn commands(&self, lba: u64, blocks: u32) -> Vec<Vec<(u64, u32)>> {
        let starts = (0..blocks).step_by(self.range_blocks as usize);
        let ranges: Vec<_> =
            starts.map(|start| (lba + u64::from(start), (blocks - start).min(self.range_blocks))).collect();
        ranges.chunks(self.ranges as usize).map(<[_]>::to_vec).collect()
    }
}

/// What a zoned namespace says beyond [`Namespace`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ZonedNamespace {
    /// Logical blocks from the start of one zone to the start of the next.
    pub zone_blocks: u64,
    /// Zones that may be active (open or closed with a write pointer within); 0: no limit.
    pub active_max: u32,
    /// Zones that may be open; 0: no limit.
    pub open_max: u32,
}

impl ZonedNamespace {
    /// From the zoned identify structure of a namespace in use with `format`.
    pub fn parse(bytes: &[u8], format: u8) -> Result<Self, IdentifyError> {
        let answer = Answer { structure: "zoned namespace structure", bytes };
        let limit = |at| answer.u32(at).map(|less_one| if less_one == NO_LIMIT { 0 } else { less_one + 1 });
        let zone_blocks = answer.u64(2816 + 16 * usize::from(format))?;
        if zone_blocks == 0 {
            return Err(answer.wrong("its zones have no blocks"));
        }
        Ok(Self { zone_blocks, active_max: limit(4)?, open_max: limit(8)? })
    }
}

/// The condition of a zone. The kernel's zone report uses the same numbers (`enum blk_zone_cond`), and one more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZoneCondition {
    /// Has no write pointer: a conventional zone, which only the kernel reports.
    NotWritePointer,
    /// Nothing written.
    Empty,
    /// Opened by a write.
    ImplicitlyOpen,
    /// Opened by command.
    ExplicitlyOpen,
    /// Partly written, without an open resource.
    Closed,
    /// Takes no more writes, and may be reset no more.
    ReadOnly,
    /// Takes no more writes until it is reset.
    Full,
    /// Lost.
    Offline,
}

impl ZoneCondition {
    /// From its number.
    pub fn of(number: u8) -> Option<Self> {
        Some(match number {
            0x0 => Self::NotWritePointer,
            0x1 => Self::Empty,
            0x2 => Self::ImplicitlyOpen,
            0x3 => Self::ExplicitlyOpen,
            0x4 => Self::Closed,
            0xd => Self::ReadOnly,
            0xe => Self::Full,
            0xf => Self::Offline,
            _ => return None,
        })
    }
}

/// A zone as the device reports it. Positions are in logical blocks of the namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Zone {
    /// Its first block.
    pub start: u64,
    /// Blocks that can be written in it.
    pub capacity: u64,
    /// The next block to write. Means something only while it is open or closed.
    pub write_pointer: u64,
    /// Its condition.
    pub condition: ZoneCondition,
    /// Whether it must be written in sequence.
    pub sequential: bool,
}

/// The zones in the answer to [`Command::report_zones`](super::command::Command::report_zones).
pub fn parse_zones(bytes: &[u8]) -> Result<Vec<Zone>, IdentifyError> {
    let answer = Answer { structure: "zone report", bytes };
    let room = (bytes.len() / ZONE_BYTES).saturating_sub(1) as u64;
    let count = answer.u64(0)?.min(room) as usize;
    (1..=count)
        .map(|index| {
            let at = index * ZONE_BYTES;
            let condition = ZoneCondition::of(answer.u8(at + 1)? >> 4)
                .ok_or_else(|| answer.wrong("a zone is in a state that the specification does not know"))?;
            Ok(Zone {
                capacity: answer.u64(at + 8)?,
                start: answer.u64(at + 16)?,
                write_pointer: answer.u64(at + 24)?,
                condition,
                sequential: answer.u8(at)? & 0b1111 == 2,
            })
        })
        .collect()
}

/// Bytes of the log of placement configurations, from its header.
pub fn configurations_bytes(header: &[u8]) -> Result<u32, IdentifyError> {
    let header = Answer { structure: "log of placement configurations", bytes: header };
    let bytes = header.u32(4)?;
    if bytes <= CONFIGURATIONS_HEADER_BYTES {
        return Err(header.wrong("it says that there is nothing in it"));
    }
    // Logs are read by the dword.
    Ok(bytes / 4 * 4)
}

/// A configuration of flexible data placement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlacementConfiguration {
    /// Reclaim groups.
    pub reclaim_groups: u32,
    /// Reclaim unit handles.
    pub handles: u16,
    /// Bytes of a reclaim unit.
    pub unit_bytes: u64,
}

impl PlacementConfiguration {
    /// The configuration with `index` in the log of configurations.
    pub fn parse(bytes: &[u8], index: u8) -> Result<Self, IdentifyError> {
        let answer = Answer { structure: "log of placement configurations", bytes };
        // The count is one less than there are.
        if u16::from(index) > answer.u16(0)? {
            return Err(answer.wrong("the configuration in use is not listed"));
        }
        let mut at = 16_usize;
        for _ in 0..index {
            let length = usize::from(answer.u16(at)?);
            if length == 0 {
                return Err(answer.wrong("a configuration has no length"));
            }
            at += length;
        }
        let valid = answer.u8(at + 2)? & 1 << 7 != 0;
        let unit_bytes = answer.u64(at + 16)?;
        if !valid || unit_bytes == 0 {
            return Err(answer.wrong("the configuration in use is not valid"));
        }
        Ok(Self { reclaim_groups: answer.u32(at + 4)?, handles: answer.u16(at + 8)?, unit_bytes })
    }
}

/// The feature that turns placement on: index of the configuration in use, `None` while it is off.
pub fn placement_in_use(result: u32) -> Option<u8> {
    (result & 1 != 0).then_some((result >> 8) as u8)
}

/// One placement handle of a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlacementHandle {
    /// What a write names it by.
    pub placement: u16,
    /// Logical blocks that its reclaim unit still takes.
    pub unit_blocks_left: u64,
}

/// How many handles the answer to [`Command::handle_status`](super::command::Command::handle_status) would have if
/// there was room.
pub fn count_handles(bytes: &[u8]) -> Result<u16, IdentifyError> {
    Answer { structure: "status of placement handles", bytes }.u16(14)
}

/// The handles in the answer to [`Command::handle_status`](super::command::Command::handle_status).
pub fn parse_handles(bytes: &[u8]) -> Result<Vec<PlacementHandle>, IdentifyError> {
    let answer = Answer { structure: "status of placement handles", bytes };
    let room = bytes.len().saturating_sub(HANDLES_HEADER_BYTES) / HANDLE_BYTES;
    let count = usize::from(count_handles(bytes)?).min(room);
    (0..count)
        .map(|index| {
            let at = HANDLES_HEADER_BYTES + index * HANDLE_BYTES;
            Ok(PlacementHandle { placement: answer.u16(at)?, unit_blocks_left: answer.u64(at + 8)? })
        })
        .collect()
}

/// Who may use a reclaim unit handle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandleUse {
    /// Nobody does.
    Unused,
    /// The host said so, by creating a namespace with it.
    Host,
    /// The controller chose it.
    Controller,
    /// Another, by its number.
    Other(u8),
}

/// Bytes of the log of reclaim unit handles, from its header.
pub fn handle_use_bytes(header: &[u8]) -> Result<u32, IdentifyError> {
    let count = Answer { structure: "log of placement handles", bytes: header }.u16(0)?;
    Ok(HANDLE_USE_HEADER_BYTES + u32::from(count) * HANDLE_USE_BYTES)
}

/// Who uses each reclaim unit handle of the endurance group, by its number.
pub fn parse_handle_use(bytes: &[u8]) -> Result<Vec<HandleUse>, IdentifyError> {
    let answer = Answer { structure: "log of placement handles", bytes };
    let (header, entry) = (HANDLE_USE_HEADER_BYTES as usize, HANDLE_USE_BYTES as usize);
    (0..usize::from(answer.u16(0)?))
        .map(|index| {
            Ok(match answer.u8(header + entry * index)? & 0b111 {
                0 => HandleUse::Unused,
                1 => HandleUse::Host,
                2 => HandleUse::Controller,
                other => HandleUse::Other(other),
            })
        })
        .collect()
}

/// What an endurance group with flexible data placement wrote, since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PlacementStatistics {
    /// Bytes that hosts wrote, metadata included.
    pub host_bytes: u128,
    /// Bytes written to the media, the device's own copies included.
    pub media_bytes: u128,
    /// Bytes of the media erased.
    pub erased_bytes: u128,
}

impl PlacementStatistics {
    /// From the log of statistics.
    pub fn parse(bytes: &[u8]) -> Result<Self, IdentifyError> {
        let answer = Answer { structure: "log of placement statistics", bytes };
        Ok(Self {
            host_bytes: answer.u128(0)?,
            media_bytes: answer.u128(16)?,
            erased_bytes: answer.u128(32)?,
        })
    }

    /// Bytes written to the media for each byte that hosts wrote after `before` was taken; `None` if they wrote
    /// none, or the device's counters went backwards.
    pub fn amplification_since(&self, before: &Self) -> Option<f64> {
        let host = self.host_bytes.checked_sub(before.host_bytes)?;
        let media = self.media_bytes.checked_sub(before.media_bytes)?;
        (host != 0).then(|| media as f64 / host as f64)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An answer of `length` zeros with fields in it.
    fn answer(length: usize, fields: &[(usize, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; length];
        for (at, field) in fields {
            bytes[*at..*at + field.len()].copy_from_slice(field);
        }
        bytes
    }

    #[test]
    fn a_namespace_of_4_kib_blocks() {
        let bytes = answer(
            4096,
            &[
                (0, &[0, 0x80, 0, 0, 0, 0, 0, 0]),
                (24, &[0x10]),
                (25, &[7]),
                (26, &[0x04]),
                (72, &[31, 0]),
                (102, &[1, 0]),
                (128 + 16, &[0, 0, 12, 0]),
            ],
        );
        let expected = Namespace {
            blocks: 0x8000,
            block_bytes: 4096,
            metadata_bytes: 0,
            format: 4,
            best_write_blocks: 32,
            endurance_group: 1,
        };
        assert_eq!(Namespace::parse(&bytes), Ok(expected));
    }

    #[test]
    fn the_format_s_upper_bits_count_only_beyond_sixteen_formats() {
        let with = |formats_less_one: u8| {
            let fields: &[(usize, &[u8])] = &[
                (0, &[1]),
                (25, &[formats_less_one]),
                (26, &[0x21]),
                (128 + 4, &[0, 0, 9, 0]),
                (128 + 4 * 17, &[8, 0, 12, 0]),
            ];
            Namespace::parse(&answer(4096, fields)).unwrap()
        };
        assert_eq!((with(15).format, with(15).block_bytes, with(15).metadata_bytes), (1, 512, 0));
        assert_eq!((with(20).format, with(20).block_bytes, with(20).metadata_bytes), (17, 4096, 8));
    }

    #[test]
    fn namespaces_that_make_no_sense_are_refused() {
        let fields: [&[(usize, &[u8])]; 3] = [
            &[(128, &[0, 0, 12, 0])],
            &[(0, &[1]), (26, &[3]), (128 + 12, &[0, 0, 12, 0])],
            &[(0, &[1]), (128, &[0, 0, 8, 0])],
        ];
        for fields in fields {
            assert!(Namespace::parse(&answer(4096, fields)).is_err(), "{fields:?}");
        }
    }

    #[test]
    fn a_controller() {
        let bytes = answer(4096, &[(77, &[7]), (96, &[0, 0, 8, 0]), (520, &[4, 0]), (525, &[7])]);
        let expected = Controller {
            transfer_bytes_max: Some(512 << 10),
            deallocates: true,
            volatile_cache: true,
            placement: true,
        };
        assert_eq!(Controller::parse(&bytes), Ok(expected));
        assert_eq!(Controller::parse(&answer(4096, &[])).unwrap().transfer_bytes_max, None);
        assert_eq!(append_bytes_max(&[5]), Ok(Some(128 << 10)));
        assert_eq!(append_bytes_max(&[255]), Ok(None));
    }

    #[test]
    fn a_large_range_is_deallocated_in_as_many_as_the_controller_wants() {
        let limits = |fields: &[(usize, &[u8])]| DeallocateLimits::parse(&answer(4096, fields)).unwrap();
        let none = limits(&[]);
        assert_eq!((none.range_blocks, none.ranges), (u32::MAX, 256));
        assert_eq!(none.commands(7, 1 << 30), [[(7, 1 << 30)]]);
        let some = limits(&[(3, &[2]), (4, &[100])]);
        assert_eq!(
            some.commands(1000, 450),
            [vec![(1000, 100), (1100, 100)], vec![(1200, 100), (1300, 100)], vec![(1400, 50)]]
        );
        // Of a command in all, and less than of a range.
        assert_eq!(limits(&[(4, &[100]), (8, &[250])]), DeallocateLimits { range_blocks: 100, ranges: 2 });
        assert_eq!(limits(&[(4, &[100]), (8, &[30])]), DeallocateLimits { range_blocks: 30, ranges: 1 });
    }

    #[test]
    fn zones_of_8_mib_and_their_limits() {
        let bytes = answer(
            4096,
            &[(4, &[11, 0, 0, 0]), (8, &[7, 0, 0, 0]), (2816 + 16 * 4, &[0, 8, 0, 0, 0, 0, 0, 0])],
        );
        let expected = ZonedNamespace { zone_blocks: 2048, active_max: 12, open_max: 8 };
        assert_eq!(ZonedNamespace::parse(&bytes, 4), Ok(expected));
        let unlimited = answer(4096, &[(4, &[0xff; 8]), (2816, &[1])]);
        let expected = ZonedNamespace { zone_blocks: 1, active_max: 0, open_max: 0 };
        assert_eq!(ZonedNamespace::parse(&unlimited, 0), Ok(expected));
        assert!(ZonedNamespace::parse(&bytes, 0).is_err());
    }

    #[test]
    fn a_report_of_zones() {
        let zone = |number: u8, state: u8, write_pointer: u8| {
            answer(
                ZONE_BYTES,
                &[
                    (0, &[2, state << 4]),
                    (8, &[0, 6]),
                    (16, &[0, 8 * number]),
                    (24, &[write_pointer, 8 * number]),
                ],
            )
        };
        let mut bytes = answer(ZONE_BYTES, &[(0, &[9])]);
        bytes.extend(zone(0, 0xe, 0));
        bytes.extend(zone(1, 0x2, 5));
        let zones = parse_zones(&bytes).unwrap();
        // The header counts zones of the namespace, the buffer holds two.
        assert_eq!(zones.len(), 2);
        let open = Zone {
            start: 0x800,
            capacity: 0x600,
            write_pointer: 0x805,
            condition: ZoneCondition::ImplicitlyOpen,
            sequential: true,
        };
        assert_eq!((zones[0].condition, zones[1]), (ZoneCondition::Full, open));
        bytes.extend(zone(2, 0x7, 0));
        assert!(parse_zones(&bytes).is_err());
    }

    #[test]
    fn the_command_set_is_found_among_the_descriptors() {
        let uuid = [&[3, 16, 0, 0][..], &[0xab; 16]].concat();
        let zoned = [&uuid[..], &[4, 1, 0, 0, 2]].concat();
        assert_eq!(CommandSet::parse(&zoned), Ok(CommandSet::Zoned));
        assert_eq!(CommandSet::parse(&[&uuid[..], &[0; 8]].concat()), Ok(CommandSet::Nvm));
        assert_eq!(CommandSet::parse(&[4, 1, 0, 0, 1]), Ok(CommandSet::Other(1)));
        assert_eq!(CommandSet::parse(&[4, 1, 0, 0, 0]), Ok(CommandSet::Nvm));
    }

    #[test]
    fn a_placement_configuration() {
        let other = answer(80, &[(0, &[80, 0])]);
        let used = answer(
            80,
            &[(0, &[80, 0, 0x80]), (4, &[2, 0, 0, 0]), (8, &[4, 0]), (16, &[0, 0, 0, 1, 0, 0, 0, 0])],
        );
        let bytes = [answer(16, &[(0, &[1, 0])]), other, used].concat();
        let expected = PlacementConfiguration { reclaim_groups: 2, handles: 4, unit_bytes: 16 << 20 };
        assert_eq!(PlacementConfiguration::parse(&bytes, 1), Ok(expected));
        assert!(PlacementConfiguration::parse(&bytes, 0).is_err(), "it is not valid");
        assert!(PlacementConfiguration::parse(&bytes, 2).is_err(), "it is not listed");
        let sized = |bytes: u32| answer(16, &[(4, &bytes.to_le_bytes())]);
        assert_eq!(configurations_bytes(&sized(176)), Ok(176));
        assert_eq!(configurations_bytes(&sized(u32::MAX)), Ok(u32::MAX - 3));
        assert!(configurations_bytes(&sized(0)).is_err());
        assert!(configurations_bytes(&sized(16)).is_err());
        assert_eq!(placement_in_use(0x0101), Some(1));
        assert_eq!(placement_in_use(0x0100), None);
    }

    #[test]
    fn placement_handles_and_who_uses_them() {
        let one = answer(HANDLE_BYTES, &[(0, &[3, 1, 3, 0]), (8, &[0, 16])]);
        let bytes = [answer(HANDLES_HEADER_BYTES, &[(14, &[9, 0])]), one].concat();
        assert_eq!(
            parse_handles(&bytes),
            Ok(vec![PlacementHandle { placement: 0x103, unit_blocks_left: 4096 }])
        );
        let bytes = answer(24, &[(0, &[2, 0]), (8, &[1]), (16, &[2])]);
        assert_eq!(handle_use_bytes(&bytes), Ok(24));
        assert_eq!(parse_handle_use(&bytes), Ok(vec![HandleUse::Host, HandleUse::Controller]));
        assert!(parse_handle_use(&bytes[..16]).is_err(), "one is missing");
    }

    #[test]
    fn placement_statistics() {
        let bytes = answer(64, &[(0, &[0, 4]), (16, &[0, 6]), (32, &[0, 0, 1]), (47, &[1])]);
        let found = PlacementStatistics::parse(&bytes).unwrap();
        assert_eq!((found.host_bytes, found.media_bytes), (1024, 1536));
        assert_eq!(found.erased_bytes, 1 << 120 | 1 << 16);
        assert_eq!(found.amplification_since(&PlacementStatistics::default()), Some(1.5));
        assert_eq!(found.amplification_since(&found), None);
        assert_eq!(PlacementStatistics::default().amplification_since(&found), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged_without_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..5000),
            index: u8,
            word: u32,
        ) {
            let _ = CommandSet::parse(&bytes);
            let _ = Namespace::parse(&bytes);
            let _ = Controller::parse(&bytes);
            let _ = append_bytes_max(&bytes);
            if let Ok(limits) = DeallocateLimits::parse(&bytes) {
                prop_assert!(limits.range_blocks > 0 && limits.ranges > 0);
            }
            let _ = ZonedNamespace::parse(&bytes, index);
            let _ = parse_zones(&bytes);
            let _ = PlacementConfiguration::parse(&bytes, index);
            let _ = configurations_bytes(&bytes);
            let _ = placement_in_use(word);
            let _ = count_handles(&bytes);
            let _ = parse_handles(&bytes);
            let _ = handle_use_bytes(&bytes);
            let _ = parse_handle_use(&bytes);
            if let Ok(found) = PlacementStatistics::parse(&bytes) {
                let _ = found.amplification_since(&PlacementStatistics::default());
            }
        }
    }
}
