//! Streams: what is expected to live equally long is written together, so that it dies together.
//!
//! ```text
//!  number   0 .. 3                        4 .. 15
//!  streams  of users, while little is     of the classes of lifetime, hottest first: what is moved, and what
//!           written at once               users write while much is
//! ```
//!
//! A frame costs its header and padding, so a flush that carries little goes to few streams
//! ([`user_streams`](placement::user_streams)). A slice of few chunks, or on a medium that keeps few chunks open, has fewer of each.

use terrane_ocssd::LifetimeClass;

use crate::policy::placement::{CLASSES, Class};

/// A stream of the log. Each fills one segment at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Stream(u8);

/// Streams that only users' writes go to.
const USERS_MAX: u8 = 4;

impl Stream {
    /// What users write goes here when room is short, and the states of groups.
    pub(crate) const USER: Self = Self(0);
    pub(crate) const COUNT: usize = (USERS_MAX + CLASSES) as usize;

    pub(crate) fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT as u8).map(Self)
    }

    /// What the medium is told of its segments.
    ///
    /// What users write has the class of chunks of which nothing is said, the anchor's, so that these take no placement
    /// handle from the streams: a start is done with its anchor before the log begins, and freeing segments writes little.
    pub(crate) fn lifetime(self) -> LifetimeClass {
        LifetimeClass(self.0)
    }

    /// Its place in arrays of streams, and its number in segment headers.
    pub(crate) fn slot(self) -> usize {
        usize::from(self.0)
    }

    /// The stream of a segment header. A number of a later version is as good as the coldest stream.
    pub(crate) fn from_number(number: u32) -> Self {
        Self(u8::try_from(number).unwrap_or(u8::MAX).min(Self::COUNT as u8 - 1))
    }
}

/// Which streams a slice has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Streams {
    /// Of users alone: 1 to [`USERS_MAX`].
    users: u8,
    /// Of classes: 1 to [`CLASSES`].
    classes: u8,
}

/// Chunks of a slice for each stream of a class: open segments are space that is not filled.
const CHUNKS_PER_CLASS: u32 = 32;
const CHUNKS_PER_USER_STREAM: u32 = 64;
/// Chunks of the anchor that may be open beside the streams'.
const ANCHOR_OPEN: u32 = 2;

impl Streams {
    /// Those of a slice of so many chunks, on a medium that keeps `max_open` of them open (0: any number).
    pub(crate) fn of(chunk_count: u32, max_open: u32) -> Self {
        let open = if max_open == 0 { u32::MAX } else { max_open.saturating_sub(ANCHOR_OPEN) };
        let users_open = if open >= 8 { u32::from(USERS_MAX) } else { (open / 2).max(1) };
        let users = (chunk_count / CHUNKS_PER_USER_STREAM).clamp(1, u32::from(USERS_MAX)).min(users_open);
        let classes = (chunk_count / CHUNKS_PER_CLASS).clamp(1, u32::from(CLASSES));
        let classes = classes.min(open.saturating_sub(users)).max(1);
        Self { users: users as u8, classes: classes as u8 }
    }

    /// As many as user writes can be spread over at most.
    pub(crate) fn users_max(self) -> u8 {
        self.users.max(self.classes)
    }

    /// Where a user's record of this class goes, if user writes are spread over so many streams.
    pub(crate) fn of_user(self, class: Class, streams: u8) -> Stream {
        if streams <= self.users {
            Stream(class.stream(CLASSES, streams.max(1)))
        } else {
            self.of_class(class)
        }
    }

    /// Where records of this class go that are moved.
    pub(crate) fn of_class(self, class: Class) -> Stream {
        Stream(USERS_MAX + class.stream(CLASSES, self.classes))
    }

    /// Where all that is moved goes when room is short, and what lives longest otherwise.
    pub(crate) fn coldest(self) -> Stream {
        self.of_class(Class(CLASSES - 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_slices_and_few_open_chunks_mean_few_streams() {
        assert_eq!(Streams::of(16, 0), Streams { users: 1, classes: 1 });
        assert_eq!(Streams::of(128, 0), Streams { users: 2, classes: 4 });
        assert_eq!(Streams::of(512, 0), Streams { users: 4, classes: 12 });
        for (max_open, users, classes) in [(4, 1, 1), (6, 2, 2), (10, 4, 4), (14, 4, 8), (128, 4, 12)] {
            assert_eq!(Streams::of(1 << 20, max_open), Streams { users, classes }, "{max_open}");
            assert!(u32::from(users + classes) + ANCHOR_OPEN <= max_open);
        }
    }

    #[test]
    fn neighbouring_classes_share_a_stream_if_there_are_few() {
        let streams = Streams::of(512, 0);
        assert_eq!(streams.of_user(Class(11), 1), Stream::USER);
        assert_eq!([0, 5, 6, 11].map(|class| streams.of_user(Class(class), 2).0), [0, 0, 1, 1]);
        assert_eq!(streams.of_user(Class(3), 12), streams.of_class(Class(3)));
        assert_eq!(streams.coldest(), Stream(15));
        let few = Streams::of(16, 0);
        assert_eq!([0, 11].map(|class| few.of_class(Class(class)).0), [4, 4]);
        assert_eq!(few.of_user(Class(7), 12), few.coldest());
    }
}
