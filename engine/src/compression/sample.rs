//! Whether bytes look random, from some hundred of them.
//!
//! Compressing what does not compress costs as much as compressing what does, for nothing. Of bytes that are drawn evenly, a
//! pair is equal in one of 256 cases; what an entropy coder could shorten by an eighth repeats itself at least twice as often
//! (half of all byte values in use). So pairs are counted. The btrfs file system looks at samples in the same spirit (Linux,
//! `fs/btrfs/compression.c`, "Compression heuristic").
//!
//! What it does not see: a stretch of evenly spread bytes that comes again later. Such a value is taken for random.

/// Pieces looked at, one in each equal part of the value.
const PIECES: usize = 32;
const PIECE_BYTES: usize = 8;
const SAMPLE_BYTES: usize = PIECES * PIECE_BYTES;

/// Equal pairs of a sample above which it is not random: half as many again as random bytes have on average (127.5, with a standard
/// deviation of 11.3), and three quarters of what half of all byte values give.
const PAIRS_MAX: u32 = (SAMPLE_BYTES * (SAMPLE_BYTES - 1) / 2 * 3 / 2 / 256) as u32;

/// Where in its part each piece stands, as a fraction of 2^32: drawn, so that no period of the value keeps step with them
/// (SplitMix64; Steele, Lea and Flood, OOPSLA '14).
const PLACES: [u64; PIECES] = {
    let mut places = [0; PIECES];
    let mut piece = 0;
    while piece < PIECES {
        let drawn = (piece as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let drawn = (drawn ^ drawn >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let drawn = (drawn ^ drawn >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        places[piece] = (drawn ^ drawn >> 31) >> 32;
        piece += 1;
    }
    places
};

/// Whether the value looks random. Values shorter than the sample never do: they are quickly tried.
pub fn looks_random(value: &[u8]) -> bool {
    if value.len() < SAMPLE_BYTES {
        return false;
    }
    let part_bytes = value.len() / PIECES;
    let room = (part_bytes - PIECE_BYTES + 1) as u64;
    let mut seen = [0_u16; 256];
    let mut pairs = 0_u32;
    for (part, place) in value.chunks_exact(part_bytes).zip(PLACES) {
        let at = ((place * room) >> 32) as usize;
        for byte in &part[at..at + PIECE_BYTES] {
            let seen = &mut seen[usize::from(*byte)];
            pairs += u32::from(*seen);
            *seen += 1;
        }
        if pairs > PAIRS_MAX {
            return false;
        }
    }
    true
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};
    use rand_pcg::Pcg64Mcg;

    pub(crate) fn random(seed: u64, bytes: usize) -> Vec<u8> {
        let mut out = vec![0; bytes];
        Pcg64Mcg::seed_from_u64(seed).fill_bytes(&mut out);
        out
    }

    #[test]
    fn random_bytes_look_random() {
        for bytes in [256, 257, 300, 1000, 1024, 4096, 16_384, 1 << 20] {
            for seed in 0..200 {
                assert!(looks_random(&random(seed, bytes)), "{bytes} bytes of seed {seed}");
            }
        }
        assert!(!looks_random(&random(0, 255)), "too short to tell");
    }

    #[test]
    fn what_compresses_does_not() {
        let text =
            b"It was the best of times, it was the worst of times, it was the age of wisdom".repeat(20);
        let numbers: Vec<u8> = (0..500_u64).flat_map(|n| (n * 7919).to_le_bytes()).collect();
        // Half of all byte values, evenly: an eighth is to be had.
        let seven_bits: Vec<u8> = random(5, 4096).iter().map(|byte| byte & 0x7f).collect();
        for value in [&text[..], &numbers, &seven_bits, &[0; 256]] {
            assert!(!looks_random(value));
        }
    }

    /// With pieces at equal distances: those of a value with that period all fall on its random half.
    #[test]
    fn a_period_does_not_hide_what_repeats() {
        for bytes in (256..8192).step_by(32) {
            for period in [bytes / PIECES, 2 * bytes / PIECES, 64, 200, 256, 512] {
                let mut value = random(bytes as u64, bytes);
                for grain in value.chunks_mut(period) {
                    let random = grain.len() / 2;
                    grain[random..].fill(3);
                }
                assert!(!looks_random(&value), "{bytes} bytes, period {period}");
            }
        }
    }
}
