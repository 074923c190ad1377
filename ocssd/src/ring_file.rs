//! A file on the ring of the thread that uses it.
//!
//! The kernel may transfer less than it was asked for; whoever waits here gets all or an error.

use std::cell::{OnceCell, RefCell};
use std::fs::File;
use std::io;
use std::ops::Range;

use monoio::buf::{IoBuf, IoBufMut};

use crate::buffer::AlignedBuf;

/// A descriptor that joins the thread's runtime at its first use, since there may be none before.
#[derive(Debug)]
pub(crate) struct RingFile {
    unused: RefCell<Option<File>>,
    file: OnceCell<monoio::fs::File>,
}

impl RingFile {
    pub(crate) fn new(file: File) -> Self {
        Self { unused: RefCell::new(Some(file)), file: OnceCell::new() }
    }

    pub(crate) fn get(&self) -> io::Result<&monoio::fs::File> {
        if let Some(file) = self.file.get() {
            return Ok(file);
        }
        let file = self.unused.take().ok_or_else(|| io::Error::other("the descriptor is gone"))?;
        let file = monoio::fs::File::from_std(file)?;
        Ok(self.file.get_or_init(|| file))
    }

    /// Writes a part of the buffer at an offset of the file, in transfers of whole sectors.
    pub(crate) async fn write_whole(
        &self,
        buf: AlignedBuf,
        part: Range<usize>,
        at: u64,
        sector_bytes: u32,
    ) -> (io::Result<()>, AlignedBuf) {
        let write = async |file: &monoio::fs::File, buf: AlignedBuf, rest, at| {
            let (result, slice) = file.write_at(buf.slice(rest), at).await;
            (result, slice.into_inner())
        };
        self.transfer(buf, part, at, sector_bytes, write).await
    }

    /// Fills a part of the buffer from an offset of the file, in transfers of whole sectors.
    pub(crate) async fn read_whole(
        &self,
        buf: AlignedBuf,
        part: Range<usize>,
        at: u64,
        sector_bytes: u32,
    ) -> (io::Result<()>, AlignedBuf) {
        let read = async |file: &monoio::fs::File, buf: AlignedBuf, rest, at| {
            let (result, slice) = file.read_at(buf.slice_mut(rest), at).await;
            (result, slice.into_inner())
        };
        self.transfer(buf, part, at, sector_bytes, read).await
    }

    /// Moves a part of the buffer by as many calls of `some` as it takes: each gets the rest of the part and its offset
    /// in the file, and says how many bytes it moved.
    async fn transfer(
        &self,
        mut buf: AlignedBuf,
        part: Range<usize>,
        at: u64,
        sector_bytes: u32,
        some: impl AsyncFn(&monoio::fs::File, AlignedBuf, Range<usize>, u64) -> (io::Result<usize>, AlignedBuf),
    ) -> (io::Result<()>, AlignedBuf) {
        let file = match self.get() {
            Ok(file) => file,
            Err(error) => return (Err(error), buf),
        };
        let mut done = 0;
        while done < part.len() {
            let moved;
            (moved, buf) = some(file, buf, part.start + done..part.end, at + done as u64).await;
            match step(moved, done, part.len(), sector_bytes) {
                Ok(now) => done = now,
                Err(error) => return (Err(error), buf),
            }
        }
        (Ok(()), buf)
    }
}

/// How far a transfer is after one more step. A short one goes on where it stopped, as long as that is where a sector
/// begins; none at all would go on for ever.
fn step(result: io::Result<usize>, done: usize, whole: usize, sector_bytes: u32) -> io::Result<usize> {
    match result {
        Ok(moved) => {
            let now = done + moved;
            let at_sector = now.is_multiple_of(sector_bytes as usize);
            if moved == 0 || now > whole || !at_sector {
                let text = format!("the transfer stopped after {now} of {whole} bytes");
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
            }
            Ok(now)
        }
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(done),
        Err(error) => Err(error),
    }
}
