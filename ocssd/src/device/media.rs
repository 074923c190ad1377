//! One type of medium for every kind of device, so that whoever uses one is compiled once.
//!
//! Invariants:
//! - No operation is changed on its way: this only chooses.
//! - A future is as large as the conventional kind's, and allocates nothing for it. Those of the kinds whose host does
//!   more (stripes, padding, a ring of its own) live on the heap.

use std::future::Future;

use crate::buffer::AlignedBuf;
use crate::file::FileMedia;
use crate::geometry::{ChunkId, Geometry};
use crate::media::{ChunkInfo, Durability, LifetimeClass, Media, MediaCounters, MediaError, Notice};

/// One slice of a [`Device`](crate::Device).
#[derive(Debug)]
pub enum DeviceMedia {
    /// Of a conventional device.
    File(FileMedia),
}

/// The same call on whichever medium it is.
macro_rules! of_each {
    ($media:expr, $slice:ident => $call:expr) => {
        match $media {
            DeviceMedia::File($slice) => $call,
        }
    };
}

impl Media for DeviceMedia {
    fn geometry(&self) -> &Geometry {
        of_each!(self, slice => slice.geometry())
    }

    async fn report(&self) -> Result<Vec<ChunkInfo>, MediaError> {
        of_each!(self, slice => slice.report().await)
    }

    fn write(
        &self,
        chunk: ChunkId,
        sector: u32,
        buf: AlignedBuf,
        durability: Durability,
    ) -> impl Future<Output = (Result<(), MediaError>, AlignedBuf)> {
        of_each!(self, slice => slice.write(chunk, sector, buf, durability))
    }

    fn append(
        &self,
        chunk: ChunkId,
        buf: AlignedBuf,
        durability: Durability,
    ) -> impl Future<Output = (Result<u32, MediaError>, AlignedBuf)> {
        of_each!(self, slice => slice.append(chunk, buf, durability))
    }

    fn read(
        &self,
        chunk: ChunkId,
        sector: u32,
        buf: AlignedBuf,
    ) -> impl Future<Output = (Result<(), MediaError>, AlignedBuf)> {
        of_each!(self, slice => slice.read(chunk, sector, buf))
    }

    fn expect_lifetime(&self, chunk: ChunkId, class: LifetimeClass) {
        of_each!(self, slice => slice.expect_lifetime(chunk, class))
    }

    fn protects_buffer(&self) -> bool {
        of_each!(self, slice => slice.protects_buffer())
    }

    fn take_notices(&self) -> Vec<Notice> {
        of_each!(self, slice => slice.take_notices())
    }

    fn reset(&self, chunk: ChunkId) -> impl Future<Output = Result<(), MediaError>> {
        of_each!(self, slice => slice.reset(chunk))
    }

    fn finish(&self, chunk: ChunkId) -> impl Future<Output = Result<(), MediaError>> {
        of_each!(self, slice => slice.finish(chunk))
    }

    fn flush(&self) -> impl Future<Output = Result<(), MediaError>> {
        of_each!(self, slice => slice.flush())
    }

    fn counters(&self) -> MediaCounters {
        of_each!(self, slice => slice.counters())
    }
}
