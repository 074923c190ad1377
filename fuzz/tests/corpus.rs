//! Every target over its corpus, and over seeded mutations of it: what fuzzing finds stays found, on any compiler.
//!
//! ```text
//! TERRANE_SEED=7 cargo test -p terrane-fuzz          one seed
//! TERRANE_RUNS=100000 cargo test -p terrane-fuzz     so many mutations of each target (default 3000)
//! UPDATE_EXPECT=1 cargo test -p terrane-fuzz         writes the seeds anew, after a format was changed
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};

use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use terrane_fuzz::{TARGETS, Target, seeds};

/// The largest input that is kept.
const INPUT_BYTES_MAX: usize = 4096;
/// The most inputs of one target.
const INPUTS_MAX: usize = 64;

fn corpus(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target)
}

/// The inputs that are kept, by name.
fn kept(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = corpus(target);
    let files = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut kept: Vec<_> = files
        .map(|file| {
            let file = file.unwrap();
            (file.file_name().into_string().unwrap(), fs::read(file.path()).unwrap())
        })
        .collect();
    kept.sort_unstable();
    kept
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

/// A copy with some bytes changed, taken out, put in or doubled.
fn mutated(random: &mut Pcg64Mcg, input: &[u8]) -> Vec<u8> {
    const TELLING: [u8; 6] = [0, 1, 0x7f, 0x80, 0xfe, 0xff];
    let mut bytes = input.to_vec();
    for _ in 0..random.random_range(1..=4) {
        let at = random.random_range(0..=bytes.len());
        let part = at..(at + random.random_range(0..=16)).min(bytes.len());
        match random.random_range(0..8) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
            1 if at < bytes.len() => bytes[at] = TELLING[random.random_range(0..TELLING.len())],
            2 => bytes[part].iter_mut().for_each(|byte| *byte = random.random()),
            3 => drop(bytes.drain(part)),
            4 => {
                let copy = bytes[part].to_vec();
                drop(bytes.splice(at..at, copy));
            }
            5 => bytes.insert(at, TELLING[random.random_range(0..TELLING.len())]),
            // A longer spelling of the same LEB128 number.
            6 if at < bytes.len() => {
                bytes[at] |= 0x80;
                bytes.insert(at + 1, 0);
            }
            _ => bytes.truncate(at.max(bytes.len() / 2)),
        }
    }
    bytes
}

/// Runs it; a panic is told with the input.
fn run(target: &Target, seed: u64, what: &str, input: &[u8]) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (target.run)(input))) {
        let name = target.name;
        eprintln!("{name} fails on {what}: {input:02x?}");
        eprintln!(
            "replay: TERRANE_SEED={seed} cargo test -p terrane-fuzz; then keep it as fuzz/corpus/{name}/NAME"
        );
        resume_unwind(panic);
    }
}

#[test]
fn every_target_withstands_its_corpus_and_mutations_of_it() {
    let seed = number("TERRANE_SEED").unwrap_or(0);
    let runs = number("TERRANE_RUNS").unwrap_or(3000);
    for target in &TARGETS {
        let mut random = Pcg64Mcg::seed_from_u64(seed);
        let kept = kept(target.name);
        for (name, input) in &kept {
            run(target, seed, name, input);
        }
        run(target, seed, "nothing", &[]);
        for _ in 0..runs {
            let (name, input) = &kept[random.random_range(0..kept.len())];
            let input = mutated(&mut random, input);
            run(target, seed, &format!("a mutation of {name}"), &input);
        }
    }
}

/// Fails when an encoder changes: what is mutated would no longer decode, and the targets would test nothing but checksums.
#[test]
fn the_seeds_are_what_is_written_today() {
    for target in &TARGETS {
        let today = seeds(target.name);
        assert!(!today.is_empty(), "{} has no seeds", target.name);
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            fs::create_dir_all(corpus(target.name)).unwrap();
            for (number, seed) in today.iter().enumerate() {
                fs::write(corpus(target.name).join(format!("seed-{number}")), seed).unwrap();
            }
        }
        let kept = kept(target.name);
        let written: Vec<_> =
            kept.iter().filter(|(name, _)| name.starts_with("seed-")).map(|(_, seed)| seed.clone()).collect();
        assert_eq!(written, today, "{}: UPDATE_EXPECT=1 writes the seeds anew", target.name);
        let small = kept.len() <= INPUTS_MAX && kept.iter().all(|(_, input)| input.len() <= INPUT_BYTES_MAX);
        assert!(small, "the corpus of {} is too large: cargo fuzz cmin", target.name);
    }
}

/// A target of cargo-fuzz for each, a corpus for each, and nothing else.
#[test]
fn targets_files_and_corpora_belong_together() {
    let names: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    assert_eq!(names.len(), TARGETS.len());
    let found = |folder: &str| -> BTreeSet<String> {
        let files = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).unwrap();
        files.map(|file| file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect()
    };
    assert_eq!(found("corpus"), names);
    assert_eq!(found("fuzz_targets"), names);
    let manifest = include_str!("../Cargo.toml");
    for name in names {
        assert!(
            manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")),
            "{name} is not in Cargo.toml"
        );
        let source =
            fs::read_to_string(format!("{}/fuzz_targets/{name}.rs", env!("CARGO_MANIFEST_DIR"))).unwrap();
        assert!(source.contains(&format!("run(\"{name}\", bytes)")), "{name}.rs runs another target");
    }
}
