//! Dictionaries: what the values of a segment have in common, so that each of them can leave it out.
//!
//! A short value by itself has little to repeat; a thousand values of a kind repeat each other all the time. A dictionary is
//! trained on some of them (zstd's `ZDICT`, RFC 8878 section 5; the cover algorithm of Liao, Petri, Moffat and Wirth, SIGIR '16),
//! and each value is compressed against it alone, so it is still read by itself: with one read, if the dictionary is in memory.
//!
//! Invariants: training is deterministic, takes at most [`SAMPLES_BYTES_MAX`] of samples, and gives a dictionary of at most
//! [`DICTIONARY_BYTES_MAX`] bytes, or none where the samples have nothing in common.
//!
//! The store does not train dictionaries yet; a bench and the tests do.

use zstd::zstd_safe::{self, CCtx, CDict, DDict};

use crate::compression::compressor::{context, end_frame};
use crate::compression::{RAW_BYTES_MAX, stored_bytes_max};

/// Bytes of a dictionary, at most: a thousandth of a segment of 16 MiB.
pub const DICTIONARY_BYTES_MAX: usize = 16 << 10;

/// Bytes of samples that a dictionary is trained on, at most; a hundred times its size is what zstd advises.
pub const SAMPLES_BYTES_MAX: usize = 100 * DICTIONARY_BYTES_MAX;

/// Samples below which training is not tried: so few values would not pay for a dictionary.
pub const SAMPLES_LEAST: usize = 64;

/// Values that a dictionary is to be trained on.
#[derive(Debug, Default)]
pub struct Samples {
    bytes: Vec<u8>,
    lengths: Vec<usize>,
}

impl Samples {
    /// Adds a value. False if it has no room: there are enough.
    pub fn add(&mut self, value: &[u8]) -> bool {
        if self.bytes.len() + value.len() > SAMPLES_BYTES_MAX {
            return false;
        }
        self.bytes.extend_from_slice(value);
        self.lengths.push(value.len());
        true
    }

    /// Bytes of them.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// A dictionary of what they have in common, of at most `bytes_max` (and [`DICTIONARY_BYTES_MAX`]) bytes; `None` if they are
    /// too few or have too little in common. Takes about as long as compressing them ten times.
    pub fn train(&self, bytes_max: usize, level: i32) -> Option<Dictionary> {
        if self.lengths.len() < SAMPLES_LEAST {
            return None;
        }
        let mut bytes = vec![0; bytes_max.min(DICTIONARY_BYTES_MAX)];
        let trained = zstd_safe::train_from_buffer(&mut bytes[..], &self.bytes, &self.lengths).ok()?;
        bytes.truncate(trained);
        Dictionary::new(bytes, level)
    }
}

/// A dictionary, ready to compress and decompress with.
pub struct Dictionary {
    bytes: Vec<u8>,
    compressing: CDict<'static>,
    reading: DDict<'static>,
}

impl std::fmt::Debug for Dictionary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dictionary").field("bytes", &self.bytes.len()).finish_non_exhaustive()
    }
}

impl Dictionary {
    /// A dictionary as it is stored, for compressing at this level. `None` if zstd cannot use the bytes.
    pub fn new(bytes: Vec<u8>, level: i32) -> Option<Self> {
        // Bytes that are no dictionary would be taken for content to refer to: what was written is never that.
        zstd_safe::get_dict_id_from_dict(&bytes)?;
        if bytes.len() > DICTIONARY_BYTES_MAX {
            return None;
        }
        let compressing = CDict::try_create(&bytes, level)?;
        let reading = DDict::try_create(&bytes)?;
        Some(Self { bytes, compressing, reading })
    }

    /// As it is stored.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Memory that it takes, tables included, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.bytes.len() + self.compressing.sizeof() + self.reading.sizeof()
    }

    pub(super) fn for_reading(&self) -> &DDict<'static> {
        &self.reading
    }
}

/// Compresses values with dictionaries. It keeps its tables.
pub struct DictionaryCompressor {
    context: CCtx<'static>,
}

impl Default for DictionaryCompressor {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for DictionaryCompressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DictionaryCompressor").finish_non_exhaustive()
    }
}

impl DictionaryCompressor {
    /// One that has compressed nothing yet.
    pub fn new() -> Self {
        // The level is the dictionary's.
        Self { context: context(1) }
    }

    /// The compressed form of a value, if it is worth storing instead: an eighth shorter at least.
    pub fn compress(&mut self, dictionary: &Dictionary, value: &[u8]) -> Option<Vec<u8>> {
        if value.is_empty() || value.len() > RAW_BYTES_MAX as usize {
            return None;
        }
        let mut stored = vec![0; stored_bytes_max(value.len())];
        self.context.ref_cdict(&dictionary.compressing).expect("no frame is under way");
        let written = self.context.compress2(&mut stored[..], value);
        // The context must not know the dictionary any longer than it surely lives.
        end_frame(&mut self.context);
        self.context.disable_dictionary().expect("no frame is under way");
        stored.truncate(written.ok()?);
        Some(stored)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compression::sample::tests::random;
    use crate::compression::{CompressionOptions, Decompressor, ValueCompressor};

    /// A document of about 1 KiB: the same fields in each, most of what they say different.
    fn document(number: u64) -> Vec<u8> {
        let mut noise = random(number, 400).into_iter();
        let mut hex = |bytes: usize| -> String {
            noise.by_ref().take(bytes).map(|byte| format!("{byte:02x}")).collect()
        };
        let places = ["Lisbon", "Oslo", "Kyoto", "Quito", "Accra", "Perth"];
        let place = places[(number % 6) as usize];
        format!(
            r#"{{"id":"{}","created_at":"2026-11-{:02}T{:02}:{:02}:00Z","type":"order","customer":{{"name":"{}","email":"{}@example.com","loyalty_level":{}}},"shipping_address":{{"street":"{}","city":"{place}","postal_code":"{}"}},"items":[{{"sku":"{}","quantity":{},"unit_price_cents":{}}},{{"sku":"{}","quantity":{},"unit_price_cents":{}}}],"payment":{{"method":"card","token":"{}","authorised":true}},"notes":"{}","signature":"{}"}}"#,
            hex(16), number % 28 + 1, number % 24, number % 60, hex(8), hex(6), number % 4, hex(10), hex(3), hex(6),
            number % 5, number * 37 % 9999, hex(6), number % 3, number * 91 % 9999, hex(24), hex(60), hex(64),
        )
        .into_bytes()
    }

    fn trained() -> Dictionary {
        let mut samples = Samples::default();
        for number in 0..2000 {
            samples.add(&document(number));
        }
        samples.train(DICTIONARY_BYTES_MAX, 1).expect("documents have much in common")
    }

    /// Without a dictionary each document pays for its field names.
    #[test]
    fn documents_become_much_shorter_and_come_back() {
        let dictionary = trained();
        let mut with = DictionaryCompressor::new();
        let mut plain = ValueCompressor::new(CompressionOptions::default()).unwrap();
        let mut decompressor = Decompressor::new();
        let (mut plain_bytes, mut with_bytes) = (0, 0);
        // Others than those that it was trained on.
        for number in 5000..5500 {
            let value = document(number);
            let stored = with.compress(&dictionary, &value).expect("it is worth it");
            let back = decompressor.decompress_with(&dictionary, &stored, value.len() as u32);
            assert_eq!(back.unwrap(), value);
            plain_bytes += plain.compress(&value).map_or(value.len(), <[u8]>::len);
            with_bytes += stored.len();
        }
        assert!(with_bytes * 100 < plain_bytes * 75, "{plain_bytes} without, {with_bytes} with a dictionary");
    }

    #[test]
    fn sizes_are_bounded_and_training_says_the_same_again() {
        let dictionary = trained();
        assert!(dictionary.bytes().len() <= DICTIONARY_BYTES_MAX);
        assert!(dictionary.memory_bytes() < 256 << 10, "{}", dictionary.memory_bytes());
        assert_eq!(trained().bytes(), dictionary.bytes());
        let mut samples = Samples::default();
        let added = (0..).take_while(|number| samples.add(&document(*number))).count();
        assert!(samples.bytes() <= SAMPLES_BYTES_MAX && added > 1000);
        let small = samples.train(2 << 10, 1).unwrap();
        assert!(small.bytes().len() <= 2 << 10);
    }

    #[test]
    fn nothing_in_common_is_no_dictionary_or_no_gain() {
        let mut few = Samples::default();
        (0..SAMPLES_LEAST as u64 - 1).for_each(|number| assert!(few.add(&document(number))));
        assert!(few.train(DICTIONARY_BYTES_MAX, 1).is_none());
        let mut noise = Samples::default();
        (0..500).for_each(|seed| assert!(noise.add(&random(seed, 1000))));
        if let Some(dictionary) = noise.train(DICTIONARY_BYTES_MAX, 1) {
            assert_eq!(DictionaryCompressor::new().compress(&dictionary, &random(1000, 1000)), None);
        }
    }

    #[test]
    fn bytes_that_are_no_dictionary_are_refused() {
        let bytes = trained().bytes().to_vec();
        assert!(Dictionary::new(bytes.clone(), 1).is_some());
        assert!(Dictionary::new(bytes[4..].to_vec(), 1).is_none());
        assert!(Dictionary::new(bytes[..100].to_vec(), 1).is_none());
        assert!(Dictionary::new(Vec::new(), 1).is_none());
    }

    /// A value that does not compress fails half-way. And a value needs the dictionary that it was compressed with.
    #[test]
    fn a_failed_frame_leaves_the_compressor_working() {
        let dictionary = trained();
        let mut with = DictionaryCompressor::new();
        assert_eq!(with.compress(&dictionary, &random(1, 4096)), None);
        let value = document(9000);
        let stored = with.compress(&dictionary, &value).unwrap();
        drop(with);
        assert!(Decompressor::new().decompress(&stored, value.len() as u32).is_err());
        assert_eq!(
            Decompressor::new().decompress_with(&dictionary, &stored, value.len() as u32).unwrap(),
            value
        );
    }
}
