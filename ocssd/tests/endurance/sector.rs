//! Sectors that say themselves what they are, so that a reader knows stale, misdirected and corrupt ones.
//!
//! | bytes | content |
//! |---|---|
//! | 0..4 | chunk |
//! | 4..8 | sector |
//! | 8..12 | life of the chunk, which rises at each reset |
//! | 12..20 | number of the write, never used twice |
//! | 20..len-4 | filler that depends on the number |
//! | len-4..len | CRC-32C of all before |

use terrane_ocssd::ChunkId;

/// What a sector says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tag {
    pub(crate) chunk: ChunkId,
    pub(crate) sector: u32,
    pub(crate) life: u32,
    pub(crate) number: u64,
}

/// An odd multiplier, so that every number has a filler of its own (Knuth, TAOCP vol. 3, section 6.4).
const FILLER: u64 = 0x9e37_79b9_7f4a_7c15;

impl Tag {
    pub(crate) fn encode(&self, bytes: &mut [u8]) {
        let end = bytes.len() - 4;
        bytes[..4].copy_from_slice(&self.chunk.0.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.sector.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.life.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.number.to_le_bytes());
        let filler = self.number.wrapping_mul(FILLER).to_le_bytes();
        for part in bytes[20..end].chunks_mut(filler.len()) {
            part.copy_from_slice(&filler[..part.len()]);
        }
        let checksum = crc32c::crc32c(&bytes[..end]);
        bytes[end..].copy_from_slice(&checksum.to_le_bytes());
    }

    /// `None`: the checksum is wrong.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (content, checksum) = bytes.split_last_chunk::<4>()?;
        if crc32c::crc32c(content) != u32::from_le_bytes(*checksum) {
            return None;
        }
        let word = |at: usize| content[at..].first_chunk::<4>().map(|word| u32::from_le_bytes(*word));
        let number = content[12..].first_chunk::<8>().map(|number| u64::from_le_bytes(*number));
        Some(Self { chunk: ChunkId(word(0)?), sector: word(4)?, life: word(8)?, number: number? })
    }
}

#[test]
fn a_sector_of_zeros_says_nothing() {
    let tag = Tag { chunk: ChunkId(1), sector: 2, life: 3, number: 4 };
    let mut bytes = [0; 512];
    // The CRC-32C of zeros is not zero.
    assert_eq!(Tag::decode(&bytes), None);
    tag.encode(&mut bytes);
    assert_eq!(Tag::decode(&bytes), Some(tag));
    bytes[300] ^= 1;
    assert_eq!(Tag::decode(&bytes), None);
}
