//! A medium in memory that behaves as badly as a real one may, repeatably from a seed.
//!
//! It keeps two images: the *platter*, which survives a power cut, and a *cache* of changes that
//! completed but that no flush has covered. A cut gives every cached change to chance, sector by sector;
//! writes in flight are torn. A host that reads correct data back after that, for every seed and every
//! point of the cut, relies on nothing the device did not promise.
//!
//! Invariants:
//! - The same seed and the same sequence of polls give the same behaviour: no clock, no thread, no
//!   address-dependent order.
//! - A [`Durability::Durable`] write reaches the platter alone; what was cached before it stays cached.
//! - A flush covers what **completed before it was submitted**, nothing later.
//! - Nothing of a write is visible to a read before the write completed.
//! - An operation submitted before a power cut or a restart never takes effect, or reports success, after it.

mod cells;
mod power;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;

use self::cells::{Cached, Cells, Change};
use crate::buffer::AlignedBuf;
use crate::chunk_table::ChunkTable;
use crate::geometry::{ChunkId, Geometry};
use crate::media::{ChunkInfo, ChunkState, Durability, Media, MediaCounters, MediaError};

/// A kind of media operation, as a [`DelayHook`] sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// [`Media::write`] with [`Durability::Volatile`].
    Write,
    /// [`Media::write`] with [`Durability::Durable`].
    DurableWrite,
    /// [`Media::append`], of either durability.
    Append,
    /// [`Media::read`].
    Read,
    /// [`Media::reset`].
    Reset,
    /// [`Media::finish`].
    Finish,
    /// [`Media::flush`].
    Flush,
}

/// How long an operation on so many bytes takes: a future of the simulator's virtual time.
pub type DelayHook = Rc<dyn Fn(Operation, usize) -> Pin<Box<dyn Future<Output = ()>>>>;

/// How a [`SimMedia`] behaves.
#[derive(Clone)]
pub struct SimOptions {
    /// Decides everything that is left to chance. Default 0.
    pub seed: u64,
    /// Each operation returns `Pending` 0 to this many times before it completes, waking itself, so that
    /// completions overtake each other. Default 0: every operation completes at once.
    pub yields_max: u32,
    /// Awaited by every operation, after its yields. Default none.
    pub delay: Option<DelayHook>,
    /// Whether the device is a conventional one, which cannot report write pointers after a start and
    /// keeps none. Default true.
    pub conventional: bool,
    /// Whether a reset leaves the old content in place (a file does), to be seen again behind a lost
    /// write. Default true; false: a reset zeroes the chunk, once it is durable.
    pub stale: bool,
    /// Whether a power cut may tear a write within a sector. Default false: sectors are atomic.
    pub tear_within_sector: bool,
}

impl Default for SimOptions {
    fn default() -> Self {
        Self {
            seed: 0,
            yields_max: 0,
            delay: None,
            conventional: true,
            stale: true,
            tear_within_sector: false,
        }
    }
}

impl fmt::Debug for SimOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimOptions")
            .field("seed", &self.seed)
            .field("yields_max", &self.yields_max)
            .field("delay", &self.delay.is_some())
            .field("conventional", &self.conventional)
            .field("stale", &self.stale)
            .field("tear_within_sector", &self.tear_within_sector)
            .finish()
    }
}

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
    counters: MediaCounters,
}

/// A write in flight.
struct Write {
    chunk: ChunkId,
    sector: u32,
    data: Vec<u8>,
    durable: bool,
}

/// Errors that are armed and strike once.
#[derive(Default)]
struct Faults {
    read: Option<io::ErrorKind>,
    write: Option<io::ErrorKind>,
    flush: Option<io::ErrorKind>,
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
    /// If the geometry is empty or a chunk is not a multiple of the smallest write.
    pub fn new(geometry: Geometry, options: SimOptions) -> Self {
        assert!(geometry.chunk_count() > 0 && geometry.chunk_sectors > 0 && geometry.sector_bytes > 0);
        assert!(geometry.ws_min > 0 && geometry.chunk_sectors.is_multiple_of(geometry.ws_min));
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
            faults: Faults::default(),
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
    /// faults and a pending [`Self::crash_after`] are disarmed; bad sectors stay. Counters start at zero.
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
        state.faults = Faults::default();
        state.counters = MediaCounters::default();
        self.life.set(state.life);
    }

    /// Damages a byte silently: one bit of it is flipped, on the platter and in the cache. Twice
    /// restores it.
    ///
    /// # Panics
    /// If there is no such byte.
    pub fn corrupt(&self, chunk: ChunkId, sector: u32, byte: u32) {
        let geometry = &self.device.geometry;
        assert!(chunk.0 < geometry.chunk_count() && sector < geometry.chunk_sectors);
        assert!(byte < geometry.sector_bytes);
        let mut state = self.device.state.borrow_mut();
        state.cells[chunk.0 as usize].damage(geometry, sector, byte);
    }

    /// The next read fails with an I/O error and leaves the buffer as it was.
    pub fn fail_next_read(&self) {
        self.device.state.borrow_mut().faults.read = Some(io::ErrorKind::Other);
    }

    /// The next write or append fails with an I/O error. Which of its sectors were written is left to
    /// the seed, and none of them is durable.
    pub fn fail_next_write(&self) {
        self.device.state.borrow_mut().faults.write = Some(io::ErrorKind::Other);
    }

    /// The next flush fails with an I/O error, and so does, silently, all that it had to make durable: a
    /// later flush succeeds without covering it, as a kernel that dropped dirty pages does.
    pub fn fail_next_flush(&self) {
        self.device.state.borrow_mut().faults.flush = Some(io::ErrorKind::Other);
    }

    /// Every read that touches this sector fails, until its chunk is reset.
    ///
    /// # Panics
    /// If there is no such sector.
    pub fn fail_reads_of(&self, chunk: ChunkId, sector: u32) {
        let geometry = &self.device.geometry;
        assert!(chunk.0 < geometry.chunk_count() && sector < geometry.chunk_sectors);
        self.device.state.borrow_mut().cells[chunk.0 as usize].unreadable.insert(sector);
    }

    /// The chunk goes offline for good: everything done to it fails with [`MediaError::Offline`].
    ///
    /// # Panics
    /// If there is no such chunk.
    pub fn take_offline(&self, chunk: ChunkId) {
        assert!(chunk.0 < self.device.geometry.chunk_count());
        self.device.state.borrow_mut().table.set(chunk, ChunkState::Offline, 0);
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

    /// Counts an operation that broke no rule. `Ok(true)`: the power goes in the middle of it, so the
    /// caller leaves its traces and then calls [`Device::cut`]. An error: it went before.
    fn count(&self, state: &mut State) -> Result<bool, MediaError> {
        state.operations += 1;
        if state.cut_at != Some(state.operations) {
            return Ok(false);
        }
        if state.rng.random_bool(0.5) {
            return Ok(true);
        }
        self.device.cut(state);
        Err(MediaError::PowerLost)
    }

    /// Submits a write: returns its key among those in flight, its first sector and the life it is in.
    fn submit_write(
        &self,
        operation: &'static str,
        chunk: ChunkId,
        sector: Option<u32>,
        data: &[u8],
        durability: Durability,
    ) -> Result<(u64, u32, u64), MediaError> {
        let life = self.alive()?;
        let mut state = self.device.state.borrow_mut();
        let (start, _) = state.table.begin_write(operation, chunk, sector, data.len())?;
        let cut = self.count(&mut state)?;
        state.counters.writes += 1;
        state.counters.written_bytes += data.len() as u64;
        let key = state.operations;
        let durable = durability == Durability::Durable;
        state.in_flight.insert(key, Write { chunk, sector: start, data: data.to_vec(), durable });
        if cut {
            self.device.cut(&mut state);
            return Err(MediaError::PowerLost);
        }
        Ok((key, start, life))
    }

    fn complete_write(&self, operation: &'static str, key: u64, life: u64) -> Result<(), MediaError> {
        let mut state = self.device.state.borrow_mut();
        let state = &mut *state;
        if !state.powered || state.life != life {
            return Err(MediaError::PowerLost);
        }
        let write = state.in_flight.remove(&key).expect("a write completes once, within its life");
        let chunk = write.chunk;
        state.table.end_write(chunk);
        if let Some(kind) = state.faults.write.take() {
            let sector = write.sector;
            let old = self.device.visible(state, chunk, sector, write.data.len());
            let data = self.device.tear(&mut state.rng, &old, &write.data, false);
            state.push(chunk, Change::Write { sector, data });
            return Err(MediaError::Io { operation, chunk, sector, source: kind.into() });
        }
        if write.durable {
            let Device { geometry, options, .. } = &*self.device;
            state.cells[chunk.0 as usize].write_through(geometry, options, write.sector, &write.data);
        } else {
            state.push(chunk, Change::Write { sector: write.sector, data: write.data });
        }
        Ok(())
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

    /// Waits as the options say.
    async fn pause(&self, operation: Operation, bytes: usize) {
        let yields = match self.device.options.yields_max {
            0 => 0,
            max => self.device.state.borrow_mut().rng.random_range(0..=max),
        };
        Yields(yields).await;
        if let Some(delay) = &self.device.options.delay {
            delay(operation, bytes).await;
        }
    }

    fn still(&self, life: u64) -> Result<(), MediaError> {
        let state = self.device.state.borrow();
        if state.powered && state.life == life { Ok(()) } else { Err(MediaError::PowerLost) }
    }
}

/// Pending so many times, waking itself.
struct Yields(u32);

impl Future for Yields {
    type Output = ();
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.0 == 0 {
            return Poll::Ready(());
        }
        self.0 -= 1;
        context.waker().wake_by_ref();
        Poll::Pending
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
    /// Whether a reset is something the device itself remembers.
    fn remembers_resets(&self) -> bool {
        !self.options.conventional || !self.options.stale
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
        self.pause(operation, buf.len()).await;
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
        self.pause(Operation::Append, buf.len()).await;
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
        self.pause(Operation::Read, buf.len()).await;
        if let Err(error) = self.still(life) {
            return (Err(error), buf);
        }
        let mut state = self.device.state.borrow_mut();
        let bad = state.cells[chunk.0 as usize].unreadable.range(sector..sector + sectors).next().copied();
        let kind = state.faults.read.take().or(bad.map(|_| io::ErrorKind::Other));
        if let Some(kind) = kind {
            let sector = bad.unwrap_or(sector);
            let error = MediaError::Io { operation: "read", chunk, sector, source: kind.into() };
            return (Err(error), buf);
        }
        let bytes = self.device.visible(&state, chunk, sector, buf.len());
        buf.copy_from_slice(&bytes);
        (Ok(()), buf)
    }

    async fn reset(&self, chunk: ChunkId) -> Result<(), MediaError> {
        let life = self.alive()?;
        {
            let mut state = self.device.state.borrow_mut();
            state.table.begin_reset(chunk)?;
            let cut = self.count(&mut state)?;
            state.counters.resets += 1;
            if cut {
                if self.device.remembers_resets() {
                    state.push(chunk, Change::Reset);
                }
                self.device.cut(&mut state);
                return Err(MediaError::PowerLost);
            }
        }
        self.pause(Operation::Reset, 0).await;
        self.still(life)?;
        let mut state = self.device.state.borrow_mut();
        if self.device.remembers_resets() {
            state.push(chunk, Change::Reset);
        }
        state.cells[chunk.0 as usize].unreadable.clear();
        state.table.end_reset(chunk, true);
        Ok(())
    }

    async fn finish(&self, chunk: ChunkId) -> Result<(), MediaError> {
        let life = self.alive()?;
        {
            let mut state = self.device.state.borrow_mut();
            state.table.check_finish(chunk)?;
            let cut = self.count(&mut state)?;
            state.table.finish(chunk);
            if !self.device.options.conventional {
                state.push(chunk, Change::Finish);
            }
            if cut {
                self.device.cut(&mut state);
                return Err(MediaError::PowerLost);
            }
        }
        self.pause(Operation::Finish, 0).await;
        self.still(life)
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
        self.pause(Operation::Flush, 0).await;
        self.still(life)?;
        let mut state = self.device.state.borrow_mut();
        if let Some(kind) = state.faults.flush.take() {
            for cached in state.cells.iter_mut().flat_map(|cells| &mut cells.cache) {
                cached.doomed |= cached.sequence <= mark;
            }
            let chunk = ChunkId(0);
            return Err(MediaError::Io { operation: "flush", chunk, sector: 0, source: kind.into() });
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
