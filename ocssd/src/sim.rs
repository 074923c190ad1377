//! A medium in memory that behaves as badly as a real one may, repeatably from a seed.
//!
//! It keeps two images: the *platter*, which survives a power cut, and a *cache* of changes that
//! completed but that no flush has covered. A cut gives every cached change to chance, sector by sector;
//! writes in flight are torn. A host that reads correct data back after that, for every seed and every
//! point of the cut, relies on nothing the device did not promise.
//!
//! | module | of what |
//! |---|---|
//! | `options` | how the device behaves |
//! | `faults` | what else goes wrong, by chance or on request, and the log of it |
//! | `write` | writes: torn, lost, misdirected, corrupted, chunks that fail or close early |
//! | `latency` | yields, delays, spikes and stalls |
//! | `cells` | platter and cache of a chunk |
//! | `power` | power cuts and restarts of the host |
//!
//! Invariants:
//! - The same seed and the same sequence of polls give the same behaviour: no clock, no thread, no
//!   address-dependent order.
//! - A [`Durability::Durable`] write reaches the platter alone; what was cached before it stays cached.
//! - A flush covers what **completed before it was submitted**, nothing later.
//! - Nothing of a write is visible to a read before the write completed.
//! - An operation submitted before a power cut or a restart never takes effect, or reports success, after it.

mod cells;
mod faults;
mod latency;
mod options;
mod power;
mod write;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::rc::Rc;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

use self::cells::{Cached, Cells, Change};
use self::faults::Faults;
pub use self::faults::{Fault, FaultRates, Injected};
use self::latency::Stall;
pub use self::options::{DelayHook, Operation, SimOptions};
use self::write::Write;
use crate::buffer::AlignedBuf;
use crate::chunk_table::ChunkTable;
use crate::geometry::{ChunkId, Geometry};
use crate::media::{ChunkInfo, ChunkState, Durability, Media, MediaCounters, MediaError, Notice};

/// A deterministic medium in memory. A value is a handle: clones share the device.
///
/// A handle belongs to the life of the device in which it was made. After [`SimMedia::power_cut`] and
/// [`SimMedia::power_on`], or after [`SimMedia::restart`], the handle on which that was called goes on
/// in the new life, and so do clones of it made from then on; operations of every older clone fail with
/// [`MediaError::PowerLost`], so a store that should be dead cannot write behind its successor's back.
pub struct SimMedia {
    device: Rc<Device>,
    life: Cell<u64>,
}

struct Device {
    geometry: Geometry,
    options: SimOptions,
    state: RefCell<State>,
}

struct State {
    rng: Pcg64Mcg,
    table: ChunkTable,
    cells: Vec<Cells>,
    in_flight: BTreeMap<u64, Write>,
    /// Orders completions; a flush covers those below its mark.
    sequence: u64,
    powered: bool,
    life: u64,
    operations: u64,
    cut_at: Option<u64>,
    faults: Faults,
    stall: Option<Stall>,
    counters: MediaCounters,
}

impl Clone for SimMedia {
    fn clone(&self) -> Self {
        Self { device: Rc::clone(&self.device), life: self.life.clone() }
    }
}

impl fmt::Debug for SimMedia {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.device.state.borrow();
        f.debug_struct("SimMedia")
            .field("options", &self.device.options)
            .field("powered", &state.powered)
            .field("operations", &state.operations)
            .finish_non_exhaustive()
    }
}

impl SimMedia {
    /// A device with power on, full of zeros: every chunk `Closed` on a conventional device (as after
    /// `format`), `Free` on one that tracks write pointers.
    ///
    /// # Panics
    /// If the geometry is empty, a chunk is not a multiple of the smallest write, or such a device cannot
    /// behave as the options say ([`SimOptions::validate`]).
    pub fn new(geometry: Geometry, options: SimOptions) -> Self {
        assert!(geometry.chunk_count() > 0 && geometry.chunk_sectors > 0 && geometry.sector_bytes > 0);
        assert!(geometry.ws_min > 0 && geometry.chunk_sectors.is_multiple_of(geometry.ws_min));
        options.validate(&geometry).expect("the device can behave so");
        let state = State {
            rng: Pcg64Mcg::seed_from_u64(options.seed),
            table: if options.conventional {
                ChunkTable::all_closed(geometry)
            } else {
                ChunkTable::all_free(geometry)
            },
            cells: (0..geometry.chunk_count()).map(|_| Cells::new()).collect(),
            in_flight: BTreeMap::new(),
            sequence: 0,
            powered: true,
            life: 0,
            operations: 0,
            cut_at: None,
            faults: Faults::new(options.faults),
            stall: None,
            counters: MediaCounters::default(),
        };
        let device = Device { geometry, options, state: RefCell::new(state) };
        Self { device: Rc::new(device), life: Cell::new(0) }
    }

    /// Media operations submitted so far in all lives of the device: writes, appends, reads, resets,
    /// finishes and flushes that broke no rule.
    pub fn operations(&self) -> u64 {
        self.device.state.borrow().operations
    }

    /// Cuts the power at the `n`-th operation from now, counted from 1: by the seed either before that
    /// operation has any effect, or in the middle of it. Replaces an earlier call.
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn crash_after(&self, n: u64) {
        assert!(n > 0, "operations are counted from 1");
        let mut state = self.device.state.borrow_mut();
        state.cut_at = Some(state.operations + n);
    }

    /// Cuts the power now. Every operation in flight, and every later one, fails with
    /// [`MediaError::PowerLost`] until [`Self::power_on`].
    pub fn power_cut(&self) {
        self.device.cut(&mut self.device.state.borrow_mut());
    }

    /// Whether the device has power.
    pub fn has_power(&self) -> bool {
        self.device.state.borrow().powered
    }

    /// Brings the device back with whatever survived, and takes this handle into its new life. Armed
    /// faults and a pending [`Self::crash_after`] are disarmed; bad sectors below write pointers stay. Counters
    /// start at zero.
    ///
    /// Cuts the power first if it is on.
    pub fn power_on(&self) {
        let mut state = self.device.state.borrow_mut();
        self.device.cut(&mut state);
        state.powered = true;
        self.begin_life(&mut state);
    }

    /// The host's process dies and starts again while the device keeps its power, as after `kill -9`:
    /// the cache stays, readable and still volatile; each write in flight lands wholly, partly or not.
    /// Takes this handle into the new life, like [`Self::power_on`].
    ///
    /// # Panics
    /// If the device has no power.
    pub fn restart(&self) {
        let mut state = self.device.state.borrow_mut();
        assert!(state.powered, "a process cannot come back on a device without power");
        self.device.abandon(&mut state);
        self.begin_life(&mut state);
    }

    fn begin_life(&self, state: &mut State) {
        state.life += 1;
        state.cut_at = None;
        state.faults.disarm();
        state.stall = None;
        state.counters = MediaCounters::default();
        self.life.set(state.life);
    }

    /// The life an operation is submitted in.
    fn alive(&self) -> Result<u64, MediaError> {
        let state = self.device.state.borrow();
        if state.powered && state.life == self.life.get() {
            Ok(state.life)
        } else {
            Err(MediaError::PowerLost)
        }
    }

    /// Counts an operation that broke no rule, and lets strike what may strike at any. `Ok(true)`: the power goes
    /// in the middle of it, so the caller leaves its traces and then calls [`Device::cut`]. An error: it went before.
    fn count(&self, state: &mut State) -> Result<bool, MediaError> {
        state.operations += 1;
        if state.strikes(Fault::Offline) {
            let chunk = ChunkId(state.rng.random_range(0..self.device.geometry.chunk_count()));
            state.go_offline(Fault::Offline, chunk);
        }
        if !state.strikes(Fault::PowerCut) && state.cut_at != Some(state.operations) {
            return Ok(false);
        }
        state.faults.record(Fault::PowerCut, ChunkId(0), None);
        if state.rng.random_bool(0.5) {
            return Ok(true);
        }
        self.device.cut(state);
        Err(MediaError::PowerLost)
    }

    fn submit_read(&self, chunk: ChunkId, sector: u32, len: usize) -> Result<(u32, u64), MediaError> {
        let life = self.alive()?;
        let mut state = self.device.state.borrow_mut();
        let sectors = state.table.check_read(chunk, sector, len)?;
        if self.count(&mut state)? {
            self.device.cut(&mut state);
            return Err(MediaError::PowerLost);
        }
        state.counters.reads += 1;
        state.counters.read_bytes += len as u64;
        Ok((sectors, life))
    }

    fn complete_read(
        &self,
        chunk: ChunkId,
        sector: u32,
        sectors: u32,
        life: u64,
        buf: &mut [u8],
    ) -> Result<(), MediaError> {
        self.still(life)?;
        let device = &*self.device;
        let state = &mut *device.state.borrow_mut();
        if state.table.state(chunk) == ChunkState::Offline {
            return Err(MediaError::Offline { chunk });
        }
        let error = |sector| {
            let source = io::ErrorKind::Other.into();
            Err(MediaError::Io { operation: "read", chunk, sector, source })
        };
        if state.strikes(Fault::LatentReadError) {
            let bad = sector + state.rng.random_range(0..sectors);
            state.cells[chunk.0 as usize].unreadable.insert(bad);
            state.faults.record(Fault::LatentReadError, chunk, Some((bad, 1)));
        }
        let bad = state.cells[chunk.0 as usize].unreadable.range(sector..sector + sectors).next().copied();
        if state.strikes(Fault::ReadError) {
            state.faults.record(Fault::ReadError, chunk, Some((sector, sectors)));
            return error(bad.unwrap_or(sector));
        }
        match bad {
            Some(sector) if device.options.conventional => return error(sector),
            Some(sector) => return Err(MediaError::Unreadable { chunk, sector }),
            None => {}
        }
        buf.copy_from_slice(&device.visible(state, chunk, sector, buf.len()));
        if state.strikes(Fault::CorruptedRead) {
            let hit = device.flip(state, sector, buf);
            state.faults.record(Fault::CorruptedRead, chunk, Some((hit, 1)));
        }
        if state.strikes(Fault::HighEcc) {
            state.warn(chunk, (sector, sectors));
        }
        Ok(())
    }

    fn still(&self, life: u64) -> Result<(), MediaError> {
        let state = self.device.state.borrow();
        if state.powered && state.life == life { Ok(()) } else { Err(MediaError::PowerLost) }
    }
}

impl State {
    fn push(&mut self, chunk: ChunkId, change: Change) {
        self.sequence += 1;
        let cached = Cached { sequence: self.sequence, doomed: false, change };
        self.cells[chunk.0 as usize].cache.push(cached);
    }
}

impl Device {
    /// Begins the next life of a chunk.
    fn reset(&self, state: &mut State, chunk: ChunkId) {
        // Of the others the device itself remembers nothing.
        if !self.options.conventional || !self.options.stale {
            state.push(chunk, Change::Reset);
        }
        let cells = &mut state.cells[chunk.0 as usize];
        cells.unreadable.clear();
        cells.failure = None;
    }

    /// Has the device remember that a chunk was closed before it was full, if it remembers such things.
    fn finish(&self, state: &mut State, chunk: ChunkId) {
        let early = state.table.write_pointer(chunk) < self.geometry.chunk_sectors;
        if !self.options.conventional && early && state.table.state(chunk) == ChunkState::Closed {
            state.push(chunk, Change::Finish);
        }
    }

    /// What a read sees now.
    fn visible(&self, state: &State, chunk: ChunkId, sector: u32, len: usize) -> Vec<u8> {
        state.cells[chunk.0 as usize].visible(&self.geometry, &self.options, sector, len)
    }
}

impl Media for SimMedia {
    fn geometry(&self) -> &Geometry {
        &self.device.geometry
    }

    async fn report(&self) -> Result<Vec<ChunkInfo>, MediaError> {
        self.alive()?;
        Ok(self.device.state.borrow().table.report())
    }

    async fn write(
        &self,
        chunk: ChunkId,
        sector: u32,
        buf: AlignedBuf,
        durability: Durability,
    ) -> (Result<(), MediaError>, AlignedBuf) {
        let (key, _, life) = match self.submit_write("write", chunk, Some(sector), &buf, durability) {
            Ok(submitted) => submitted,
            Err(error) => return (Err(error), buf),
        };
        let operation = match durability {
            Durability::Volatile => Operation::Write,
            Durability::Durable => Operation::DurableWrite,
        };
        self.device.pause(operation, buf.len()).await;
        (self.complete_write("write", key, life), buf)
    }

    async fn append(
        &self,
        chunk: ChunkId,
        buf: AlignedBuf,
        durability: Durability,
    ) -> (Result<u32, MediaError>, AlignedBuf) {
        let (key, sector, life) = match self.submit_write("append", chunk, None, &buf, durability) {
            Ok(submitted) => submitted,
            Err(error) => return (Err(error), buf),
        };
        self.device.pause(Operation::Append, buf.len()).await;
        (self.complete_write("append", key, life).map(|()| sector), buf)
    }

    async fn read(
        &self,
        chunk: ChunkId,
        sector: u32,
        mut buf: AlignedBuf,
    ) -> (Result<(), MediaError>, AlignedBuf) {
        let (sectors, life) = match self.submit_read(chunk, sector, buf.len()) {
            Ok(submitted) => submitted,
            Err(error) => return (Err(error), buf),
        };
        self.device.pause(Operation::Read, buf.len()).await;
        (self.complete_read(chunk, sector, sectors, life, &mut buf), buf)
    }

    fn protects_buffer(&self) -> bool {
        self.device.options.protected_buffer || self.device.geometry.mw_cunits == 0
    }

    fn take_notices(&self) -> Vec<Notice> {
        match self.alive() {
            Ok(_) => std::mem::take(&mut self.device.state.borrow_mut().faults.notices),
            Err(_) => Vec::new(),
        }
    }

    async fn reset(&self, chunk: ChunkId) -> Result<(), MediaError> {
        let life = self.alive()?;
        {
            let mut state = self.device.state.borrow_mut();
            state.table.begin_reset(chunk)?;
            let cut = self.count(&mut state)?;
            state.counters.resets += 1;
            if cut {
                self.device.reset(&mut state, chunk);
                self.device.cut(&mut state);
                return Err(MediaError::PowerLost);
            }
        }
        self.device.pause(Operation::Reset, 0).await;
        self.still(life)?;
        let mut state = self.device.state.borrow_mut();
        if state.strikes(Fault::FailedReset) {
            state.go_offline(Fault::FailedReset, chunk);
        }
        if state.table.state(chunk) == ChunkState::Offline {
            state.table.end_reset(chunk, false);
            return Err(MediaError::Offline { chunk });
        }
        self.device.reset(&mut state, chunk);
        state.table.end_reset(chunk, true);
        Ok(())
    }

    async fn finish(&self, chunk: ChunkId) -> Result<(), MediaError> {
        let life = self.alive()?;
        {
            let mut state = self.device.state.borrow_mut();
            state.table.check_finish(chunk)?;
            let cut = self.count(&mut state)?;
            if state.table.state(chunk) != ChunkState::Offline {
                state.table.finish(chunk);
            }
            if cut {
                self.device.finish(&mut state, chunk);
                self.device.cut(&mut state);
                return Err(MediaError::PowerLost);
            }
        }
        self.device.pause(Operation::Finish, 0).await;
        self.still(life)?;
        let mut state = self.device.state.borrow_mut();
        if state.table.state(chunk) == ChunkState::Offline {
            return Err(MediaError::Offline { chunk });
        }
        self.device.finish(&mut state, chunk);
        Ok(())
    }

    async fn flush(&self) -> Result<(), MediaError> {
        let life = self.alive()?;
        let mark = {
            let mut state = self.device.state.borrow_mut();
            let cut = self.count(&mut state)?;
            state.counters.flushes += 1;
            if cut {
                self.device.cut(&mut state);
                return Err(MediaError::PowerLost);
            }
            state.sequence
        };
        self.device.pause(Operation::Flush, 0).await;
        self.still(life)?;
        let mut state = self.device.state.borrow_mut();
        if state.strikes(Fault::FailedFlush) {
            state.faults.record(Fault::FailedFlush, ChunkId(0), None);
            for cached in state.cells.iter_mut().flat_map(|cells| &mut cells.cache) {
                cached.doomed |= cached.sequence <= mark;
            }
            let source = io::ErrorKind::Other.into();
            return Err(MediaError::Io { operation: "flush", chunk: ChunkId(0), sector: 0, source });
        }
        let Device { geometry, options, .. } = &*self.device;
        for cells in &mut state.cells {
            cells.settle_until(geometry, options, mark);
        }
        Ok(())
    }

    fn counters(&self) -> MediaCounters {
        self.device.state.borrow().counters
    }
}
