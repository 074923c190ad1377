//! A node's device across a hard reset of the machine, in the midst of writing.
//!
//! Three parts of one test, told apart by `TERRANE_PHASE`:
//!
//! ```text
//! write    lays the device out and starts, as a process that it leaves behind:
//! writer   writes to every slice until the machine dies under it; on the scratch disk it notes what it is about to lose,
//!          and what was acknowledged as durable
//! verify   after the reset: opens the device, finds all that was noted, and goes on
//! ```
//!
//! The notes are ahead of what is lost and behind what is kept, so what they say must be there. In QEMU the devices live on, even
//! what no flush covered: it is the host's way back that is tested, not whether the device keeps its promises.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use futures_util::future::join;
use nix::libc;
use terrane_ocssd::superblock::COPY_OFFSETS;
use terrane_ocssd::{
    AlignedBuf, ChunkId, ChunkState, Device, DeviceKind, DeviceMedia, Durability, FormatOptions, KindOptions,
    Media, OpenError,
};

use crate::{OPTIONS, named, open, run};

/// Sectors of a write.
const WRITE_SECTORS: u32 = 32;

/// Most sectors that a chunk gets in one life: some go beyond the sector of the bad device that cannot be written.
fn life_sectors(chunk: u32) -> u32 {
    if chunk % 4 == 3 { 640 } else { 128 }
}

/// What the writer says once every chunk of every slice has lived.
const UNDER_WAY: &str = "the writer is under way";

/// The file in which the writer notes what happened, a line each:
///
/// ```text
/// new SLICE CHUNK GENERATION           from now on, nothing is left of an earlier life
/// has SLICE CHUNK GENERATION SECTORS   so many of this life are durable
/// remapped SLICE COUNT                 members of the volume's lines that stand elsewhere since their chunks failed
/// ended                                the writer, which should not have
/// ```
struct Notes {
    path: PathBuf,
    file: File,
}

/// What the notes say.
#[derive(Debug, Default)]
struct Noted {
    /// By slice and chunk: the generation, and how many sectors of it are there.
    lives: BTreeMap<(u32, u32), (u32, u32)>,
    remapped: BTreeMap<u32, u32>,
    ended: bool,
}

impl Notes {
    fn of(test: &str, anew: bool) -> Self {
        // In the guest this is the scratch disk.
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test.replace(':', "-"));
        let mut options = OpenOptions::new();
        options.append(true).create(anew).custom_flags(libc::O_DSYNC);
        let file = options.open(&path).unwrap();
        if anew {
            file.set_len(0).unwrap();
            file.sync_all().unwrap();
            File::open(path.parent().unwrap()).unwrap().sync_all().unwrap();
        }
        Self { path, file }
    }

    /// Durable when it returns.
    fn add(&self, line: &str) {
        (&self.file).write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    fn read(&self) -> Noted {
        let text = std::fs::read_to_string(&self.path).unwrap();
        let mut noted = Noted::default();
        // The last may have been cut off.
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            let mut words = line.split(' ');
            let kind = words.next().unwrap();
            let numbers: Vec<u32> = words.map(|word| word.parse().unwrap()).collect();
            match (kind, &numbers[..]) {
                ("new", [slice, chunk, generation]) => {
                    noted.lives.insert((*slice, *chunk), (*generation, 0));
                }
                ("has", [slice, chunk, generation, sectors]) => {
                    noted.lives.insert((*slice, *chunk), (*generation, *sectors));
                }
                ("remapped", [slice, count]) => {
                    noted.remapped.insert(*slice, *count);
                }
                ("ended", []) => noted.ended = true,
                _ => panic!("no note: {line}"),
            }
        }
        noted
    }
}

/// Says that the writer ended.
struct Ended<'a>(&'a Notes);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.add("ended");
    }
}

/// Sectors of a chunk's life from one on: each names its place and time throughout.
fn pattern(slice: u32, chunk: u32, generation: u32, first: u32, buf: &mut [u8], sector_bytes: usize) {
    for (sector, bytes) in (first..).zip(buf.chunks_mut(sector_bytes)) {
        let stamp = [generation, slice << 24 | chunk, sector, !sector].map(u32::to_le_bytes).concat();
        bytes.chunks_mut(16).for_each(|place| place.copy_from_slice(&stamp));
    }
}

/// One slice, as the writer and the verifier see it.
struct Slice {
    number: u32,
    media: DeviceMedia,
    notes: std::rc::Rc<Notes>,
}

impl Slice {
    async fn all(device: &Device, notes: &std::rc::Rc<Notes>) -> Vec<Self> {
        let mut slices = Vec::new();
        for number in 0..device.superblock().shards {
            let media = device.slice(number).await.unwrap();
            assert!(device.slice(number).await.is_err(), "slice {number} was handed out twice");
            slices.push(Self { number, media, notes: notes.clone() });
        }
        slices
    }

    fn sector_bytes(&self) -> usize {
        self.media.geometry().sector_bytes as usize
    }

    fn chunks(&self) -> u32 {
        self.media.geometry().chunk_count()
    }

    /// `None`: no volume, no table of what stands elsewhere.
    fn remapped(&self) -> Option<u32> {
        match &self.media {
            DeviceMedia::Zoned(volume) => Some(volume.status().remapped),
            _ => None,
        }
    }

    /// A life of every chunk, two at a time: one is written durably, the other flushed.
    async fn live(&self, generation: u32) {
        for chunk in (0..self.chunks()).step_by(2) {
            let durable = self.life(chunk, generation, Durability::Durable);
            let other = (chunk + 1 < self.chunks()).then_some(chunk + 1);
            let flushed = async {
                if let Some(chunk) = other {
                    self.life(chunk, generation, Durability::Volatile).await;
                }
            };
            join(durable, flushed).await;
            if let Some(remapped) = self.remapped() {
                self.notes.add(&format!("remapped {} {remapped}", self.number));
            }
        }
    }

    async fn life(&self, chunk: u32, generation: u32, durability: Durability) {
        self.notes.add(&format!("new {} {chunk} {generation}", self.number));
        self.media.reset(ChunkId(chunk)).await.unwrap();
        let chunk_sectors = self.media.geometry().chunk_sectors;
        let end = life_sectors(chunk).min(chunk_sectors);
        let mut at = 0;
        while at < end {
            let sectors = WRITE_SECTORS.min(end - at);
            self.write(chunk, generation, at, sectors, durability).await;
            at += sectors;
            if durability == Durability::Volatile {
                if at < end && !(at / WRITE_SECTORS).is_multiple_of(3) {
                    continue;
                }
                self.media.flush().await.unwrap();
            }
            self.notes.add(&format!("has {} {chunk} {generation} {at}", self.number));
        }
        if end < chunk_sectors {
            self.media.finish(ChunkId(chunk)).await.unwrap();
        }
    }

    async fn write(&self, chunk: u32, generation: u32, at: u32, sectors: u32, durability: Durability) {
        let mut buf = AlignedBuf::zeroed(sectors as usize * self.sector_bytes());
        pattern(self.number, chunk, generation, at, &mut buf, self.sector_bytes());
        self.media.write(ChunkId(chunk), at, buf, durability).await.0.unwrap();
    }

    /// All that was noted is there.
    async fn check(&self) {
        let noted = self.notes.read();
        let report = self.media.report().await.unwrap();
        for ((slice, chunk), (generation, sectors)) in noted.lives {
            if slice != self.number || sectors == 0 {
                continue;
            }
            let info = report[chunk as usize];
            let told =
                format!("chunk {chunk} of slice {slice}: {sectors} sectors of life {generation}, {info:?}");
            assert!(matches!(info.state, ChunkState::Open | ChunkState::Closed), "{told}");
            assert!(info.write_pointer >= sectors, "{told}");
            for first in (0..sectors).step_by(WRITE_SECTORS as usize) {
                let bytes = WRITE_SECTORS.min(sectors - first) as usize * self.sector_bytes();
                let mut expected = vec![0; bytes];
                pattern(slice, chunk, generation, first, &mut expected, self.sector_bytes());
                let read = self.media.read(ChunkId(chunk), first, AlignedBuf::zeroed(bytes)).await;
                read.0.unwrap();
                assert!(read.1[..] == expected[..], "{told}; other bytes from sector {first} on");
            }
        }
        let noted = noted.remapped.get(&self.number).copied();
        assert!(self.remapped() >= noted, "{:?} stand elsewhere, {noted:?} did", self.remapped());
    }

    /// Goes on in the chunks that were being written.
    async fn resume(&self) {
        let lives = self.notes.read().lives;
        for info in self.media.report().await.unwrap() {
            let (chunk, at) = (info.id.0, info.write_pointer);
            let Some((generation, sectors)) = lives.get(&(self.number, chunk)) else { continue };
            if info.state == ChunkState::Open && at == *sectors {
                self.write(chunk, *generation, at, WRITE_SECTORS, Durability::Durable).await;
                self.notes.add(&format!("has {} {chunk} {generation} {}", self.number, at + WRITE_SECTORS));
            }
        }
    }
}

/// `test` is the test's whole name, by which the writer calls it again.
fn in_this_phase(test: &str, variable: &str, kind: DeviceKind, options: &FormatOptions) {
    let Ok(phase) = std::env::var("TERRANE_PHASE") else { return };
    let Some(path) = named(variable) else { return };
    match phase.as_str() {
        "write" => {
            Device::format(&path, options, &KindOptions::default(), &mut |_, _| {}).unwrap();
            if kind == DeviceKind::Conventional {
                // What happened to one copy of the superblock does not matter.
                let device = OpenOptions::new().write(true).open(&path).unwrap();
                device.write_all_at(&[0; 4096], COPY_OFFSETS[0]).unwrap();
                device.sync_all().unwrap();
            }
            drop(Notes::of(test, true));
            start_writer(test);
        }
        "writer" => write_until_the_machine_dies(test, &path),
        "verify" => verify(test, &path, kind, options),
        other => panic!("TERRANE_PHASE is {other}"),
    }
}

/// Returns when it is under way.
#[expect(clippy::zombie_processes, reason = "it is to live until the machine dies")]
fn start_writer(test: &str) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture"]).env("TERRANE_PHASE", "writer");
    let mut writer = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(writer.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(said.any(|line| line == UNDER_WAY), "the writer ended");
}

#[expect(clippy::print_stdout, reason = "so that the test hears of it")]
fn write_until_the_machine_dies(test: &str, path: &Path) {
    let notes = std::rc::Rc::new(Notes::of(test, false));
    let _ended = Ended(&notes);
    let device = open(path).unwrap();
    run(async {
        let slices = Slice::all(&device, &notes).await;
        for generation in 0.. {
            for slice in &slices {
                slice.live(generation).await;
            }
            if generation == 0 {
                // The harness has begun a line.
                println!("\n{UNDER_WAY}");
            }
        }
    });
}

fn verify(test: &str, path: &Path, kind: DeviceKind, options: &FormatOptions) {
    let notes = std::rc::Rc::new(Notes::of(test, false));
    let noted = notes.read();
    assert!(!noted.ended, "the writer ended before the machine");
    let last = noted.lives.values().map(|(generation, _)| *generation).max().unwrap();
    assert!(last > 0, "the reset came before the writer was under way");
    for goes_on in [true, false] {
        let device = open(path).unwrap();
        let superblock = *device.superblock();
        let FormatOptions { cluster, node, shards, .. } = *options;
        assert_eq!(
            (superblock.kind, superblock.cluster, superblock.node, superblock.shards),
            (kind, cluster, node, shards)
        );
        assert!(matches!(open(path), Err(OpenError::InUse { .. })));
        run(async {
            for slice in Slice::all(&device, &notes).await {
                slice.check().await;
                if goes_on {
                    slice.resume().await;
                    slice.check().await;
                    slice.live(last + 1).await;
                }
            }
        });
    }
}

#[test]
fn hard_reset_of_a_conventional_device() {
    let options = FormatOptions { shards: 2, size_bytes: 65 << 20, chunk_bytes: Some(4 << 20), ..OPTIONS };
    in_this_phase(
        "hard_reset::hard_reset_of_a_conventional_device",
        "TERRANE_CONV_BLOCK",
        DeviceKind::Conventional,
        &options,
    );
}

#[test]
fn hard_reset_of_a_zoned_block_device() {
    in_this_phase(
        "hard_reset::hard_reset_of_a_zoned_block_device",
        "TERRANE_ZNS_BLOCK",
        DeviceKind::Zoned,
        &OPTIONS,
    );
}

#[test]
fn hard_reset_of_zones_by_passthrough() {
    in_this_phase(
        "hard_reset::hard_reset_of_zones_by_passthrough",
        "TERRANE_ZNS_CHAR",
        DeviceKind::Zoned,
        &OPTIONS,
    );
}

#[test]
fn hard_reset_of_a_namespace_with_placement_handles() {
    in_this_phase(
        "hard_reset::hard_reset_of_a_namespace_with_placement_handles",
        "TERRANE_FDP_CHAR",
        DeviceKind::Fdp,
        &OPTIONS,
    );
}

/// One of its lines could not be written to the end before the reset, and stands elsewhere.
#[test]
fn hard_reset_of_a_device_with_a_bad_zone() {
    let test = "hard_reset::hard_reset_of_a_device_with_a_bad_zone";
    in_this_phase(test, "TERRANE_BAD_ZNS_CHAR", DeviceKind::Zoned, &OPTIONS);
    if std::env::var("TERRANE_PHASE").is_ok_and(|phase| phase == "verify")
        && named("TERRANE_BAD_ZNS_CHAR").is_some()
    {
        assert!(Notes::of(test, false).read().remapped[&0] > 0);
    }
}
