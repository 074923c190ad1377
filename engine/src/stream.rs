//! Streams: what is expected to live equally long is written together, so that it dies together.

use terrane_ocssd::LifetimeClass;

/// A stream of the log. Each fills one segment at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Stream {
    /// What users write, and states.
    User,
    /// What cleaning moves: it has lived longer than the rest already.
    Moved,
}

impl Stream {
    pub(crate) const ALL: [Self; 2] = [Self::User, Self::Moved];
    pub(crate) const COUNT: usize = Self::ALL.len();

    /// What the medium is told of its segments.
    ///
    /// What users write has the class of chunks of which nothing is said, the anchor's, so that these take no placement
    /// handle from the streams: a start is done with its anchor before the log begins, and freeing segments writes little.
    pub(crate) fn lifetime(self) -> LifetimeClass {
        LifetimeClass(self.slot() as u8)
    }

    /// Its place in arrays of streams, and its number in segment headers.
    pub(crate) fn slot(self) -> usize {
        self as usize
    }

    /// The stream of a segment header. A number of a later version is as good as the oldest stream.
    pub(crate) fn from_number(number: u32) -> Self {
        if number == 0 { Self::User } else { Self::Moved }
    }
}
