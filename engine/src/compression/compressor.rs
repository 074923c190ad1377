//! Compressing: whether it is worth it, and how hard to try.

use zstd::zstd_safe::{CCtx, CParameter, FrameFormat, ResetDirective};

use crate::compression::{RAW_BYTES_MAX, sample, stored_bytes_max};
use crate::options::OptionsError;

/// How values are compressed. [Decision 11](../../../docs/decisions/0011-compression.md) has what was measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompressionOptions {
    /// Level of zstd. Default -1; -20 to 9. Negative levels only refer to what was there before, as LZ4 does. From 1 on the rest
    /// is coded too, which takes twice the time, and shortens text by another quarter. Reading is fast at each.
    pub level: i32,
    /// Bytes of a value below which it is left alone. Default 256, at least 32. What is short has little to repeat.
    pub value_bytes_min: u32,
}

impl Default for CompressionOptions {
    fn default() -> Self {
        Self { level: -1, value_bytes_min: 256 }
    }
}

impl CompressionOptions {
    /// Checks every option against its limits.
    pub fn validate(&self) -> Result<(), OptionsError> {
        if !(-20..=9).contains(&self.level) {
            let (option, value, limit) = ("level", i128::from(self.level), "it must be -20 to 9");
            return Err(OptionsError { option, value, limit });
        }
        if self.value_bytes_min < 32 {
            let value = i128::from(self.value_bytes_min);
            return Err(OptionsError { option: "value_bytes_min", value, limit: "it must be at least 32" });
        }
        Ok(())
    }
}

/// Compresses values one after the other. One for each thread: it keeps its tables, some hundred KiB for small values.
pub struct ValueCompressor {
    options: CompressionOptions,
    context: CCtx<'static>,
    stored: Vec<u8>,
}

impl std::fmt::Debug for ValueCompressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ValueCompressor").field("options", &self.options).finish_non_exhaustive()
    }
}

impl ValueCompressor {
    /// Fails if an option is outside its limits.
    pub fn new(options: CompressionOptions) -> Result<Self, OptionsError> {
        options.validate()?;
        Ok(Self { options, context: context(options.level), stored: Vec::new() })
    }

    /// How it compresses.
    pub fn options(&self) -> CompressionOptions {
        self.options
    }

    /// The compressed form of a value, if it is worth storing instead: an eighth shorter at least.
    pub fn compress(&mut self, value: &[u8]) -> Option<&[u8]> {
        let bytes = value.len();
        if bytes < self.options.value_bytes_min as usize || bytes > RAW_BYTES_MAX as usize {
            return None;
        }
        if sample::looks_random(value) {
            return None;
        }
        let bytes_max = stored_bytes_max(bytes);
        if self.stored.len() < bytes_max {
            self.stored.resize(bytes_max, 0);
        }
        // It fails where the room does not suffice, which is how it says that it is not worth it.
        let stored = self.context.compress2(&mut self.stored[..bytes_max], value).ok();
        if bytes_max > KEPT_BYTES_MAX {
            let large = std::mem::take(&mut self.stored);
            self.stored = stored.map(|stored| large[..stored].to_vec()).unwrap_or_default();
        }
        Some(&self.stored[..stored?])
    }
}

/// Room for the compressed form that is kept from value to value, in bytes.
const KEPT_BYTES_MAX: usize = 128 << 10;

/// A context that writes frames as they are stored ([`crate::compression`]).
pub(super) fn context(level: i32) -> CCtx<'static> {
    let mut context = CCtx::create();
    let parameters = [
        CParameter::CompressionLevel(level),
        CParameter::Format(FrameFormat::Magicless),
        CParameter::ContentSizeFlag(false),
        CParameter::ChecksumFlag(false),
        CParameter::DictIdFlag(false),
    ];
    for parameter in parameters {
        context.set_parameter(parameter).expect("zstd knows the parameter, and no frame is under way");
    }
    context
}

/// Ends a frame that failed half-way.
pub(super) fn end_frame(context: &mut CCtx<'_>) {
    context.reset(ResetDirective::SessionOnly).expect("a session can always be reset");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compression::Decompressor;
    use crate::compression::sample::tests::random;
    use proptest::prelude::*;

    fn compressor(level: i32) -> ValueCompressor {
        ValueCompressor::new(CompressionOptions { level, ..CompressionOptions::default() }).unwrap()
    }

    #[test]
    fn limits_are_named() {
        let usual = CompressionOptions::default();
        usual.validate().unwrap();
        let broken = [
            ("level", CompressionOptions { level: 10, ..usual }),
            ("level", CompressionOptions { level: -21, ..usual }),
            ("value_bytes_min", CompressionOptions { value_bytes_min: 31, ..usual }),
        ];
        for (option, options) in broken {
            assert_eq!(ValueCompressor::new(options).unwrap_err().option, option);
        }
    }

    #[test]
    fn what_is_short_long_or_random_is_left_alone() {
        let mut compressor = compressor(1);
        assert_eq!(compressor.compress(&[7; 255]), None);
        assert!(compressor.compress(&[7; 256]).is_some());
        assert!(compressor.compress(&vec![7; RAW_BYTES_MAX as usize]).is_some());
        assert_eq!(compressor.compress(&vec![7; RAW_BYTES_MAX as usize + 1]), None);
        assert_eq!(compressor.compress(&random(1, 4096)), None);
    }

    /// Without the limit: a value that is a hundredth shorter costs every reader its time.
    #[test]
    fn little_gain_is_no_gain() {
        let mut compressor = compressor(1);
        let value = |random_bytes| {
            let mut value = random(2, random_bytes);
            value.resize(4096, 9);
            value
        };
        // Both look compressible; only the second is by enough.
        for (random_bytes, worth) in [(3700, false), (3400, true)] {
            let value = value(random_bytes);
            assert!(!sample::looks_random(&value));
            let stored = compressor.compress(&value).map(<[u8]>::len);
            assert_eq!(stored.is_some(), worth, "{random_bytes}: {stored:?}");
            assert!(stored.is_none_or(|stored| stored <= 4096 - 512));
        }
    }

    /// What an earlier version stored stays readable. These bytes are of zstd 1.5.7; a later one may find others.
    #[test]
    fn golden_bytes_stay_readable() {
        let value = b"a value that says the same again and again, a value that says the same again".repeat(8);
        let mut stored = vec![0x00, 0x00, 0xb5, 0x01, 0x00, 0x64, 0x02];
        stored.extend(b"a value that says the same again and, ");
        stored.extend([0x04, 0x00, 0xf1, 0x4f, 0x50, 0x61, 0x28, 0x1c, 0x3c, 0x85, 0x31, 0x8b, 0x95, 0x27]);
        assert_eq!(Decompressor::new().decompress(&stored, value.len() as u32).unwrap(), value);
        let now = compressor(1).compress(&value).unwrap().to_vec();
        // Neither magic number nor content size, dictionary id or checksum (RFC 8878, section 3.1.1.1.1).
        assert_eq!(now[0], 0);
    }

    #[test]
    fn large_values_leave_no_large_buffer() {
        let mut compressor = compressor(-1);
        let mut value = random(3, 1_000_000);
        value[..500_000].fill(0);
        assert!(compressor.compress(&value).is_some());
        assert!(compressor.stored.capacity() <= 600_000, "{}", compressor.stored.capacity());
        assert!(compressor.compress(&[7; 300]).is_some());
    }

    proptest! {
        #[test]
        fn values_come_back_as_they_were(
            pieces in prop::collection::vec((any::<u8>(), 1_usize..400, any::<bool>()), 1..20), level in -20..=9_i32
        ) {
            let mut value = Vec::new();
            for (seed, bytes, repeats) in pieces {
                match repeats {
                    true => value.resize(value.len() + bytes, seed),
                    false => value.extend(random(seed.into(), bytes)),
                }
            }
            let mut compressor = compressor(level);
            if let Some(stored) = compressor.compress(&value) {
                prop_assert!(stored.len() <= stored_bytes_max(value.len()));
                let back = Decompressor::new().decompress(stored, value.len() as u32);
                prop_assert_eq!(back.unwrap(), value);
            }
        }
    }
}
