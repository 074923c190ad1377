//! The device in a file: what is refused, what survives a process that dies, and damage.

use std::fs::OpenOptions;
use std::future::{Future, poll_fn};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::task::Poll;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use terrane_ocssd::flash::FlashFileError;
use terrane_ocssd::{
    AlignedBuf, ChunkId, ChunkState, Durability, FlashDevice, FlashMedia, FlashOptions, Geometry, Media,
    MediaError, Notice, NoticeKind,
};

const SECTOR: usize = 4096;
const CHUNKS: u32 = 16;
const CHUNK_SECTORS: u32 = 32;

/// Where a killed process finds its device.
const CHILD_PATH: &str = "TERRANE_FLASH_CHILD";

fn options() -> FlashOptions {
    let geometry = Geometry {
        groups: 2,
        parallel_units: 2,
        chunks: CHUNKS / 4,
        chunk_sectors: CHUNK_SECTORS,
        sector_bytes: SECTOR as u32,
        ws_min: 2,
        ws_opt: 4,
        mw_cunits: 0,
        max_open: 0,
    };
    FlashOptions { geometry, ..FlashOptions::default() }
}

/// In the build's own temporary folder: a system's `/tmp` may be memory, without direct I/O.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("node.flash")
    }

    /// With a new device in it.
    fn with(options: &FlashOptions) -> Self {
        let folder = Self::new();
        FlashDevice::create_file(folder.path(), options, &mut |_, _| {}).unwrap();
        folder
    }

    fn open(&self) -> FlashDevice {
        FlashDevice::open_file(self.path()).unwrap()
    }

    fn refusal(&self) -> FlashFileError {
        FlashDevice::open_file(self.path()).expect_err("it must be refused")
    }

    /// Flips the bits of one byte of the file.
    fn damage(&self, at: u64) {
        let file = OpenOptions::new().read(true).write(true).open(self.path()).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[!byte[0]], at).unwrap();
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().build().unwrap();
    runtime.block_on(future)
}

fn filled(sectors: u32, byte: u8) -> AlignedBuf {
    let mut buf = AlignedBuf::zeroed(sectors as usize * SECTOR);
    buf.fill(byte);
    buf
}

async fn write(
    media: &FlashMedia,
    chunk: u32,
    sector: u32,
    sectors: u32,
    byte: u8,
) -> Result<(), MediaError> {
    media.write(ChunkId(chunk), sector, filled(sectors, byte), Durability::Volatile).await.0
}

async fn expect(media: &FlashMedia, chunk: u32, sectors: u32, byte: u8) {
    let (result, buf) = media.read(ChunkId(chunk), 0, filled(sectors, !byte)).await;
    result.unwrap();
    assert!(buf.iter().all(|found| *found == byte), "chunk {chunk} holds something else");
}

async fn state(media: &FlashMedia, chunk: u32) -> (ChunkState, u32) {
    let info = media.report().await.unwrap()[chunk as usize];
    (info.state, info.write_pointer)
}

#[test]
fn a_device_comes_back_as_it_was() {
    let odd = FlashOptions { seed: 5, bad_at_birth: 0.3, ecc_page_reads: 9, ..options() };
    let folder = Folder::with(&odd);
    let device = folder.open();
    assert_eq!(device.options(), odd);
    assert_eq!(device.path(), Some(folder.path()));
    let good: Vec<u32> =
        (0..CHUNKS).filter(|chunk| device.report()[*chunk as usize].state == ChunkState::Free).collect();
    assert!(good.len() < CHUNKS as usize && good.len() > 5);
    let media = device.slice(0, 1).unwrap();
    run(async {
        media.reset(ChunkId(good[0])).await.unwrap();
        write(&media, good[0], 0, 8, 1).await.unwrap();
        write(&media, good[1], 0, CHUNK_SECTORS, 2).await.unwrap();
        media.take_offline(ChunkId(good[2]));
        media.close_early(ChunkId(good[3]));
        write(&media, good[3], 0, 2, 3).await.unwrap_err();
        write(&media, good[4], 0, 4, 4).await.unwrap();
        media.fail_next_write_of(ChunkId(good[4]));
        write(&media, good[4], 4, 2, 4).await.unwrap_err();
    });
    let before = device.report();
    let notifications = device.notifications(0).last().unwrap().count;
    drop((media, device));

    let device = folder.open();
    assert_eq!(device.report(), before);
    device.notice(Notice { chunk: ChunkId(0), sectors: None, kind: NoticeKind::EccLow });
    assert_eq!(device.notifications(0)[0].count, notifications + 1, "counts go on");
    let media = device.slice(0, 1).unwrap();
    run(async {
        expect(&media, good[0], 8, 1).await;
        expect(&media, good[1], CHUNK_SECTORS, 2).await;
        expect(&media, good[4], 4, 4).await;
        let stopped = write(&media, good[4], 4, 2, 4).await;
        assert!(matches!(stopped, Err(MediaError::WriteFailed { sector: 4, .. })));
        assert!(matches!(write(&media, good[3], 0, 2, 3).await, Err(MediaError::ClosedEarly { .. })));
        write(&media, good[0], 8, 2, 1).await.unwrap();
        media.reset(ChunkId(good[4])).await.unwrap();
        write(&media, good[4], 0, 2, 7).await.unwrap();
        expect(&media, good[0], 10, 1).await;
        media.flush().await.unwrap();
    });
}

#[test]
fn a_power_cut_is_in_the_file() {
    for seed in 0..10 {
        let folder = Folder::with(&FlashOptions { seed, ..options() });
        let device = folder.open();
        let media = device.slice(0, 1).unwrap();
        let left = run(async {
            write(&media, 0, 0, 8, 1).await.unwrap();
            media.flush().await.unwrap();
            write(&media, 0, 8, 8, 1).await.unwrap();
            media.power_cut();
            media.power_on();
            let (_, left) = state(&media, 0).await;
            assert!((8..=16).contains(&left));
            expect(&media, 0, left, 1).await;
            left
        });
        drop((media, device));
        let media = folder.open().slice(0, 1).unwrap();
        run(async {
            assert_eq!(state(&media, 0).await, (ChunkState::Open, left));
            write(&media, 0, left, 2, 1).await.unwrap();
            expect(&media, 0, left + 2, 1).await;
        });
    }
}

/// Fails without the tasks that carry the data: the write would be neither there nor not.
#[test]
fn a_write_that_nobody_waits_for_arrives() {
    let folder = Folder::with(&options());
    let media = folder.open().slice(0, 1).unwrap();
    run(async {
        let mut dropped = Box::pin(write(&media, 0, 0, 8, 1));
        assert!(poll_fn(|context| Poll::Ready(dropped.as_mut().poll(context).is_pending())).await);
        drop(dropped);
        // Durable with all that is below it, so it waits until that arrived.
        let buf = filled(8, 1);
        media.write(ChunkId(0), 8, buf, Durability::Durable).await.0.unwrap();
        media.power_cut();
        media.power_on();
        assert_eq!(state(&media, 0).await, (ChunkState::Open, 16));
        expect(&media, 0, 16, 1).await;
    });
}

#[test]
fn slices_of_a_file_work_at_once() {
    let folder = Folder::with(&options());
    let device = folder.open();
    let threads: Vec<_> = (0..4)
        .map(|shard| {
            let device = device.clone();
            std::thread::spawn(move || {
                let media = device.slice(shard, 4).unwrap();
                run(async {
                    for chunk in 0..CHUNKS / 4 {
                        for at in (0..CHUNK_SECTORS).step_by(8) {
                            write(&media, chunk, at, 8, shard as u8).await.unwrap();
                        }
                        expect(&media, chunk, CHUNK_SECTORS, shard as u8).await;
                    }
                    media.flush().await.unwrap();
                });
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let counters = device.counters();
    assert_eq!(counters.programmed_bytes, u64::from(CHUNKS * CHUNK_SECTORS) * SECTOR as u64);
    assert_eq!(counters.amplification(), 1.0);
}

/// Each thread has a runtime of its own, and no waker of one may be used on another. Fails (panics) if whatever lands on one
/// thread wakes all that wait.
#[test]
fn who_waits_on_one_thread_is_not_woken_by_another() {
    let folder = Folder::with(&options());
    let device = folder.open();
    let threads: Vec<_> = (0..4)
        .map(|shard| {
            let device = device.clone();
            std::thread::spawn(move || {
                let media = device.slice(shard, 4).unwrap();
                run(async {
                    for _ in 0..10 {
                        let tasks: Vec<_> = (0..CHUNKS / 4)
                            .map(|chunk| {
                                let media = media.clone();
                                monoio::spawn(async move {
                                    media.reset(ChunkId(chunk)).await.unwrap();
                                    for at in (0..CHUNK_SECTORS).step_by(8) {
                                        let buf = filled(8, shard as u8);
                                        media
                                            .write(ChunkId(chunk), at, buf, Durability::Durable)
                                            .await
                                            .0
                                            .unwrap();
                                    }
                                    media.flush().await.unwrap();
                                })
                            })
                            .collect();
                        for task in tasks {
                            task.await;
                        }
                    }
                });
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn what_cannot_be_made_leaves_nothing() {
    let folder = Folder::new();
    let nonsense = Geometry { ws_min: 0, ..options().geometry };
    let wrong = FlashOptions { geometry: nonsense, ..options() };
    let made = FlashDevice::create_file(folder.path(), &wrong, &mut |_, _| {});
    assert!(matches!(made, Err(FlashFileError::Options { .. })));
    assert!(!folder.path().exists());
    let small = Geometry { sector_bytes: 512, ..options().geometry };
    match FlashDevice::create_file(
        folder.path(),
        &FlashOptions { geometry: small, ..options() },
        &mut |_, _| {},
    ) {
        // Where the disk has blocks of 512 bytes this is a device.
        Ok(()) => std::fs::remove_file(folder.path()).unwrap(),
        Err(FlashFileError::Alignment { sector_bytes: 512, .. }) => assert!(!folder.path().exists()),
        Err(other) => panic!("{other}"),
    }
    let mut steps = Vec::new();
    FlashDevice::create_file(folder.path(), &options(), &mut |done, all| steps.push((done, all))).unwrap();
    let (done, all) = *steps.last().unwrap();
    assert_eq!((done, all), (3 << 20, 3 << 20), "a MiB of records, and 16 chunks of 128 KiB");
    let again = FlashDevice::create_file(folder.path(), &options(), &mut |_, _| {});
    assert!(matches!(again, Err(FlashFileError::Exists { .. })));
    folder.open();
}

#[test]
fn what_is_not_such_a_device_is_refused_with_the_reason() {
    let folder = Folder::new();
    assert!(matches!(folder.refusal(), FlashFileError::Missing { .. }));
    std::fs::create_dir(folder.path()).unwrap();
    assert!(matches!(folder.refusal(), FlashFileError::NotAFile { .. }));
    std::fs::remove_dir(folder.path()).unwrap();
    for content in [vec![], b"something else".to_vec(), vec![0; 1 << 20]] {
        std::fs::write(folder.path(), content).unwrap();
        assert!(!FlashDevice::is_in_file(folder.path()).unwrap());
        assert!(matches!(folder.refusal(), FlashFileError::NotOurs { .. }));
    }

    let folder = Folder::with(&options());
    let device = folder.open();
    assert!(FlashDevice::is_in_file(folder.path()).unwrap());
    assert!(matches!(folder.refusal(), FlashFileError::InUse { .. }));
    drop(device);
    let says = |folder: &Folder, words: &str| {
        let error = folder.refusal();
        assert!(matches!(error, FlashFileError::Damaged { .. }), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    };
    // In the geometry, in the device's state, in the record of chunk 5: each there and back.
    for (at, words) in [(17, "header"), (4096, "state"), (8192 + 5 * 64 + 24, "record of chunk 5")] {
        folder.damage(at);
        says(&folder, words);
        folder.damage(at);
        folder.open();
    }
    folder.damage(8);
    assert!(matches!(folder.refusal(), FlashFileError::Newer { version: 254, .. }));
    folder.damage(8);
    let file = OpenOptions::new().write(true).open(folder.path()).unwrap();
    file.set_len((3 << 20) - 4096).unwrap();
    let FlashFileError::TooShort { needed_bytes, .. } = folder.refusal() else { panic!() };
    assert_eq!(needed_bytes, 3 << 20);
}

/// Writes until it is killed, and says what was answered. Run by the test below only.
#[test]
fn child_that_writes_until_it_is_killed() {
    let Ok(path) = std::env::var(CHILD_PATH) else {
        return;
    };
    let device = FlashDevice::open_file(path).unwrap();
    let media = device.slice(0, 1).unwrap();
    run(async {
        let mut out = std::io::stdout();
        // The test runner has begun a line.
        writeln!(out).unwrap();
        let mut life = 0_u32;
        loop {
            life += 1;
            for chunk in 0..CHUNKS {
                media.reset(ChunkId(chunk)).await.unwrap();
                writeln!(out, "reset {chunk} {life}").unwrap();
                for at in (0..CHUNK_SECTORS).step_by(4) {
                    // Two at once, so that some are under way whenever the end comes.
                    let byte = (chunk + life) as u8;
                    let mut first = Box::pin(write(&media, chunk, at, 2, byte));
                    let mut second = Box::pin(write(&media, chunk, at + 2, 2, byte));
                    let (mut a, mut b) = (false, false);
                    poll_fn(|context| {
                        a = a || first.as_mut().poll(context).is_ready();
                        b = b || second.as_mut().poll(context).is_ready();
                        if a && b { Poll::Ready(()) } else { Poll::Pending }
                    })
                    .await;
                    writeln!(out, "wrote {chunk} {}", at + 4).unwrap();
                }
            }
        }
    });
}

/// Fails if the write pointer in the file lags behind what was answered, or runs ahead of the data.
#[test]
fn what_was_answered_outlives_the_process() {
    let folder = Folder::with(&options());
    let mut rng = Pcg64Mcg::seed_from_u64(7);
    let mut wear = 0;
    for round in 0..6 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "file::child_that_writes_until_it_is_killed",
                "--nocapture",
                "--test-threads=1",
            ])
            .env(CHILD_PATH, folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut told: Vec<String> =
            lines.by_ref().take(rng.random_range(20..400)).map(Result::unwrap).collect();
        child.kill().unwrap();
        // What it said before the signal came counts too. Lines are written whole.
        told.extend(lines.map_while(Result::ok));
        child.wait().unwrap();

        let (mut pointers, mut bytes) = ([None; CHUNKS as usize], [0_u8; CHUNKS as usize]);
        let mut resets = 0;
        for line in &told {
            let words: Vec<&str> = line.split(' ').collect();
            let number = |at: usize| words[at].parse::<u32>().unwrap();
            match words[0] {
                "reset" => {
                    resets += 1;
                    pointers[number(1) as usize] = Some(0);
                    bytes[number(1) as usize] = (number(1) + number(2)) as u8;
                }
                "wrote" => pointers[number(1) as usize] = Some(number(2)),
                _ => {}
            }
        }
        let device = folder.open();
        let worn: u32 = device.report().iter().map(|info| info.wear).sum();
        let unanswered = worn - wear - resets;
        assert!(unanswered <= 1, "round {round}: {wear} erases, then {resets}, are not {worn}");
        wear = worn;
        let media = device.slice(0, 1).unwrap();
        let mut shorter = 0;
        run(async {
            for chunk in 0..CHUNKS {
                let (_, found) = state(&media, chunk).await;
                let Some(answered) = pointers[chunk as usize] else {
                    continue;
                };
                shorter += u32::from(found < answered);
                if found > 0 {
                    expect(&media, chunk, found, bytes[chunk as usize]).await;
                }
            }
        });
        // Only a reset whose answer was lost may have taken anything.
        assert!(
            shorter <= unanswered,
            "round {round}: {shorter} chunks are shorter than they were said to be"
        );
    }
}
