//! Power cuts on a node's device of emulated flash: random operations on every slice, a cut at any of them, the device
//! opened again. Nothing that was promised is lost, nothing that is read is wrong, and the device is still this node's.
//!
//! `TERRANE_SEED=<n> cargo test -p terrane-ocssd --test managed_power` replays one run; `TERRANE_RUNS=<n>` sets how many
//! there are.

use std::env;
use std::path::Path;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use terrane_ocssd::{
    AlignedBuf, ChunkId, ChunkState, Device, DeviceKind, DeviceMedia, DeviceOptions, Durability, FlashLayout,
    FormatOptions, KindOptions, Media, MediaError, OpenError, Superblock, VolumeError,
};

const RUNS: u64 = 12;
const LIVES: u32 = 10;
/// Operations of the device in a life, at most.
const OPERATIONS_MAX: u64 = 150;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// What the host knows of a chunk as the device hands it out, a line of its volume.
#[derive(Debug, Clone, Default)]
struct Line {
    /// Resets so far, so that no two lives have the same content.
    life: u64,
    /// End of what was submitted, acknowledged, and promised to survive a cut; in sectors.
    submitted: u32,
    acknowledged: u32,
    promised: u32,
    /// It takes no more.
    closed: bool,
    /// A reset of it was cut short.
    resetting: bool,
}

/// A device in use.
struct Run<'a> {
    rng: Pcg64Mcg,
    path: &'a Path,
    superblock: Superblock,
    slices: Vec<Vec<Line>>,
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|value| value.parse().expect("a number is asked for"))
}

#[test]
fn no_cut_takes_what_was_promised() {
    let seeds = match number("TERRANE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("TERRANE_RUNS").unwrap_or(RUNS),
    };
    let mut cuts = 0;
    for seed in seeds {
        let outcome = std::panic::catch_unwind(|| run(seed));
        match outcome {
            Ok(of_run) => cuts += of_run,
            Err(panic) => {
                eprintln!(
                    "seed {seed} failed; replay: TERRANE_SEED={seed} cargo test -p terrane-ocssd --test managed_power"
                );
                std::panic::resume_unwind(panic);
            }
        }
    }
    assert!(cuts > 0, "the power never went");
}

/// How often the power went.
fn run(seed: u64) -> u32 {
    let mut rng = Pcg64Mcg::seed_from_u64(seed);
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = folder.path().join("flash");
    let shards = rng.random_range(1..=2);
    let units = rng.random_range(1..=3);
    let options = FormatOptions {
        cluster: 9,
        node: 1,
        shards,
        size_bytes: u64::from(shards) * u64::from(units) * 4 * MIB,
        chunk_bytes: Some(u64::from(units) * 256 * KIB),
        sector_bytes: None,
        force: false,
    };
    let kind = KindOptions {
        kind: Some(DeviceKind::Flash),
        flash: FlashLayout { units, protected_buffer: rng.random_bool(0.5) },
    };
    let superblock = Device::format(&path, &options, &kind, &mut |_, _| {}).unwrap();
    let lines = (superblock.slice_bytes / superblock.chunk_bytes) as usize;
    let slices = vec![vec![Line::default(); lines]; shards as usize];
    let mut run = Run { rng, path: &path, superblock, slices };
    let mut cuts = 0;
    for _ in 0..LIVES {
        // Transfers that a cut left behind end with the runtime, as with the process.
        let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().build().unwrap();
        cuts += u32::from(runtime.block_on(run.live()));
    }
    cuts
}

fn is_power_lost(error: &OpenError) -> bool {
    matches!(error, OpenError::Volume { source: VolumeError::Media(MediaError::PowerLost), .. })
}

/// The one right content of sectors.
fn content(
    slice: usize,
    line: u32,
    life: u64,
    sectors: std::ops::Range<u32>,
    sector_bytes: usize,
) -> AlignedBuf {
    let mut buf = AlignedBuf::zeroed(sectors.len() * sector_bytes);
    for (sector, bytes) in sectors.zip(buf.chunks_mut(sector_bytes)) {
        let number = (slice as u64) << 60 | u64::from(line) << 48 | life << 24 | u64::from(sector) | 1 << 59;
        let number = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        bytes.chunks_mut(8).for_each(|word| word.copy_from_slice(&number));
    }
    buf
}

impl Run<'_> {
    /// Opens the device, looks whether everything is there, and works on it until the power goes. False: it did not.
    async fn live(&mut self) -> bool {
        let device = Device::open(self.path, &DeviceOptions::default()).unwrap();
        assert_eq!(*device.superblock(), self.superblock);
        let mut slices: Vec<DeviceMedia> = Vec::new();
        let until_cut = self.rng.random_range(1..=OPERATIONS_MAX);
        for shard in 0..self.superblock.shards {
            match device.slice(shard).await {
                Ok(media) => slices.push(media),
                Err(error) if is_power_lost(&error) => return true,
                Err(error) => panic!("slice {shard}: {error}"),
            }
            self.check_opened(shard as usize, &slices[shard as usize]).await;
            if shard == 0 {
                let DeviceMedia::Flash(volume) = &slices[0] else { panic!("it is flash") };
                // It may go while the other slices are opened.
                volume.media().crash_after(until_cut);
            }
            if !has_power(&slices[0]) {
                return true;
            }
        }
        for _ in 0..OPERATIONS_MAX {
            let shard = self.rng.random_range(0..slices.len());
            match self.step(shard, &slices[shard]).await {
                Ok(()) => {}
                Err(MediaError::PowerLost) => return true,
                Err(error) => panic!("slice {shard}: {error}"),
            }
        }
        false
    }

    /// Does something to a slice.
    async fn step(&mut self, shard: usize, media: &DeviceMedia) -> Result<(), MediaError> {
        let geometry = *media.geometry();
        let index = self.rng.random_range(0..geometry.chunk_count());
        let sector_bytes = geometry.sector_bytes as usize;
        let line = &mut self.slices[shard][index as usize];
        let left = (geometry.chunk_sectors - line.submitted) / geometry.ws_min;
        let usable = !line.resetting && !line.closed;
        match self.rng.random_range(0..12) {
            0..6 if usable && left > 0 => {
                let writes = self.rng.random_range(1..=left.min(12));
                let durable = self.rng.random_bool(0.4);
                let durability = if durable { Durability::Durable } else { Durability::Volatile };
                let (from, end) = (line.submitted, line.submitted + writes * geometry.ws_min);
                let buf = content(shard, index, line.life, from..end, sector_bytes);
                line.submitted = end;
                let chunk = ChunkId(index);
                if self.rng.random_bool(0.5) {
                    media.write(chunk, from, buf, durability).await.0?;
                } else {
                    assert_eq!(media.append(chunk, buf, durability).await.0?, from);
                }
                line.acknowledged = end;
                line.closed = end == geometry.chunk_sectors;
                if durable {
                    line.promised = line.promised.max(end.saturating_sub(geometry.mw_cunits));
                }
            }
            6..8 => {
                media.flush().await?;
                for line in self.slices[shard].iter_mut().filter(|line| !line.resetting) {
                    let held = if line.closed { 0 } else { geometry.mw_cunits };
                    line.promised = line.promised.max(line.acknowledged.saturating_sub(held));
                }
            }
            8 if usable && line.acknowledged > 0 => {
                // Whether it was closed when the power went is found when it is opened again.
                media.finish(ChunkId(index)).await?;
                line.closed = true;
            }
            9 if line.closed || line.resetting => {
                line.resetting = true;
                media.reset(ChunkId(index)).await?;
                *line = Line { life: line.life + 1, ..Line::default() };
            }
            _ if !line.resetting && line.acknowledged > 0 => {
                let end = line.acknowledged;
                let (read, buf) =
                    media.read(ChunkId(index), 0, AlignedBuf::zeroed(end as usize * sector_bytes)).await;
                read?;
                let right = content(shard, index, line.life, 0..end, sector_bytes);
                assert!(
                    *buf == *right,
                    "slice {shard}, line {index}: what was acknowledged is wrong: {line:?}"
                );
            }
            _ => {}
        }
        Ok(())
    }

    /// Compares a slice that was just opened with what the host knows, and goes on from what is there.
    async fn check_opened(&mut self, shard: usize, media: &DeviceMedia) {
        let geometry = *media.geometry();
        let sector_bytes = geometry.sector_bytes as usize;
        let Ok(report) = media.report().await else { return };
        for (info, line) in report.iter().zip(&mut self.slices[shard]) {
            let (index, end) = (info.id.0, info.write_pointer);
            let told = format!("slice {shard}, line {index}: {info:?}, expected {line:?}");
            assert_ne!(info.state, ChunkState::Offline, "{told}");
            if line.resetting {
                if info.state == ChunkState::Free {
                    *line = Line { life: line.life + 1, ..Line::default() };
                }
                continue;
            }
            assert!(end >= line.promised, "lost what was promised: {told}");
            if info.state == ChunkState::Free {
                *line = Line { life: line.life, ..Line::default() };
                continue;
            }
            if end == 0 {
                line.closed = true;
                line.acknowledged = 0;
                continue;
            }
            let whole = AlignedBuf::zeroed(end as usize * sector_bytes);
            let (read, found) = media.read(info.id, 0, whole).await;
            match read {
                Ok(()) => {}
                Err(MediaError::PowerLost) => return,
                Err(error) => panic!("{told}: {error}"),
            }
            // The device closes chunks by padding them, and a start closes those that a cut left uneven.
            let right = content(shard, index, line.life, 0..end, sector_bytes);
            let is_right = |sector: u32| {
                let bytes = sector as usize * sector_bytes..(sector as usize + 1) * sector_bytes;
                sector < line.submitted && found[bytes.clone()] == right[bytes]
            };
            let is_padding = |sector: u32| {
                found[sector as usize * sector_bytes..][..sector_bytes].iter().all(|byte| *byte == 0)
            };
            let kept = (0..end).find(|sector| !is_right(*sector)).unwrap_or(end);
            assert!(kept >= line.promised, "padding in place of what was promised: {told}");
            for sector in kept..end {
                assert!(is_right(sector) || is_padding(sector), "sector {sector} is wrong: {told}");
            }
            *line = Line {
                life: line.life,
                // Behind padding on one unit there may be what was written on another.
                submitted: line.submitted,
                acknowledged: kept,
                // What a start finds survived already.
                promised: kept,
                // As the log does: a line that was open before a start is not written on.
                closed: true,
                resetting: false,
            };
        }
    }
}

fn has_power(media: &DeviceMedia) -> bool {
    let DeviceMedia::Flash(volume) = media else { panic!("it is flash") };
    volume.media().has_power()
}
