//! Decompressing: exactly the length that was said, or an error.

use zstd::zstd_safe::{self, DCtx, DParameter, FrameFormat};

use crate::compression::RAW_BYTES_MAX;
use crate::compression::dictionary::Dictionary;

/// A stored value that no raw value comes out of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecompressError {
    /// It is not a frame, or one that was damaged, or more comes out of it than it should.
    #[error("it does not decompress to {raw_bytes} bytes: {what}")]
    Frame {
        /// The raw length that was said.
        raw_bytes: u32,
        /// What zstd says.
        what: &'static str,
    },
    /// Less comes out of it than it should.
    #[error("it decompresses to {found} bytes instead of {raw_bytes}")]
    Length {
        /// The raw length that was said.
        raw_bytes: u32,
        /// What came out.
        found: usize,
    },
    /// The raw length that was said is more than any value may have.
    #[error("a raw length of {0} bytes exceeds the limit of {RAW_BYTES_MAX}")]
    TooLarge(u32),
}

/// Decompresses values one after the other. It keeps about 100 KiB of tables.
pub struct Decompressor {
    context: DCtx<'static>,
}

impl Default for Decompressor {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decompressor").finish_non_exhaustive()
    }
}

impl Decompressor {
    /// One that has decompressed nothing yet.
    pub fn new() -> Self {
        let mut context = DCtx::create();
        let format = DParameter::Format(FrameFormat::Magicless);
        context.set_parameter(format).expect("zstd knows the parameter, and no frame is under way");
        Self { context }
    }

    /// The raw value, which must be of exactly this length. Takes no more memory than that, whatever is in `stored`.
    pub fn decompress(&mut self, stored: &[u8], raw_bytes: u32) -> Result<Vec<u8>, DecompressError> {
        self.exactly(raw_bytes, |context, raw| context.decompress(raw, stored))
    }

    /// The same of a value that was compressed with a dictionary.
    pub fn decompress_with(
        &mut self,
        dictionary: &Dictionary,
        stored: &[u8],
        raw_bytes: u32,
    ) -> Result<Vec<u8>, DecompressError> {
        self.exactly(raw_bytes, |context, raw| {
            context.decompress_using_ddict(raw, stored, dictionary.for_reading())
        })
    }

    fn exactly(
        &mut self,
        raw_bytes: u32,
        decompress: impl FnOnce(&mut DCtx<'static>, &mut Vec<u8>) -> zstd_safe::SafeResult,
    ) -> Result<Vec<u8>, DecompressError> {
        if raw_bytes > RAW_BYTES_MAX {
            return Err(DecompressError::TooLarge(raw_bytes));
        }
        let mut raw = Vec::with_capacity(raw_bytes as usize);
        let decompressed = decompress(&mut self.context, &mut raw);
        let found = decompressed
            .map_err(|code| DecompressError::Frame { raw_bytes, what: zstd_safe::get_error_name(code) })?;
        if found != raw_bytes as usize {
            return Err(DecompressError::Length { raw_bytes, found });
        }
        Ok(raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compression::{CompressionOptions, ValueCompressor};
    use proptest::prelude::*;

    fn stored(value: &[u8]) -> Vec<u8> {
        let mut compressor = ValueCompressor::new(CompressionOptions::default()).unwrap();
        compressor.compress(value).unwrap().to_vec()
    }

    #[test]
    fn another_length_than_said_is_an_error() {
        let value = [5; 1000];
        let stored = stored(&value);
        let mut decompressor = Decompressor::new();
        assert_eq!(decompressor.decompress(&stored, 1000).unwrap(), value);
        let less = decompressor.decompress(&stored, 1001);
        assert_eq!(less, Err(DecompressError::Length { raw_bytes: 1001, found: 1000 }));
        let more = decompressor.decompress(&stored, 999);
        assert!(matches!(more, Err(DecompressError::Frame { raw_bytes: 999, .. })), "{more:?}");
        let cut = decompressor.decompress(&stored[..stored.len() - 1], 1000);
        assert!(matches!(cut, Err(DecompressError::Frame { .. })), "{cut:?}");
        assert!(decompressor.decompress(&[], 1000).is_err());
        // And it goes on to work.
        assert_eq!(decompressor.decompress(&stored, 1000).unwrap(), value);
    }

    /// A frame of some bytes that says that it is large: nothing is set aside for what it says.
    #[test]
    fn a_bomb_takes_no_more_than_was_said() {
        let bomb = stored(&vec![0; RAW_BYTES_MAX as usize]);
        assert!(bomb.len() < 1000, "{}", bomb.len());
        let mut decompressor = Decompressor::new();
        assert!(matches!(decompressor.decompress(&bomb, 1000), Err(DecompressError::Frame { .. })));
        assert_eq!(decompressor.decompress(&bomb, u32::MAX), Err(DecompressError::TooLarge(u32::MAX)));
        // The same said by the frame itself: a content size of 2^60 (RFC 8878, section 3.1.1.1).
        let mut sized = vec![0b1110_0000];
        sized.extend_from_slice(&(1_u64 << 60).to_le_bytes());
        sized.extend_from_slice(&[0b11, 0, 0, 7]);
        assert!(matches!(decompressor.decompress(&sized, 1000), Err(DecompressError::Frame { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), raw in 0_u32..5000) {
            if let Ok(raw_value) = Decompressor::new().decompress(&bytes, raw) {
                prop_assert_eq!(raw_value.len(), raw as usize);
            }
        }

        #[test]
        fn damage_never_gives_another_length(at in any::<prop::sample::Index>(), flip in 1_u8..) {
            let value = b"a value that says the same again and again ".repeat(30);
            let mut stored = stored(&value);
            let at = at.index(stored.len());
            stored[at] ^= flip;
            if let Ok(raw) = Decompressor::new().decompress(&stored, value.len() as u32) {
                prop_assert_eq!(raw.len(), value.len());
            }
        }
    }
}
