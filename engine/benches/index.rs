//! The index beside other ordered maps: memory beside the keys, and time per operation.
//!
//! ```text
//! cargo bench -p terrane-engine --bench index                    # 10 M random keys, fewer of other shapes
//! cargo bench -p terrane-engine --bench index -- --quick
//! cargo bench -p terrane-engine --bench index -- --keys 1000000 --shape random16 --map index
//! ```
//!
//! Each cell runs in a process of its own, so that the resident memory is that of one map. Keys are made on the fly (some
//! nanoseconds each) from their numbers. "counted" is what the map allocated, in the sizes that glibc makes of it;
//! "resident" also has what the allocator could not use again.

#![allow(clippy::print_stdout, reason = "a bench prints its table")]

#[path = "../tests/harness/counting_allocator.rs"]
mod counting_allocator;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::ops::Bound;

use clap::{Parser, ValueEnum};
use counting_allocator::{CountingAllocator, allocated_bytes};
use crossbeam_skiplist::SkipMap;
use terrane_engine::index::{Index, IndexBuilder, IndexMerge, Located, Place};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// The index beside other ordered maps
#[derive(Debug, Parser)]
struct Args {
    /// 200,000 keys of each shape at most
    #[arg(long)]
    quick: bool,
    /// Keys of each shape; by default 10 M random ones of 16 and 24 bytes, and fewer of the others
    #[arg(long)]
    keys: Option<u64>,
    /// These shapes of keys only
    #[arg(long)]
    shape: Vec<Shape>,
    /// These maps only
    #[arg(long)]
    map: Vec<Map>,
    /// One cell, in this process
    #[arg(long, hide = true)]
    cell: bool,
    /// What cargo passes on
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shape {
    /// 16 random bytes
    Random16,
    /// 24 random bytes
    Random24,
    /// "user" and 20 digits, in order
    Sequential,
    /// 40 bytes in common, then 8 random ones
    Prefixed,
    /// 1000 random bytes
    Random1000,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Map {
    /// The engine's
    Index,
    /// `std::collections::BTreeMap`
    Btreemap,
    /// `crossbeam_skiplist::SkipMap`, a concurrent skip list
    Skiplist,
}

/// SplitMix64 (Steele, Lea and Flood, OOPSLA '14).
fn mixed(number: u64) -> u64 {
    let mixed = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}

fn fill_random(key: &mut [u8], number: u64) {
    for (word, bytes) in (0..).zip(key.chunks_mut(8)) {
        bytes.copy_from_slice(&mixed(number ^ word << 40).to_be_bytes()[..bytes.len()]);
    }
}

impl Shape {
    fn keys(self) -> u64 {
        match self {
            Shape::Random16 | Shape::Random24 => 10_000_000,
            Shape::Sequential | Shape::Prefixed => 1_000_000,
            Shape::Random1000 => 100_000,
        }
    }

    /// A key to be filled in.
    fn form(self) -> Vec<u8> {
        match self {
            Shape::Random16 => vec![0; 16],
            Shape::Random24 => vec![0; 24],
            Shape::Sequential => b"user00000000000000000000".to_vec(),
            Shape::Prefixed => b"tenant-000042/table-orders/customer-0001........".to_vec(),
            Shape::Random1000 => vec![0; 1000],
        }
    }

    /// Makes the key of this number.
    fn fill(self, form: &mut [u8], number: u64) {
        match self {
            Shape::Random16 | Shape::Random24 | Shape::Random1000 => fill_random(form, number),
            Shape::Prefixed => fill_random(&mut form[40..], number),
            Shape::Sequential => {
                let mut rest = number;
                for digit in form[4..].iter_mut().rev() {
                    *digit = b'0' + (rest % 10) as u8;
                    rest /= 10;
                }
            }
        }
    }
}

/// 4096 chunks of 64 MiB, values of about 1 KB.
fn located(number: u64) -> Located {
    let random = mixed(number);
    let place = Place {
        chunk: (random % 4096) as u32,
        offset: (random >> 20) as u32 % (64 << 20),
        length: 1024 + (random >> 50) as u32 % 128,
    };
    Located::new(number + 1, place)
}

trait Subject: Default {
    /// True if the key is new.
    fn insert(&mut self, key: &[u8], located: Located) -> bool;
    fn get(&self, key: &[u8]) -> Option<Located>;
    fn remove(&mut self, key: &[u8]) -> bool;
    /// Visits all keys in order.
    fn scan(&self, visit: impl FnMut(&[u8], Located));
}

impl Subject for Index {
    fn insert(&mut self, key: &[u8], located: Located) -> bool {
        Index::insert(self, key, located).is_none()
    }

    fn get(&self, key: &[u8]) -> Option<Located> {
        Index::get(self, key)
    }

    fn remove(&mut self, key: &[u8]) -> bool {
        Index::remove(self, key).is_some()
    }

    fn scan(&self, mut visit: impl FnMut(&[u8], Located)) {
        let mut range = self.range(Bound::Unbounded, Bound::Unbounded);
        while let Some((key, located)) = range.next_key() {
            visit(key, located);
        }
    }
}

impl Subject for BTreeMap<Box<[u8]>, Located> {
    fn insert(&mut self, key: &[u8], located: Located) -> bool {
        match self.get_mut(key) {
            Some(known) => {
                *known = located;
                false
            }
            None => BTreeMap::insert(self, key.into(), located).is_none(),
        }
    }

    fn get(&self, key: &[u8]) -> Option<Located> {
        BTreeMap::get(self, key).copied()
    }

    fn remove(&mut self, key: &[u8]) -> bool {
        BTreeMap::remove(self, key).is_some()
    }

    fn scan(&self, mut visit: impl FnMut(&[u8], Located)) {
        self.iter().for_each(|(key, located)| visit(key, *located));
    }
}

#[derive(Default)]
struct Skiplist(SkipMap<Box<[u8]>, Located>);

impl Subject for Skiplist {
    fn insert(&mut self, key: &[u8], located: Located) -> bool {
        let keys = self.0.len();
        self.0.insert(key.into(), located);
        self.0.len() > keys
    }

    fn get(&self, key: &[u8]) -> Option<Located> {
        self.0.get(key).map(|entry| *entry.value())
    }

    fn remove(&mut self, key: &[u8]) -> bool {
        self.0.remove(key).is_some()
    }

    fn scan(&self, mut visit: impl FnMut(&[u8], Located)) {
        self.0.iter().for_each(|entry| visit(entry.key(), *entry.value()));
    }
}

/// Resident memory of this process, in bytes.
fn resident_bytes() -> i64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<i64>().ok()).expect("a number");
    pages * 4096
}

/// Time that this thread has run, in nanoseconds: what others on the machine take does not count.
fn cpu_ns() -> u64 {
    let schedstat =
        std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux with scheduler statistics");
    schedstat.split(' ').next().and_then(|ns| ns.parse().ok()).expect("a number")
}

fn ns_per(count: u64, work: impl FnOnce()) -> f64 {
    let start = cpu_ns();
    work();
    (cpu_ns() - start) as f64 / count as f64
}

fn cell<S: Subject>(name: &str, shape: Shape, keys: u64) {
    let mut key = shape.form();
    let (allocated, resident) = (allocated_bytes(), resident_bytes());
    let mut subject = S::default();
    let insert = ns_per(keys, || {
        for number in 0..keys {
            shape.fill(&mut key, number);
            assert!(subject.insert(&key, located(number)), "no key comes twice");
        }
    });
    let beside = |bytes: i64| bytes as f64 / keys as f64 - key.len() as f64;
    let counted = beside(allocated_bytes() - allocated);
    let resident = beside(resident_bytes() - resident);
    let probes = keys.min(2_000_000);
    let probe = |number: u64| mixed(number ^ 0x5555 << 32) % keys;
    let get = ns_per(probes, || {
        for number in 0..probes {
            shape.fill(&mut key, probe(number));
            assert!(black_box(subject.get(&key)).is_some());
        }
    });
    let update = ns_per(probes, || {
        for number in 0..probes {
            shape.fill(&mut key, probe(number));
            subject.insert(&key, located(keys + number));
        }
    });
    let scan = ns_per(keys, || {
        let mut count = 0;
        subject.scan(|key, located| {
            black_box((key, located));
            count += 1;
        });
        assert_eq!(count, keys);
    });
    let remove = ns_per(keys / 2, || {
        for number in 0..keys / 2 {
            shape.fill(&mut key, number * 2);
            assert!(subject.remove(&key));
        }
    });
    println!(
        "{name:>9} {:>10} {keys:>10} {counted:>8.1} {resident:>9.1} {insert:>8.0} {get:>8.0} {update:>8.0} \
         {remove:>8.0} {scan:>8.1}",
        format!("{shape:?}").to_lowercase()
    );
}

/// What recovery does with keys as it meets them, and with keys in order.
fn bulk(shape: Shape, keys: u64) {
    let mut key = shape.form();
    let mut index = Index::default();
    let merge = ns_per(keys, || {
        let mut merge = IndexMerge::default();
        for number in 0..keys {
            shape.fill(&mut key, number);
            merge.put(&key, located(number));
        }
        index = merge.finish();
    });
    let build = ns_per(keys, || {
        let mut builder = IndexBuilder::default();
        index.scan(|key, located| builder.push(key, located));
        assert_eq!(builder.finish().len(), keys);
    });
    println!(
        "{:>9} {:>10} {keys:>10} merged as recovery meets them: {merge:.0} ns a key; scanned and built in order: \
         {build:.0} ns a key",
        "bulk",
        format!("{shape:?}").to_lowercase()
    );
}

fn run_cell(shape: Shape, map: Map, keys: u64) {
    match map {
        Map::Index => {
            cell::<Index>("index", shape, keys);
            bulk(shape, keys);
        }
        Map::Btreemap => cell::<BTreeMap<Box<[u8]>, Located>>("BTreeMap", shape, keys),
        Map::Skiplist => cell::<Skiplist>("skiplist", shape, keys),
    }
}

/// What the argument is called.
fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().expect("no value is skipped").get_name().to_owned()
}

fn main() {
    let args = Args::parse();
    if args.cell {
        return run_cell(args.shape[0], args.map[0], args.keys.expect("a cell has a size"));
    }
    println!("bytes beside a key's own; nanoseconds of CPU per operation, with the making of its key");
    println!(
        "{:>9} {:>10} {:>10} {:>8} {:>9} {:>8} {:>8} {:>8} {:>8} {:>8}",
        "map", "keys", "number", "counted", "resident", "insert", "get", "update", "remove", "scan"
    );
    let shapes = if args.shape.is_empty() { Shape::value_variants() } else { &args.shape };
    let maps = if args.map.is_empty() { Map::value_variants() } else { &args.map };
    for &shape in shapes {
        let usual = if args.quick { shape.keys().min(200_000) } else { shape.keys() };
        let keys = args.keys.unwrap_or(usual);
        for &map in maps {
            let program = std::env::current_exe().expect("a program has a path");
            let mut cell = std::process::Command::new(program);
            cell.args(["--cell", "--keys", &keys.to_string(), "--shape", &name(shape), "--map", &name(map)]);
            assert!(cell.status().expect("it starts").success(), "{map:?} with {shape:?} failed");
        }
    }
}
