//! Cutting off connections whose other end stopped reading.
//!
//! A write must not be dropped half-way, so whoever writes notes when a write began, and a task of its own closes
//! the connection when that was too long ago. Writers keep their writes small, so that a slow reader is not taken
//! for one that stopped.

use std::cell::Cell;
use std::rc::{Rc, Weak};
use std::time::Duration;

use crate::seam::{ByteWriter, Closer, Time, World};

/// Writes to one connection under supervision; it ends when this is dropped.
pub(crate) struct StallGuard<W: World> {
    world: W,
    writing_since: Rc<Cell<Option<Time>>>,
}

impl<W: World> StallGuard<W> {
    /// From now on a write that takes longer than `longest` closes the connection.
    pub(crate) fn new(world: &W, closer: impl Closer, longest: Duration) -> Self {
        let writing_since = Rc::default();
        world.spawn(watch(world.clone(), Rc::downgrade(&writing_since), closer, longest));
        Self { world: world.clone(), writing_since }
    }

    /// As [`ByteWriter::write_all`].
    pub(crate) async fn write_all(
        &self,
        writer: &mut impl ByteWriter,
        buffer: Vec<u8>,
    ) -> (std::io::Result<()>, Vec<u8>) {
        self.writing_since.set(Some(self.world.now()));
        let outcome = writer.write_all(buffer).await;
        self.writing_since.set(None);
        outcome
    }
}

async fn watch<W: World>(
    world: W,
    writing_since: Weak<Cell<Option<Time>>>,
    closer: impl Closer,
    longest: Duration,
) {
    loop {
        world.sleep(longest / 4).await;
        let Some(writing_since) = writing_since.upgrade() else { return };
        if writing_since.get().is_some_and(|since| world.now().since(since) > longest) {
            closer.close();
            return;
        }
    }
}
