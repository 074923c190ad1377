//! The controller: everything that is the device, and what it does to its chunks.
//!
//! `Media` operations and vector commands are both built on the requests of `request.rs`; what happens to chunks when the
//! power goes is in `power.rs`.
//!
//! Invariants:
//! - The same options and the same sequence of requests give the same answers: chance comes from one generator, in the
//!   order of submission.
//! - What is counted over all chunks (those open, those online and their wear) follows every change of one, since chunks
//!   change state through [`Controller::change`] alone.
//! - What the file remembers of a chunk is rewritten with every change that a new process must know of.

use std::collections::BTreeSet;
use std::io;
use std::ops::Range;

use rand::SeedableRng;
use rand_pcg::Pcg64Mcg;

use super::address::{AddressFormat, Place, Ppa};
use super::chunk::Chunk;
use super::descriptor::ChunkDescriptor;
use super::image::Image;
use super::notification::{NotificationLog, NotificationScope};
use super::options::FlashOptions;
use super::record::DeviceState;
use super::status::Refusal;
use super::timing::Schedule;
use super::wear;
use crate::geometry::{ChunkId, Geometry};
use crate::media::{ChunkInfo, ChunkState, NoticeKind};

/// What a device did since it was made or opened, whatever became of its power.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FlashCounters {
    /// Bytes that the host wrote, or ordered to be copied, and the device accepted; padding included.
    pub received_bytes: u64,
    /// Of these, bytes that closed chunks before their end.
    pub padding_bytes: u64,
    /// Bytes of pages that were programmed.
    pub programmed_bytes: u64,
    /// Pages programmed.
    pub pages_programmed: u64,
    /// Pages sensed.
    pub pages_read: u64,
    /// Chunks erased.
    pub erases: u64,
    /// Write units that could not be programmed.
    pub program_failures: u64,
    /// Chunks that the device closed early.
    pub early_closes: u64,
    /// Chunks that went offline since.
    pub gone_offline: u64,
}

impl FlashCounters {
    /// Device amplification: bytes programmed for each byte received. Exactly 1.0 once nothing is in flight, unless a
    /// power cut took what was received; 1.0 also where nothing was received.
    pub fn amplification(&self) -> f64 {
        if self.received_bytes == 0 { 1.0 } else { self.programmed_bytes as f64 / self.received_bytes as f64 }
    }
}

/// The part of the device that a tenant may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Share {
    /// Parallel units, counted over all groups.
    pub(super) units: Range<u32>,
    /// Chunks of them that may be open at once; 0: as many as the device allows.
    pub(super) max_open: u32,
}

/// Where data and state are kept.
pub(super) enum Storage {
    /// Content of each chunk; empty: nothing was written since its erase.
    Memory(Vec<Vec<u8>>),
    /// Data goes through the ring of whoever submits; state goes here.
    File(Image),
}

/// Everything that is the device.
pub(super) struct Controller {
    pub(super) options: FlashOptions,
    pub(super) format: AddressFormat,
    pub(super) chunks: Vec<Chunk>,
    pub(super) storage: Storage,
    /// Chunks with something that a flush would make durable.
    pub(super) dirty: BTreeSet<u32>,
    pub(super) log: NotificationLog,
    pub(super) rng: Pcg64Mcg,
    pub(super) schedule: Schedule,
    pub(super) powered: bool,
    pub(super) life: u64,
    pub(super) operations: u64,
    pub(super) cut_at: Option<u64>,
    pub(super) counters: FlashCounters,
    /// Who has which parallel unit; 0: nobody.
    pub(super) tenants: Vec<u64>,
    pub(super) tenant_last: u64,
    /// State could not be written to the file, or what the host was told of is lost: nothing is made durable any more.
    pub(super) broken: Option<io::ErrorKind>,
    openings: u64,
    pub(super) open_in_unit: Vec<u32>,
    /// Chunks that are not offline, and their erases.
    online: u64,
    online_erases: u64,
}

impl Controller {
    /// A new device in memory. The options are valid.
    pub(super) fn in_memory(options: FlashOptions) -> Self {
        let chunks = (0..options.geometry.chunk_count())
            .map(|index| {
                let birth = wear::birth(&options, index);
                let state = if birth.bad { ChunkState::Offline } else { ChunkState::Free };
                Chunk::new(state, 0, 0, birth.erases_max)
            })
            .collect();
        let cells = vec![Vec::new(); options.geometry.chunk_count() as usize];
        Self::new(options, chunks, Storage::Memory(cells), DeviceState::default())
    }

    /// A device with the given chunks.
    pub(super) fn new(
        options: FlashOptions,
        chunks: Vec<Chunk>,
        storage: Storage,
        state: DeviceState,
    ) -> Self {
        let geometry = options.geometry;
        let mut open_in_unit = vec![0; geometry.unit_count() as usize];
        let (mut online, mut online_erases) = (0, 0);
        for (chunk, index) in chunks.iter().zip(0..) {
            if chunk.state == ChunkState::Open {
                open_in_unit[geometry.unit_of(ChunkId(index)) as usize] += 1;
            }
            if chunk.state != ChunkState::Offline {
                online += 1;
                online_erases += u64::from(chunk.erases);
            }
        }
        Self {
            format: AddressFormat::of(&geometry),
            rng: Pcg64Mcg::seed_from_u64(options.seed.wrapping_add(state.openings)),
            schedule: Schedule::new(options.timing, geometry.groups, geometry.parallel_units),
            log: NotificationLog::after(state.notifications),
            tenants: vec![0; geometry.unit_count() as usize],
            options,
            chunks,
            storage,
            dirty: BTreeSet::new(),
            powered: true,
            life: 0,
            operations: 0,
            cut_at: None,
            counters: FlashCounters::default(),
            tenant_last: 0,
            broken: None,
            openings: state.openings,
            open_in_unit,
            online,
            online_erases,
        }
    }

    pub(super) fn geometry(&self) -> Geometry {
        self.options.geometry
    }

    /// Whether a handle of that life may go on.
    pub(super) fn check_life(&self, life: u64) -> Result<(), Refusal> {
        if self.powered && self.life == life { Ok(()) } else { Err(Refusal::PowerLost) }
    }

    /// Does something to a chunk, and keeps what is counted over all chunks right.
    pub(super) fn change<T>(&mut self, index: u32, change: impl FnOnce(&mut Chunk, &Geometry) -> T) -> T {
        let geometry = self.options.geometry;
        let chunk = &mut self.chunks[index as usize];
        let (was, had) = (chunk.state, chunk.erases);
        let result = change(chunk, &geometry);
        let (is, has) = (chunk.state, chunk.erases);
        let open = &mut self.open_in_unit[geometry.unit_of(ChunkId(index)) as usize];
        *open = *open + u32::from(is == ChunkState::Open) - u32::from(was == ChunkState::Open);
        if was != ChunkState::Offline {
            self.online -= 1;
            self.online_erases -= u64::from(had);
        }
        if is != ChunkState::Offline {
            self.online += 1;
            self.online_erases += u64::from(has);
        }
        result
    }

    /// Writes the device's memory of a chunk to the file, if there is one.
    pub(super) fn remember(&mut self, index: u32) {
        if let Storage::File(image) = &self.storage {
            let chunk = &self.chunks[index as usize];
            if let Err(error) = image.write_record(&self.options, &self.format, index, chunk) {
                self.broken = Some(error.kind());
            }
        }
    }

    /// Erases a chunk, if it still can be.
    pub(super) fn erase(&mut self, index: u32) -> Result<(), Refusal> {
        self.dirty.remove(&index);
        let chunk = &mut self.chunks[index as usize];
        if std::mem::take(&mut chunk.armed.reset) || chunk.erases_max.is_some_and(|max| chunk.erases >= max) {
            self.take_offline(index);
            return Err(Refusal::Offline);
        }
        self.counters.erases += 1;
        self.change(index, |chunk, _| chunk.erase());
        if let Storage::Memory(cells) = &mut self.storage {
            cells[index as usize] = Vec::new();
        }
        self.remember(index);
        self.compare_wear(index);
        Ok(())
    }

    /// Says once that a chunk is worn more than the others, until it no longer is.
    fn compare_wear(&mut self, index: u32) {
        if self.options.wear_threshold == 0 {
            return;
        }
        let mean = self.options.endurance.erases_mean;
        let of_all = wear::wear_index((self.online_erases / self.online.max(1)) as u32, mean);
        let chunk = &mut self.chunks[index as usize];
        let ahead = wear::wear_index(chunk.erases, mean).saturating_sub(of_all);
        let exceeds = ahead > self.options.wear_threshold;
        let news = exceeds && !chunk.told_worn;
        chunk.told_worn = exceeds;
        if news {
            self.notify(index, NotificationScope::Chunk, NoticeKind::Worn);
        }
    }

    /// The chunk is lost to the host from now on.
    pub(super) fn take_offline(&mut self, index: u32) {
        if self.chunks[index as usize].state == ChunkState::Offline {
            return;
        }
        self.change(index, |chunk, _| chunk.take_offline());
        self.dirty.remove(&index);
        if let Storage::Memory(cells) = &mut self.storage {
            cells[index as usize] = Vec::new();
        }
        self.counters.gone_offline += 1;
        self.remember(index);
        self.notify(index, NotificationScope::Chunk, NoticeKind::Offline);
    }

    pub(super) fn notify(&mut self, index: u32, scope: NotificationScope, kind: NoticeKind) {
        let address = self.format.pack(self.format.chunk_place(index));
        self.push_notification(address, scope, kind);
    }

    pub(super) fn notify_sectors(&mut self, index: u32, sector: u32, sectors: u32, kind: NoticeKind) {
        let place = Place { sector, ..self.format.chunk_place(index) };
        let address = self.format.pack(place);
        self.push_notification(address, NotificationScope::Sectors(sectors), kind);
    }

    fn push_notification(&mut self, address: Ppa, scope: NotificationScope, kind: NoticeKind) {
        self.log.push(address, scope, kind);
        if let Storage::File(image) = &self.storage {
            let state = DeviceState { openings: self.openings, notifications: self.log.count() };
            if let Err(error) = image.write_state(&state) {
                self.broken = Some(error.kind());
            }
        }
    }

    /// What the chunk information log says of a chunk.
    pub(super) fn descriptor(&self, index: u32) -> ChunkDescriptor {
        let chunk = &self.chunks[index as usize];
        ChunkDescriptor {
            state: chunk.state,
            wear_index: wear::wear_index(chunk.erases, self.options.endurance.erases_mean),
            start: self.format.pack(self.format.chunk_place(index)),
            sectors: self.options.geometry.chunk_sectors.into(),
            write_pointer: (chunk.state != ChunkState::Offline).then_some(chunk.write_pointer.into()),
        }
    }

    /// The chunks of some units, numbered from 0.
    pub(super) fn report(&self, units: &Range<u32>) -> Vec<ChunkInfo> {
        let chunks = self.options.geometry.chunks as usize;
        let chunks = &self.chunks[units.start as usize * chunks..units.end as usize * chunks];
        let info = |(chunk, id): (&Chunk, u32)| ChunkInfo {
            id: ChunkId(id),
            state: chunk.state,
            write_pointer: chunk.write_pointer,
            wear: chunk.erases,
        };
        chunks.iter().zip(0..).map(info).collect()
    }

    /// State of a chunk that exists, and of none that does not.
    pub(super) fn state_of(&self, index: u32) -> Option<ChunkState> {
        self.chunks.get(index as usize).map(|chunk| chunk.state)
    }
}
