//! The chunk descriptor: what the device's chunk information log says of each chunk (Open-Channel 2.0, section "Get
//! Log Page - Chunk Information"; the layout as in the public headers of SPDK and QEMU).
//!
//! ```text
//! byte  0      1     2           3         8       16      24        32
//!       | state| type| wear index| reserved| start | blocks| pointer |
//! ```

use super::address::Ppa;
use crate::media::ChunkState;

/// Bytes of a descriptor.
pub const DESCRIPTOR_BYTES: usize = 32;

/// Written front to back, the only type this device has.
const TYPE_SEQUENTIAL: u8 = 1;

/// Write pointer of a chunk that has none.
const NO_WRITE_POINTER: u64 = u64::MAX;

/// One chunk as the device's own log describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkDescriptor {
    /// Its state.
    pub state: ChunkState,
    /// How worn it is, from 0 to 255 at the end of a mean chunk's life.
    pub wear_index: u8,
    /// Address of its first sector.
    pub start: Ppa,
    /// Sectors it holds.
    pub sectors: u64,
    /// First sector not yet written, relative to the chunk; `None`: the chunk is offline.
    pub write_pointer: Option<u64>,
}

impl ChunkDescriptor {
    /// The descriptor as it stands in the log.
    pub fn encode(&self) -> [u8; DESCRIPTOR_BYTES] {
        let mut bytes = [0; DESCRIPTOR_BYTES];
        bytes[0] = match self.state {
            ChunkState::Free => 1,
            ChunkState::Closed => 1 << 1,
            ChunkState::Open => 1 << 2,
            ChunkState::Offline => 1 << 3,
        };
        bytes[1] = TYPE_SEQUENTIAL;
        bytes[2] = self.wear_index;
        bytes[8..16].copy_from_slice(&self.start.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.sectors.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.write_pointer.unwrap_or(NO_WRITE_POINTER).to_le_bytes());
        bytes
    }

    /// What the bytes say; `None`: no descriptor of a chunk that is written front to back.
    pub fn decode(bytes: &[u8; DESCRIPTOR_BYTES]) -> Option<Self> {
        let state = match bytes[0] {
            1 => ChunkState::Free,
            2 => ChunkState::Closed,
            4 => ChunkState::Open,
            8 => ChunkState::Offline,
            _ => return None,
        };
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        let write_pointer = Some(word(24)).filter(|pointer| *pointer != NO_WRITE_POINTER);
        let known = bytes[1] == TYPE_SEQUENTIAL && write_pointer.is_none() == (state == ChunkState::Offline);
        known.then(|| Self {
            state,
            wear_index: bytes[2],
            start: Ppa(word(8)),
            sectors: word(16),
            write_pointer,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes() {
        let descriptor = ChunkDescriptor {
            state: ChunkState::Open,
            wear_index: 7,
            start: Ppa(0x0102_0304_0506),
            sectors: 4096,
            write_pointer: Some(24),
        };
        let mut golden = [0; DESCRIPTOR_BYTES];
        golden[..3].copy_from_slice(&[4, 1, 7]);
        golden[8..16].copy_from_slice(&[6, 5, 4, 3, 2, 1, 0, 0]);
        golden[16..24].copy_from_slice(&[0, 0x10, 0, 0, 0, 0, 0, 0]);
        golden[24] = 24;
        assert_eq!(descriptor.encode(), golden);
        assert_eq!(ChunkDescriptor::decode(&golden), Some(descriptor));
        for (state, byte) in
            [(ChunkState::Free, 1), (ChunkState::Closed, 2), (ChunkState::Open, 4), (ChunkState::Offline, 8)]
        {
            let write_pointer = (state != ChunkState::Offline).then_some(0);
            let descriptor = ChunkDescriptor { state, write_pointer, ..descriptor };
            assert_eq!(descriptor.encode()[0], byte);
            assert_eq!(ChunkDescriptor::decode(&descriptor.encode()), Some(descriptor));
        }
    }

    #[test]
    fn other_bytes_are_no_descriptor() {
        let good = ChunkDescriptor {
            state: ChunkState::Free,
            wear_index: 0,
            start: Ppa(0),
            sectors: 1,
            write_pointer: Some(0),
        };
        for (at, byte) in [(0, 0), (0, 3), (0, 16), (1, 2), (1, 0x11)] {
            let mut bytes = good.encode();
            bytes[at] = byte;
            assert_eq!(ChunkDescriptor::decode(&bytes), None);
        }
        let mut bytes = good.encode();
        bytes[24..].fill(0xFF);
        assert_eq!(ChunkDescriptor::decode(&bytes), None, "a free chunk has a write pointer");
    }
}
