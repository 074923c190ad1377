//! Flexible data placement: an ordinary namespace whose writes say which reclaim unit they go to.
//!
//! The device still maps and cleans, but it erases in **reclaim units**, and every **placement handle** fills a unit of
//! its own. A chunk here is as large as a unit; the writes of a chunk carry the handle of its lifetime class, and a
//! reset deallocates the whole chunk. So a unit holds the data of one chunk, dies as a whole, and the device
//! has nothing to move.
//!
//! ```text
//! class --first come--> handle --update at a chunk's first write--> empty reclaim unit = chunk
//! ```
//!
//! A unit is filled by everything that its handle writes, whatever the addresses. For a unit to hold exactly one chunk,
//! the handle is sent to an empty unit when a chunk begins (if the last one does not end at its unit's end), and a
//! handle should serve one open chunk at a time: as long as a slice has no more classes in use than handles, and
//! fills the chunks of a class one after the other ([`Media::expect_lifetime`]), it does.
//! Where it does not, nothing is wrong but the amplification, which the [statistics](FdpDevice::statistics) show.
//!
//! The device keeps no write pointers, so the host does, as on a file: after a start every chunk is closed and
//! readable to its end until it is reset.
//!
//! Invariants:
//! - Durable writes carry FUA, which concerns nothing but themselves; a flush is the device's own. One that failed, or was
//!   dropped before it ended, fails all later ones, of every slice.
//! - A chunk keeps its handle until it is reset.
//! - A write that failed closes its chunk: it takes no more in this life.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::admission::{Admission, admitted_media};
use crate::barrier::Barrier;
use crate::buffer::AlignedBuf;
use crate::chunk_order::{ChunkOrder, Sharing};
use crate::chunk_table::ChunkTable;
use crate::claims::{Claim, Claims};
use crate::geometry::{BEST_WRITE_BYTES, ChunkId, Geometry};
use crate::media::{ChunkInfo, ChunkState, Durability, LifetimeClass, Media, MediaCounters, MediaError};
use crate::nvme::command::{
    Command, DEALLOCATE_RANGE_BYTES, IDENTIFY_BYTES, Identify, PlacementLog, deallocate_range,
};
use crate::nvme::identify::{
    CONFIGURATIONS_HEADER_BYTES, CommandSet, DeallocateLimits, HANDLE_BYTES, HANDLE_USE_HEADER_BYTES,
    HANDLES_HEADER_BYTES, HandleUse, IdentifyError, PlacementConfiguration, PlacementHandle,
    PlacementStatistics, STATISTICS_BYTES, configurations_bytes, count_handles, handle_use_bytes,
    parse_handle_use, parse_handles, placement_in_use,
};
use crate::nvme::namespace::{NamespaceError, Passthrough};
use crate::nvme::ring::{DEPTH, Ring};
use crate::nvme::status::Fault;

/// Bytes of the largest log that is believed. As many reclaim unit handles as can be numbered take half of it in the log of
/// their use; a configuration takes some hundred bytes.
const LOG_BYTES_MAX: u32 = 1 << 20;

/// A run of reclaim units, and the handles with which they are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FdpSlice {
    /// Its first chunk.
    pub first_chunk: u32,
    /// How many chunks it has.
    pub chunks: u32,
    /// Placement handles, by their place in [`FdpDevice::handles`]. No other slice should have them.
    pub handles: Vec<usize>,
}

/// An open namespace with flexible data placement. Clones share it; any thread may take its slice.
#[derive(Debug, Clone)]
pub struct FdpDevice {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    namespace: Passthrough,
    configuration: PlacementConfiguration,
    chunks: u32,
    chunk_sectors: u32,
    /// Placement handles of the namespace, in number: it keeps them as long as it exists.
    handles: usize,
    deallocate: DeallocateLimits,
    claims: Arc<Claims>,
    barrier: Barrier,
}

impl FdpDevice {
    /// Opens and locks a namespace by its character device (`/dev/ngXnY`). Blocks.
    ///
    /// # Errors
    /// The reason why it cannot be used, and what to do.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, NamespaceError> {
        let path = path.as_ref();
        let owned = || path.to_path_buf();
        let namespace = Passthrough::open(path)?;
        match namespace.command_set {
            CommandSet::Nvm => {}
            CommandSet::Zoned => return Err(NamespaceError::Zoned { path: owned() }),
            CommandSet::Other(_) => return Err(no_placement(owned(), "it is of another command set")),
        }
        if !namespace.controller.placement {
            return Err(no_placement(owned(), "the controller does not know them"));
        }
        if !namespace.controller.deallocates {
            return Err(no_placement(owned(), "the controller cannot deallocate"));
        }
        let group = namespace.namespace.endurance_group;
        if group == 0 {
            return Err(no_placement(owned(), "the namespace is in no endurance group"));
        }
        let feature =
            namespace.admin("ask for the placement of", Command::placement_feature(group), &mut [])?;
        let index = placement_in_use(feature)
            .ok_or_else(|| no_placement(owned(), "flexible data placement is off in its endurance group"))?;
        let log = PlacementLog::Configurations;
        let answer = read_log(&namespace, log, CONFIGURATIONS_HEADER_BYTES, configurations_bytes)?;
        let configuration = PlacementConfiguration::parse(&answer, index).map_err(namespace.bad_answer())?;
        // A controller that does not know the question has no limits to tell.
        let limits = namespace.identify(Identify::NvmController);
        let limits = limits.unwrap_or_else(|_| vec![0; IDENTIFY_BYTES as usize]);
        let deallocate = DeallocateLimits::parse(&limits).map_err(namespace.bad_answer())?;
        let handles = handles_of(&namespace)?.len();
        if handles == 0 {
            return Err(no_placement(owned(), "the namespace was made without"));
        }
        let sector_bytes = u64::from(namespace.namespace.block_bytes);
        let chunk_sectors = u32::try_from(configuration.unit_bytes / sector_bytes)
            .ok()
            .filter(|sectors| *sectors != 0 && configuration.unit_bytes.is_multiple_of(sector_bytes))
            .ok_or_else(|| {
                no_placement(owned(), "its reclaim units are no number of blocks that can be addressed")
            })?;
        let chunks = namespace.namespace.blocks / u64::from(chunk_sectors);
        let chunks = u32::try_from(chunks).unwrap_or(u32::MAX);
        if chunks == 0 {
            return Err(no_placement(owned(), "it is smaller than one reclaim unit"));
        }
        let (claims, barrier) = (Arc::default(), Barrier::default());
        let shared =
            Shared { namespace, configuration, chunks, chunk_sectors, handles, deallocate, claims, barrier };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.shared.namespace.path
    }

    /// Chunks of the whole device: reclaim units that fit it.
    pub fn chunks(&self) -> u32 {
        self.shared.chunks
    }

    /// The configuration in use.
    pub fn configuration(&self) -> &PlacementConfiguration {
        &self.shared.configuration
    }

    /// The handles of the namespace, with what is left of their units now. Blocks for two commands.
    ///
    /// # Errors
    /// If the device refuses, or its answer makes no sense.
    pub fn handles(&self) -> Result<Vec<PlacementHandle>, NamespaceError> {
        handles_of(&self.shared.namespace)
    }

    /// What the endurance group wrote since it was made: by hosts, and to the media. It may hold other namespaces as well.
    /// Blocks for an admin command.
    ///
    /// # Errors
    /// If the device refuses, or its answer makes no sense.
    pub fn statistics(&self) -> Result<PlacementStatistics, NamespaceError> {
        let namespace = &self.shared.namespace;
        let answer = log_part(namespace, PlacementLog::Statistics, 0, STATISTICS_BYTES)?;
        PlacementStatistics::parse(&answer).map_err(namespace.bad_answer())
    }

    /// Who uses each reclaim unit handle of the endurance group. Blocks for two admin commands.
    ///
    /// # Errors
    /// If the device refuses, or its answer makes no sense.
    pub fn handle_use(&self) -> Result<Vec<HandleUse>, NamespaceError> {
        let namespace = &self.shared.namespace;
        let log = PlacementLog::HandleUsage;
        let answer = read_log(namespace, log, HANDLE_USE_HEADER_BYTES, handle_use_bytes)?;
        parse_handle_use(&answer).map_err(namespace.bad_answer())
    }

    /// The slice of a shard if the device is divided evenly. Each has handles of its own where there are enough;
    /// else shards share them in turn.
    ///
    /// # Errors
    /// If it has fewer chunks than there are shards.
    pub fn share(&self, shard: u32, shards: u32) -> Result<FdpSlice, NamespaceError> {
        let Shared { chunks, handles, .. } = *self.shared;
        if shards == 0 || chunks / shards == 0 {
            let path = self.path().to_path_buf();
            return Err(NamespaceError::TooFew { path, what: "reclaim units", has: chunks, shards });
        }
        if shard >= shards {
            return Err(self.no_slice("the shard is beyond the last"));
        }
        let chunks = chunks / shards;
        let handles = divide_handles(handles, shard, shards);
        Ok(FdpSlice { first_chunk: shard * chunks, chunks, handles })
    }

    /// Hands out a slice. Call it on the owner's thread; operations run on that thread's monoio runtime. The slice is
    /// given back when the value is dropped, unless a write or a reset was dropped in flight. Blocks for two commands.
    ///
    /// # Errors
    /// If it is not all there, in part another's, or names no handle; or the device does not say where its handles stand.
    pub fn slice(&self, slice: &FdpSlice) -> Result<FdpMedia, NamespaceError> {
        let Shared { namespace, chunks, chunk_sectors, claims, .. } = &*self.shared;
        let claim = slice
            .first_chunk
            .checked_add(slice.chunks)
            .ok_or("it reaches beyond the device's end")
            .and_then(|end| claims.take(slice.first_chunk..end, *chunks, 0, 0))
            .map_err(|reason| self.no_slice(reason))?;
        // Asked now: whoever had the slice before wrote with them.
        let handles = self.handles()?;
        let own: Option<Vec<_>> = slice.handles.iter().map(|index| handles.get(*index).copied()).collect();
        let own = own
            .filter(|own| !own.is_empty())
            .ok_or_else(|| self.no_slice("it names no handle, or one too many"))?;
        let path = self.path();
        let device =
            namespace.device.try_clone().map_err(NamespaceError::io("duplicate the descriptor of", path))?;
        let ring = Ring::new(device, DEPTH).map_err(NamespaceError::io("set up a ring for", path))?;
        let sector_bytes = namespace.namespace.block_bytes;
        let best = match namespace.namespace.best_write_blocks {
            0 | 1 => BEST_WRITE_BYTES / sector_bytes,
            best => best,
        };
        let geometry = Geometry {
            groups: 1,
            parallel_units: 1,
            chunks: slice.chunks,
            chunk_sectors: *chunk_sectors,
            sector_bytes,
            ws_min: 1,
            ws_opt: best.clamp(1, *chunk_sectors),
            mw_cunits: 0,
            max_open: 0,
        };
        Ok(FdpMedia {
            ring,
            nsid: namespace.nsid,
            transfer_sectors_max: namespace.transfer_blocks_max,
            first_sector: u64::from(slice.first_chunk) * u64::from(*chunk_sectors),
            admission: Admission::new(geometry, ChunkTable::all_closed(geometry)),
            order: ChunkOrder::lenient(slice.chunks),
            placement: RefCell::new(Placement::new(&own, *chunk_sectors, slice.chunks)),
            claim,
            device: self.clone(),
        })
    }

    fn no_slice(&self, reason: &'static str) -> NamespaceError {
        NamespaceError::Slice { path: self.path().to_path_buf(), reason }
    }
}

/// The placement handles of a namespace. Asked for twice: first how many, then for exactly those, since a device may
/// refuse a buffer that it cannot fill.
fn handles_of(namespace: &Passthrough) -> Result<Vec<PlacementHandle>, NamespaceError> {
    let ask = |bytes: usize| {
        let mut answer = vec![0; bytes];
        let status = Command::handle_status(namespace.nsid, bytes as u32);
        namespace.io("ask for the placement handles of", status, &mut answer)?;
        Ok(answer)
    };
    let count = count_handles(&ask(HANDLES_HEADER_BYTES)?).map_err(namespace.bad_answer())?;
    let answer = ask(HANDLES_HEADER_BYTES + usize::from(count) * HANDLE_BYTES)?;
    parse_handles(&answer).map_err(namespace.bad_answer())
}

/// All of a log whose header says how many bytes there are.
fn read_log(
    namespace: &Passthrough,
    log: PlacementLog,
    header_bytes: u32,
    log_bytes: fn(&[u8]) -> Result<u32, IdentifyError>,
) -> Result<Vec<u8>, NamespaceError> {
    // The kernel does not divide admin commands.
    let part_bytes_max = namespace.transfer_blocks_max.saturating_mul(namespace.namespace.block_bytes);
    let log_bytes = |header: &[u8]| log_bytes(header).and_then(believed).map_err(namespace.bad_answer());
    whole_log(header_bytes, part_bytes_max, log_bytes, |from, bytes| log_part(namespace, log, from, bytes))
}

fn believed(bytes: u32) -> Result<u32, IdentifyError> {
    if bytes > LOG_BYTES_MAX {
        let reason = "it claims to be longer than any that makes sense";
        return Err(IdentifyError { structure: "placement log", reason });
    }
    Ok(bytes)
}

/// A log in parts that `read` gives, of so many bytes from an offset: first the header, to learn the length.
fn whole_log<E>(
    header_bytes: u32,
    part_bytes_max: u32,
    log_bytes: impl FnOnce(&[u8]) -> Result<u32, E>,
    mut read: impl FnMut(u32, u32) -> Result<Vec<u8>, E>,
) -> Result<Vec<u8>, E> {
    let bytes = log_bytes(&read(0, header_bytes)?)?;
    let mut whole = Vec::with_capacity(bytes as usize);
    for from in (0..bytes).step_by(part_bytes_max as usize) {
        whole.extend(read(from, part_bytes_max.min(bytes - from))?);
    }
    Ok(whole)
}

fn log_part(
    namespace: &Passthrough,
    log: PlacementLog,
    from: u32,
    bytes: u32,
) -> Result<Vec<u8>, NamespaceError> {
    let mut answer = vec![0; bytes as usize];
    let command = Command::placement_log(log, namespace.namespace.endurance_group, bytes).from_offset(from);
    namespace.admin("read a placement log of", command, &mut answer)?;
    Ok(answer)
}

fn no_placement(path: PathBuf, reason: &'static str) -> NamespaceError {
    NamespaceError::NoPlacement { path, reason }
}

/// Which of `count` handles a shard gets: as many as the others and none of theirs, or one that it shares.
fn divide_handles(count: usize, shard: u32, shards: u32) -> Vec<usize> {
    let (shard, shards) = (shard as usize, shards as usize);
    match count / shards {
        0 => vec![shard % count],
        each => (shard * each..(shard + 1) * each).collect(),
    }
}

/// A handle, and what this host knows of the unit it fills.
#[derive(Debug)]
struct Handle {
    placement: u16,
    /// Sectors that the unit still takes.
    unit_sectors_left: u64,
    /// Chunks that are written with it now.
    open: u32,
}

/// Which handle each chunk is written with.
#[derive(Debug)]
struct Placement {
    unit_sectors: u64,
    handles: Vec<Handle>,
    /// Classes in the order they were first met: the place in here, modulo the handles, is the class's handle.
    classes: Vec<LifetimeClass>,
    expected: Vec<LifetimeClass>,
    /// The handle of each chunk that was begun in this run.
    of_chunk: Vec<Option<usize>>,
}

impl Placement {
    fn new(handles: &[PlacementHandle], unit_sectors: u32, chunks: u32) -> Self {
        let handle = |handle: &PlacementHandle| Handle {
            placement: handle.placement,
            unit_sectors_left: handle.unit_blocks_left,
            open: 0,
        };
        Self {
            unit_sectors: unit_sectors.into(),
            handles: handles.iter().map(handle).collect(),
            classes: Vec::new(),
            expected: vec![LifetimeClass::default(); chunks as usize],
            of_chunk: vec![None; chunks as usize],
        }
    }

    /// Begins a chunk: its handle, and whether that has to go on in an empty unit first. Not while another chunk
    /// is being written with it: that one would be torn over two units.
    fn begin(&mut self, chunk: ChunkId) -> (u16, bool) {
        let class = self.expected[chunk.0 as usize];
        let known = self.classes.iter().position(|known| *known == class);
        let place = known.unwrap_or_else(|| {
            self.classes.push(class);
            self.classes.len() - 1
        });
        let index = place % self.handles.len();
        self.of_chunk[chunk.0 as usize] = Some(index);
        let handle = &mut self.handles[index];
        handle.open += 1;
        (handle.placement, handle.open == 1 && handle.unit_sectors_left != self.unit_sectors)
    }

    /// The handle went on in an empty unit.
    fn updated(&mut self, chunk: ChunkId) {
        let unit_sectors = self.unit_sectors;
        if let Some(handle) = self.handle(chunk) {
            handle.unit_sectors_left = unit_sectors;
        }
    }

    /// Counts a write into a chunk's unit. Returns the handle that it carries.
    fn write(&mut self, chunk: ChunkId, sectors: u32) -> Option<u16> {
        let unit_sectors = self.unit_sectors;
        let handle = self.handle(chunk)?;
        // A full unit is followed by an empty one, and the write may go over.
        let over = u64::from(sectors) % unit_sectors;
        handle.unit_sectors_left = match handle.unit_sectors_left.checked_sub(over) {
            None => handle.unit_sectors_left + unit_sectors - over,
            Some(0) => unit_sectors,
            Some(left) => left,
        };
        Some(handle.placement)
    }

    /// The chunk takes no more writes.
    fn end(&mut self, chunk: ChunkId) {
        if let Some(handle) = self.handle(chunk) {
            handle.open -= 1;
        }
        self.of_chunk[chunk.0 as usize] = None;
    }

    fn handle(&mut self, chunk: ChunkId) -> Option<&mut Handle> {
        self.of_chunk[chunk.0 as usize].map(|index| &mut self.handles[index])
    }
}

/// One slice of an [`FdpDevice`]. Operations must be awaited within a monoio runtime with io_uring; elsewhere they
/// panic.
#[derive(Debug)]
pub struct FdpMedia {
    ring: Ring,
    nsid: u32,
    transfer_sectors_max: u32,
    first_sector: u64,
    admission: Admission,
    /// The first write of a chunk goes alone, for the update of its handle; the others share.
    order: ChunkOrder,
    placement: RefCell<Placement>,
    claim: Claim,
    /// Keeps the device locked as long as something may be written.
    device: FdpDevice,
}

impl FdpMedia {
    fn lba(&self, chunk: ChunkId, sector: u32) -> u64 {
        let chunk_sectors = u64::from(self.geometry().chunk_sectors);
        self.first_sector + u64::from(chunk.0) * chunk_sectors + u64::from(sector)
    }

    /// A write from its admission to its completion; returns where it went.
    async fn place(
        &self,
        operation: &'static str,
        chunk: ChunkId,
        sector: Option<u32>,
        buf: AlignedBuf,
        durability: Durability,
    ) -> (Result<u32, MediaError>, AlignedBuf) {
        let (start, sectors) = match self.admission.write(operation, chunk, sector, buf.len()) {
            Ok(admitted) => admitted,
            Err(error) => return (Err(error), buf),
        };
        let opens = start == 0;
        let mut passage = self.order.passage(chunk);
        let sharing = if opens { Sharing::Alone } else { Sharing::Shared };
        let (result, buf) = match passage.enter(sharing, opens).await {
            Err(broken) => (Err(broken.told(operation, chunk, start)), buf),
            Ok(()) => {
                if opens {
                    self.begin_unit(chunk).await;
                }
                let (written, buf) = self.write_sectors(chunk, start, sectors, buf, durability).await;
                let result = written.map_err(|(sector, fault)| {
                    passage.break_off(sector, matches!(fault, Fault::WriteFailed));
                    let mut table = self.admission.table();
                    let write_pointer = table.write_pointer(chunk);
                    table.set(chunk, ChunkState::Closed, write_pointer);
                    fault.at(operation, chunk, sector)
                });
                (result.map(|()| start), buf)
            }
        };
        let mut table = self.admission.table();
        table.end_write(chunk);
        // Not before the last of those in flight: they need the handle.
        if table.state(chunk) == ChunkState::Closed && !table.is_written(chunk) {
            self.placement.borrow_mut().end(chunk);
        }
        drop(table);
        passage.leave();
        (result, buf)
    }

    /// Chooses the handle of a chunk that begins, and sends it to an empty unit if need be.
    async fn begin_unit(&self, chunk: ChunkId) {
        let (placement, update) = self.placement.borrow_mut().begin(chunk);
        if update {
            let mut buf = AlignedBuf::zeroed(size_of::<u16>());
            buf.copy_from_slice(&placement.to_le_bytes());
            let (result, _) = self.ring.transfer(1, buf, 0, |_| Command::handle_update(self.nsid)).await;
            // If the device will not, the chunk shares a unit with another: no data is at stake, and the write follows.
            if result.is_ok() {
                self.placement.borrow_mut().updated(chunk);
            }
        }
    }

    /// Deallocates a whole chunk.
    async fn deallocate(&self, chunk: ChunkId) -> Result<(), Fault> {
        let limits = self.device.shared.deallocate;
        for ranges in limits.commands(self.lba(chunk, 0), self.geometry().chunk_sectors) {
            let mut buf = AlignedBuf::zeroed(ranges.len() * DEALLOCATE_RANGE_BYTES);
            for (place, (lba, blocks)) in buf.chunks_mut(DEALLOCATE_RANGE_BYTES).zip(&ranges) {
                place.copy_from_slice(&deallocate_range(*lba, *blocks));
            }
            let command = Command::deallocate(self.nsid, ranges.len() as u32);
            let (result, _) = self.ring.transfer(1, buf, 0, |_| command).await;
            result.map_err(|failed| failed.fault)?;
        }
        Ok(())
    }

    /// Writes all parts at once. A failure says the first sector of the first part that failed.
    async fn write_sectors(
        &self,
        chunk: ChunkId,
        start: u32,
        sectors: u32,
        buf: AlignedBuf,
        durability: Durability,
    ) -> (Result<(), (u32, Fault)>, AlignedBuf) {
        let placement = self.placement.borrow_mut().write(chunk, sectors);
        let (max, sector_bytes) = (self.transfer_sectors_max, self.geometry().sector_bytes);
        let durable = durability == Durability::Durable;
        let command = |part: u32| {
            let done = part * max;
            let part_sectors = (sectors - done).min(max);
            let lba = self.lba(chunk, start + done);
            let write = Command::write(self.nsid, lba, part_sectors, sector_bytes, durable);
            placement.map_or(write, |placement| write.placed(placement))
        };
        let (result, buf) = self.ring.transfer(sectors.div_ceil(max), buf, 0, command).await;
        (result.map(drop).map_err(|failed| (start + failed.part * max, failed.fault)), buf)
    }
}

impl Media for FdpMedia {
    admitted_media!();

    async fn read(
        &self,
        chunk: ChunkId,
        sector: u32,
        buf: AlignedBuf,
    ) -> (Result<(), MediaError>, AlignedBuf) {
        let sectors = match self.admission.read(chunk, sector, buf.len()) {
            Ok(sectors) => sectors,
            Err(error) => return (Err(error), buf),
        };
        let (max, sector_bytes) = (self.transfer_sectors_max, self.geometry().sector_bytes);
        let command = |part: u32| {
            let done = part * max;
            let part_sectors = (sectors - done).min(max);
            Command::read(self.nsid, self.lba(chunk, sector + done), part_sectors, sector_bytes)
        };
        let (result, buf) = self.ring.transfer(sectors.div_ceil(max), buf, 0, command).await;
        let result = result.map(drop);
        (result.map_err(|failed| failed.fault.at("read", chunk, sector + failed.part * max)), buf)
    }

    fn expect_lifetime(&self, chunk: ChunkId, class: LifetimeClass) {
        if let Some(expected) = self.placement.borrow_mut().expected.get_mut(chunk.0 as usize) {
            *expected = class;
        }
    }

    async fn reset(&self, chunk: ChunkId) -> Result<(), MediaError> {
        self.admission.reset(chunk)?;
        let result = self.deallocate(chunk).await;
        self.admission.table().end_reset(chunk, result.is_ok());
        if result.is_ok() {
            let mut placement = self.placement.borrow_mut();
            placement.end(chunk);
            placement.expected[chunk.0 as usize] = LifetimeClass::default();
        }
        result.map_err(|fault| fault.at("reset", chunk, 0))
    }

    async fn finish(&self, chunk: ChunkId) -> Result<(), MediaError> {
        let mut table = self.admission.table();
        table.check_finish(chunk)?;
        table.finish(chunk);
        self.placement.borrow_mut().end(chunk);
        Ok(())
    }

    async fn flush(&self) -> Result<(), MediaError> {
        self.admission.flush();
        let flush = async {
            let flushed = self.ring.command(Command::flush(self.nsid)).await;
            flushed.map_err(|fault| fault.at("flush", ChunkId(0), 0))
        };
        self.device.shared.barrier.flush(flush).await
    }
}

impl Drop for FdpMedia {
    fn drop(&mut self) {
        // A write or a reset that was dropped may still land: whoever took the slice next would not expect it.
        if !self.admission.is_at_rest() {
            self.claim.keep();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT_SECTORS: u32 = 16;

    fn placement(handles: u16) -> Placement {
        let handle = |placement| PlacementHandle { placement, unit_blocks_left: UNIT_SECTORS.into() };
        Placement::new(&(0..handles).map(handle).collect::<Vec<_>>(), UNIT_SECTORS, 8)
    }

    fn begin(placement: &mut Placement, chunk: u32, class: u8) -> (u16, bool) {
        placement.expected[chunk as usize] = LifetimeClass(class);
        placement.begin(ChunkId(chunk))
    }

    #[test]
    fn classes_get_handles_of_their_own_as_long_as_there_are_some() {
        let mut placement = placement(3);
        let handles: Vec<u16> = (0..)
            .zip([40, 8, 12, 8, 200])
            .map(|(chunk, class)| begin(&mut placement, chunk, class).0)
            .collect();
        // Not by the class's number: 40, 8 and 12 would leave handles unused, or share one.
        assert_eq!(handles, [0, 1, 2, 1, 0]);
    }

    #[test]
    fn a_chunk_begins_in_an_empty_unit() {
        let mut placement = placement(2);
        let chunk = ChunkId;
        assert_eq!(begin(&mut placement, 0, 0), (0, false));
        for _ in 0..4 {
            assert_eq!(placement.write(chunk(0), 4), Some(0));
        }
        placement.end(chunk(0));
        // The whole chunk filled the unit.
        assert_eq!(begin(&mut placement, 1, 0), (0, false));
        placement.write(chunk(1), 5);
        // Another chunk is open in this unit.
        assert_eq!(begin(&mut placement, 2, 0), (0, false));
        placement.end(chunk(1));
        placement.end(chunk(2));
        assert_eq!(begin(&mut placement, 3, 0), (0, true));
        placement.updated(chunk(3));
        placement.end(chunk(3));
        assert_eq!(begin(&mut placement, 4, 0), (0, false));
        assert_eq!(begin(&mut placement, 5, 1), (1, false));
    }

    #[test]
    fn a_write_over_the_unit_s_end_goes_on_in_the_next() {
        let mut placement = placement(1);
        begin(&mut placement, 0, 0);
        for (sectors, left) in [(12, 4), (6, 14), (14, 16), (16, 16), (1, 15), (16, 15), (33, 14)] {
            placement.write(ChunkId(0), sectors);
            assert_eq!(placement.handles[0].unit_sectors_left, left, "after {sectors}");
        }
    }

    #[test]
    fn shards_share_handles_only_where_there_are_too_few() {
        let all: Vec<_> = (0..3).map(|shard| divide_handles(8, shard, 3)).collect();
        assert_eq!(all, [vec![0, 1], vec![2, 3], vec![4, 5]]);
        let all: Vec<_> = (0..5).map(|shard| divide_handles(2, shard, 5)).collect();
        assert_eq!(all, [[0], [1], [0], [1], [0]]);
    }

    /// The configuration in use is the last of many that list a hundred handles each: far beyond one page.
    #[test]
    fn a_log_is_read_to_its_end() {
        const INDEX: u8 = 20;
        const DESCRIPTOR_BYTES: usize = 64 + 4 * 100;
        let mut device = vec![0; CONFIGURATIONS_HEADER_BYTES as usize];
        device[0] = INDEX;
        for index in 0..=u64::from(INDEX) {
            let mut descriptor = [0; DESCRIPTOR_BYTES];
            descriptor[..2].copy_from_slice(&(DESCRIPTOR_BYTES as u16).to_le_bytes());
            descriptor[2] = 1 << 7;
            descriptor[16..24].copy_from_slice(&(1000 + index).to_le_bytes());
            device.extend(descriptor);
        }
        let bytes = device.len() as u32;
        device[4..8].copy_from_slice(&bytes.to_le_bytes());
        for part_bytes_max in [512, 4096, bytes, 1 << 18] {
            let read = |from: u32, bytes: u32| {
                assert!(bytes <= part_bytes_max && from.is_multiple_of(4) && bytes.is_multiple_of(4));
                Ok(device[from as usize..][..bytes as usize].to_vec())
            };
            let told = |header: &[u8]| configurations_bytes(header).and_then(believed);
            let log = whole_log(CONFIGURATIONS_HEADER_BYTES, part_bytes_max, told, read).unwrap();
            assert_eq!(PlacementConfiguration::parse(&log, INDEX).unwrap().unit_bytes, 1020);
        }
        assert!(believed(u32::MAX).is_err());
    }

    #[test]
    fn what_has_no_placement_is_refused_with_the_reason() {
        assert!(matches!(FdpDevice::open("/dev/none"), Err(NamespaceError::Missing { .. })));
        assert!(matches!(FdpDevice::open("/dev/null"), Err(NamespaceError::NotADevice { .. })));
    }
}
