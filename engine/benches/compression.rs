//! Values stored compressed: CPU time of a put's payload and of a get's value, and the bytes that are stored.
//!
//! ```text
//! cargo bench -p terrane-engine --bench compression
//! cargo bench -p terrane-engine --bench compression -- --quick
//! ```
//!
//! "put" is the making of the payload (without compression: a copy), "get" what turns a payload in memory into the value.
//! Of each few values the least time of some rounds counts, so that other work on the machine shows least. "half" values
//! are half random bytes, half one byte repeated, alternating every hundred bytes; "random" ones do not compress;
//! "documents" are JSON-like, of about 1 KiB.

#![allow(clippy::print_stdout, reason = "a bench prints its table")]

use std::hint::black_box;
use std::time::Instant;

use clap::Parser;
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;
use terrane_engine::compression::dictionary::{
    DICTIONARY_BYTES_MAX, Dictionary, DictionaryCompressor, Samples,
};
use terrane_engine::compression::{CompressionOptions, Decompressor, ValueCompressor, sample};
use terrane_engine::op::{self, Op, Stored};
use zstd::zstd_safe::CCtx;

/// Values stored compressed: time and bytes
#[derive(Debug, Parser)]
struct Args {
    /// Fewer rounds
    #[arg(long)]
    quick: bool,
    /// What cargo passes on
    #[arg(long, hide = true)]
    bench: bool,
}

const LEVELS: [i32; 5] = [-5, -3, -1, 1, 3];
const SIZES: [usize; 5] = [256, 1 << 10, 4 << 10, 16 << 10, 64 << 10];
/// Bytes of the values of one round: more than the caches nearest to the core.
const ROUND_BYTES: usize = 4 << 20;

fn half(seed: u64, bytes: usize) -> Vec<u8> {
    let mut rng = Pcg64Mcg::seed_from_u64(seed);
    let mut value = vec![seed as u8 | 1; bytes];
    for grain in value.chunks_mut(200) {
        let random = grain.len() / 2;
        rng.fill_bytes(&mut grain[..random]);
    }
    value
}

fn random(seed: u64, bytes: usize) -> Vec<u8> {
    let mut value = vec![0; bytes];
    Pcg64Mcg::seed_from_u64(seed).fill_bytes(&mut value);
    value
}

/// Fields that all have, and what each says: a third of it cannot be guessed.
fn document(seed: u64, _: usize) -> Vec<u8> {
    let mut noise = random(seed, 200).into_iter();
    let mut hex =
        |bytes: usize| -> String { noise.by_ref().take(bytes).map(|byte| format!("{byte:02x}")).collect() };
    let place = ["Lisbon", "Oslo", "Kyoto", "Quito", "Accra", "Perth"][(seed % 6) as usize];
    let mut document = format!(
        r#"{{"id":"{}","created_at":"2026-11-{:02}T{:02}:{:02}:00Z","type":"order","customer":{{"name":"{}","email":"{}@example.com","loyalty_level":{}}},"shipping_address":{{"street":"{}","city":"{place}","postal_code":"{}"}},"items":["#,
        hex(16),
        seed % 28 + 1,
        seed % 24,
        seed % 60,
        hex(8),
        hex(6),
        seed % 4,
        hex(10),
        hex(3),
    );
    for item in 0..5 {
        document.push_str(&format!(
            r#"{{"sku":"{}","quantity":{},"unit_price_cents":{},"gift_wrapped":{}}},"#,
            hex(6),
            (seed + item) % 5,
            (seed * 37 + item * 91) % 9999,
            (seed + item).is_multiple_of(2)
        ));
    }
    document.push_str(&format!(
        r#"],"payment":{{"method":"card","token":"{}","authorised":true}},"notes":"","signature":"{}"}}"#,
        hex(24),
        hex(32)
    ));
    document.into_bytes()
}

/// Nanoseconds for each value: of each few values the least of the rounds, and the average of these.
fn nanoseconds<T>(rounds: usize, values: &[T], mut each: impl FnMut(&T)) -> f64 {
    const FEW: usize = 16;
    let mut least = vec![f64::INFINITY; values.len().div_ceil(FEW)];
    for _ in 0..rounds {
        for (values, least) in values.chunks(FEW).zip(&mut least) {
            let start = Instant::now();
            values.iter().for_each(&mut each);
            *least = least.min(start.elapsed().as_nanos() as f64);
        }
    }
    least.iter().sum::<f64>() / values.len() as f64
}

fn raw_of(op: &[u8], decompressor: &mut Decompressor) -> Vec<u8> {
    let Some(Ok(Op::Put { value, .. })) = op::decode(op).next() else { unreachable!("it was made here") };
    match value {
        Stored::Raw(value) => value.to_vec(),
        Stored::Compressed { stored, raw_bytes } => {
            decompressor.decompress(stored, raw_bytes).expect("it was made here")
        }
    }
}

fn table(rounds: usize, name: &str, bytes: usize, make: impl Fn(u64, usize) -> Vec<u8>) {
    let count = (ROUND_BYTES / bytes) as u64;
    let values: Vec<Vec<u8>> = (0..count).map(|seed| make(seed, bytes)).collect();
    let raw: usize = values.iter().map(Vec::len).sum();
    let key = b"sixteen bytes so";
    let plain = nanoseconds(rounds, &values, |value| {
        black_box(op::encode_put(key, value, None));
    });
    let looked = nanoseconds(rounds, &values, |value| {
        black_box(sample::looks_random(value));
    });
    println!("| {name} {bytes} | none | {plain:.0} | | 1.00 | look: {looked:.0} ns |");
    for level in LEVELS {
        let options = CompressionOptions { level, value_bytes_min: 32 };
        let mut compressor = ValueCompressor::new(options).expect("the levels are sound");
        let mut decompressor = Decompressor::new();
        let put = nanoseconds(rounds, &values, |value| {
            black_box(op::encode_put_compressed(key, value, None, &mut compressor));
        });
        let ops: Vec<_> =
            values.iter().map(|value| op::encode_put_compressed(key, value, None, &mut compressor)).collect();
        let get = nanoseconds(rounds, &ops, |op| {
            black_box(raw_of(op, &mut decompressor));
        });
        // What zstd alone costs, whatever it finds.
        let mut out = vec![0; 2 * bytes + 1024];
        let mut context = CCtx::create();
        let zstd = nanoseconds(rounds, &values, |value| {
            black_box(context.compress(&mut out[..], value, level).expect("it has room"));
        });
        let stored: usize = ops.iter().map(|op| op.len() - key.len()).sum();
        let share = stored as f64 / raw as f64;
        println!(
            "| {name} {bytes} | {level} | {put:.0} | {get:.0} | {share:.3} | zstd alone: {zstd:.0} ns |"
        );
    }
}

fn dictionaries(rounds: usize) {
    println!("\n| documents | put ns | get ns | stored | memory |\n|---|---|---|---|---|");
    let mut samples = Samples::default();
    (0..).map(|seed| document(seed, 0)).take_while(|value| samples.add(value)).for_each(drop);
    let values: Vec<Vec<u8>> = (1 << 20..(1 << 20) + 2000).map(|seed| document(seed, 0)).collect();
    let raw: usize = values.iter().map(Vec::len).sum();
    println!("of {} bytes on average", raw / values.len());
    for level in [1, 3] {
        for kib in [4, 8, 16] {
            let start = Instant::now();
            let dictionary = samples
                .train((kib << 10).min(DICTIONARY_BYTES_MAX), level)
                .expect("they have much in common");
            let training_ms = start.elapsed().as_millis();
            with_dictionary(
                rounds,
                &values,
                &dictionary,
                &format!("level {level}, {kib} KiB, {training_ms} ms to train"),
            );
        }
    }
}

fn with_dictionary(rounds: usize, values: &[Vec<u8>], dictionary: &Dictionary, name: &str) {
    let mut compressor = DictionaryCompressor::new();
    let mut decompressor = Decompressor::new();
    let put = nanoseconds(rounds, values, |value| {
        black_box(compressor.compress(dictionary, value));
    });
    let pairs: Vec<(Vec<u8>, u32)> = values
        .iter()
        .map(|value| (compressor.compress(dictionary, value).expect("it is worth it"), value.len() as u32))
        .collect();
    let get = nanoseconds(rounds, &pairs, |(stored, raw_bytes)| {
        black_box(decompressor.decompress_with(dictionary, stored, *raw_bytes).expect("it was made here"));
    });
    let stored: usize = pairs.iter().map(|(stored, _)| stored.len()).sum();
    let raw: usize = values.iter().map(Vec::len).sum();
    let share = stored as f64 / raw as f64;
    println!("| {name} | {put:.0} | {get:.0} | {share:.3} | {} KiB |", dictionary.memory_bytes() >> 10);
}

fn main() {
    let args = Args::parse();
    let rounds = if args.quick { 5 } else { 25 };
    println!("| values | level | put ns | get ns | stored | |\n|---|---|---|---|---|---|");
    for bytes in SIZES {
        table(rounds, "half", bytes, half);
    }
    for bytes in SIZES {
        table(rounds, "random", bytes, random);
    }
    table(rounds, "documents", 1 << 10, document);
    dictionaries(rounds);
}
