//! Devices that are there only where the environment names them: on real drives, or in the QEMU guest
//! (`ocssd/qemu/run --help` says what each variable names). **Everything on them is destroyed.**

use std::future::Future;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;
use std::task::Poll;

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use terrane_ocssd::{ChunkId, ChunkState, Durability, LifetimeClass, Media};

use crate::contract::{Harness, Probe};

/// The device that a variable names. Without it the caller's test passes, and says why.
pub(crate) fn device(variable: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    if path.is_none() {
        skipped(variable);
    }
    path
}

/// A number that a variable gives.
pub(crate) fn number(variable: &str) -> Option<u32> {
    let text = std::env::var(variable).ok();
    if text.is_none() {
        skipped(variable);
    }
    text.map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text}")))
}

fn skipped(variable: &str) {
    say(&format!("skipped: {variable} is not set"));
}

/// To whoever reads a test's output: of one that failed, or of all with `--nocapture`.
#[expect(clippy::print_stdout, reason = "tests have no log")]
fn say(line: &str) {
    println!("{line}");
}

/// Which half of a test that spans a hard reset of the machine this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Before the reset.
    Write,
    /// After it.
    Verify,
}

/// `None`: an ordinary run, in which such a test does nothing.
pub(crate) fn phase() -> Option<Phase> {
    match std::env::var("TERRANE_PHASE").ok()?.as_str() {
        "write" => Some(Phase::Write),
        "verify" => Some(Phase::Verify),
        other => panic!("TERRANE_PHASE is {other}, neither write nor verify"),
    }
}

/// In a runtime of its own.
pub(crate) fn run<T>(future: impl Future<Output = T>) -> T {
    let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().build().unwrap();
    runtime.block_on(future)
}

/// A kind of device, as the contract wants it.
pub(crate) trait Device {
    type Media: Media;

    /// Opens the device, and all of it as one slice.
    fn open(&self) -> Self::Media;

    fn remembers_write_pointers(&self) -> bool;
}

impl<D: Device> Harness for D {
    type Media = D::Media;

    fn create(&self) -> D::Media {
        let media = self.open();
        run(async {
            for chunk in 0..media.geometry().chunk_count() {
                media.reset(ChunkId(chunk)).await.unwrap();
            }
        });
        media
    }

    fn reopen(&self, media: D::Media) -> D::Media {
        drop(media);
        self.open()
    }

    fn remembers_write_pointers(&self) -> bool {
        Device::remembers_write_pointers(self)
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        run(future)
    }
}

/// All of them at once, in the order given.
pub(crate) async fn all<T>(futures: Vec<impl Future<Output = T>>) -> Vec<T> {
    let mut waiting: Vec<_> = futures.into_iter().map(|future| Some(Box::pin(future))).collect();
    let mut done: Vec<Option<T>> = waiting.iter().map(|_| None).collect();
    std::future::poll_fn(|context| {
        for (future, done) in waiting.iter_mut().zip(&mut done) {
            if let Some(Poll::Ready(value)) = future.as_mut().map(|future| future.as_mut().poll(context)) {
                *done = Some(value);
                *future = None;
            }
        }
        if done.iter().all(Option::is_some) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    done.into_iter().flatten().collect()
}

/// Chunks of a random history: few, so that each lives several times and all may be open at once.
const MODEL_CHUNKS: u32 = 6;
/// Steps of a random history.
const MODEL_STEPS: u32 = 250;
/// Units that a chunk gets in one life, unless it is smaller.
const MODEL_UNITS: u32 = 700;

/// What a chunk should be.
#[derive(Debug, Clone, Default)]
struct Model {
    closed: bool,
    /// The byte of each unit.
    units: Vec<u8>,
}

/// A random history of bursts of writes and appends, reads, finishes, resets, flushes and restarts: the device agrees with a
/// model at every step. `test` names the test for the replay.
pub(crate) fn agrees_with_a_model<H: Harness>(harness: &H, test: &str) {
    let seed = match std::env::var("TERRANE_SEED") {
        Ok(seed) => seed.parse().expect("TERRANE_SEED is a number"),
        Err(_) => RandomState::new().build_hasher().finish(),
    };
    let replay = format!("TERRANE_SEED={seed} ocssd/qemu/run -- {test}");
    say(&replay);
    let mut rng = Pcg64Mcg::seed_from_u64(seed);
    let mut model = vec![Model::default(); MODEL_CHUNKS as usize];
    let mut probe = Probe::of(harness.create());
    for _ in 0..MODEL_STEPS {
        if rng.random_ratio(1, 40) {
            probe = Probe::of(harness.reopen(probe.into_media()));
            if !harness.remembers_write_pointers() {
                model.iter_mut().for_each(|chunk| chunk.closed = true);
            }
        }
        harness.run(step(&probe, &mut model, &mut rng));
    }
}

async fn step<M: Media>(probe: &Probe<M>, model: &mut [Model], rng: &mut Pcg64Mcg) {
    let chunk = rng.random_range(0..MODEL_CHUNKS);
    let units = probe.chunk_writes.min(MODEL_UNITS);
    let Model { closed, units: content } = &mut model[chunk as usize];
    match rng.random_range(0..10) {
        0..=4 if !*closed => burst(probe, chunk, units, content, rng).await,
        5..=6 if !content.is_empty() => {
            let from = rng.random_range(0..content.len());
            let count = rng.random_range(1..=content.len() - from);
            let found = probe.read(chunk, from as u32, count).await.unwrap();
            for (unit, expected) in found.chunks(probe.ws_bytes).zip(&content[from..]) {
                assert!(unit.iter().all(|byte| byte == expected), "other bytes in chunk {chunk}");
            }
        }
        7 if !*closed && !content.is_empty() => {
            probe.media.finish(ChunkId(chunk)).await.unwrap();
            *closed = true;
        }
        8 => {
            probe.reset(chunk).await;
            probe.media.expect_lifetime(ChunkId(chunk), LifetimeClass(rng.random_range(0..4)));
            (*closed, *content) = (false, Vec::new());
        }
        _ => probe.media.flush().await.unwrap(),
    }
    let Model { closed, units: content } = &model[chunk as usize];
    let (state, write_pointer) = probe.state(chunk).await;
    let expected = match (closed, content.is_empty()) {
        (true, _) => ChunkState::Closed,
        (false, true) => ChunkState::Free,
        (false, false) => ChunkState::Open,
    };
    assert_eq!(state, expected, "chunk {chunk}");
    if state == ChunkState::Closed {
        assert!(write_pointer >= content.len() as u32);
    } else {
        assert_eq!(write_pointer, content.len() as u32);
    }
}

/// Several writes and appends of one chunk at once, as many as it takes.
async fn burst<M: Media>(
    probe: &Probe<M>,
    chunk: u32,
    units: u32,
    content: &mut Vec<u8>,
    rng: &mut Pcg64Mcg,
) {
    let mut end = content.len() as u32;
    let mut writes = Vec::new();
    for _ in 0..rng.random_range(1..=6) {
        // Most fit an append, some do not fit a command. One unit is left, so that no chunk closes by itself.
        let longest = if rng.random_ratio(1, 4) { 200 } else { 20 };
        let length = rng.random_range(1..=longest);
        if end + length >= units {
            break;
        }
        let (first, appends) = (rng.random(), rng.random_bool(0.5));
        let durability = if rng.random_bool(0.3) { Durability::Durable } else { Durability::Volatile };
        let (media, buf, at) = (probe.media.clone(), probe.pattern(first, length as usize), end * probe.ws);
        writes.push(async move {
            let place = if appends {
                media.append(ChunkId(chunk), buf, durability).await.0.unwrap()
            } else {
                media.write(ChunkId(chunk), at, buf, durability).await.0.unwrap();
                at
            };
            (place, first, length)
        });
        end += length;
    }
    let mut places = all(writes).await;
    places.sort_unstable();
    for (place, first, length) in places {
        assert_eq!(place, content.len() as u32 * probe.ws, "a hole or an overlap in chunk {chunk}");
        content.extend((0..length).map(|index| first.wrapping_add(index as u8)));
    }
}
