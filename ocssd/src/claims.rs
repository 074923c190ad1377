//! Which parts of a device are handed out, so that no two owners write to one chunk or hope for the same resources.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

/// A part of a device that somebody owns.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    chunks: Range<u32>,
    /// Resources of the device that go with it, such as open zones.
    resources: u32,
}

/// The parts that are handed out. Shards on several threads take and give back theirs.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    parts: Mutex<Vec<Part>>,
}

impl Claims {
    /// Hands out `chunks` of a device that has `count`, with so many of its `resources_max` resources (0: without limit).
    pub(crate) fn take(
        self: &Arc<Self>,
        chunks: Range<u32>,
        count: u32,
        resources: u32,
        resources_max: u32,
    ) -> Result<Claim, &'static str> {
        if chunks.is_empty() || chunks.end > count {
            return Err("it is empty, or reaches beyond the device's end");
        }
        if resources_max != 0 && resources == 0 {
            return Err("it may have no zone open");
        }
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        if parts.iter().any(|part| part.chunks.start < chunks.end && chunks.start < part.chunks.end) {
            return Err("another slice has part of it");
        }
        let in_use = parts.iter().fold(resources, |sum, part| sum.saturating_add(part.resources));
        if resources_max != 0 && in_use > resources_max {
            return Err("all slices together may have more zones open than the device allows");
        }
        let part = Part { chunks, resources };
        parts.push(part.clone());
        Ok(Claim { claims: self.clone(), part, kept: false })
    }
}

/// A part that was handed out. It is given back when this is dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    claims: Arc<Claims>,
    part: Part,
    kept: bool,
}

impl Claim {
    /// Keeps the part from others for good: something may still be written to it.
    pub(crate) fn keep(&mut self) {
        self.kept = true;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if !self.kept {
            let mut parts = self.claims.parts.lock().unwrap_or_else(PoisonError::into_inner);
            parts.retain(|part| *part != self.part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_owners_share_a_chunk() {
        let claims = Arc::new(Claims::default());
        let first = claims.take(0..4, 8, 0, 0).unwrap();
        let mut second = claims.take(4..8, 8, 0, 0).unwrap();
        for taken in [0..1, 3..5, 7..8, 0..8] {
            assert!(claims.take(taken, 8, 0, 0).is_err());
        }
        drop(first);
        drop(claims.take(0..4, 8, 0, 0).unwrap());
        second.keep();
        drop(second);
        assert!(claims.take(4..5, 8, 0, 0).is_err());
        assert!(claims.take(3..3, 8, 0, 0).is_err());
        assert!(claims.take(0..9, 8, 0, 0).is_err());
    }

    #[test]
    fn resources_are_not_promised_twice() {
        let claims = Arc::new(Claims::default());
        let first = claims.take(0..1, 8, 5, 8).unwrap();
        assert!(claims.take(1..2, 8, 4, 8).is_err());
        assert!(claims.take(1..2, 8, 0, 8).is_err());
        let _second = claims.take(1..2, 8, 3, 8).unwrap();
        assert!(claims.take(2..3, 8, u32::MAX, 8).is_err());
        drop(first);
        claims.take(0..1, 8, 5, 8).unwrap();
    }
}
