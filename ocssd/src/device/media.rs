//! One type of medium for every kind of device, so that whoever uses one is compiled once.
//!
//! Invariants:
//! - No operation is changed on its way: this only chooses.
//! - A future is as large as the conventional kind's, and allocates nothing for it. Those of the other kinds, whose host
//!   does more (stripes, padding, a ring of its own), live on the heap.

use std::future::Future;
use std::pin::Pin;

use futures_util::future::Either;

use crate::buffer::AlignedBuf;
use crate::fdp::FdpMedia;
use crate::file::FileMedia;
use crate::flash::FlashMedia;
use crate::geometry::{ChunkId, Geometry};
use crate::media::{ChunkInfo, Durability, LifetimeClass, Media, MediaCounters, MediaError, Notice};
use crate::overlay::Overlay;
use crate::volume::Volume;
use crate::zoned::ZonedMedia;

/// One slice of a [`Device`](crate::Device).
#[derive(Debug)]
pub enum DeviceMedia {
    /// Of a conventional device.
    File(FileMedia),
    /// Of emulated flash.
    Flash(Volume<FlashMedia>),
    /// Of emulated flash that is only looked at.
    FlashOverlay(Volume<Overlay<FlashMedia>>),
    /// Of a zoned device.
    Zoned(Volume<ZonedMedia>),
    /// Of a zoned device that is only looked at.
    ZonedOverlay(Volume<Overlay<ZonedMedia>>),
    /// Of a namespace with placement handles.
    Fdp(FdpMedia),
}

/// The same call on whichever medium it is.
macro_rules! of_each {
    ($media:expr, $slice:ident => $call:expr) => {
        match $media {
            DeviceMedia::File($slice) => $call,
            DeviceMedia::Flash($slice) => $call,
            DeviceMedia::FlashOverlay($slice) => $call,
            DeviceMedia::Zoned($slice) => $call,
            DeviceMedia::ZonedOverlay($slice) => $call,
            DeviceMedia::Fdp($slice) => $call,
        }
    };
}

/// The same operation on whichever medium it is: in place for the conventional kind, else on the heap.
macro_rules! begin {
    ($media:expr, $slice:ident => $call:expr) => {
        match $media {
            DeviceMedia::File($slice) => Either::Left($call),
            DeviceMedia::Flash($slice) => Either::Right(boxed($call)),
            DeviceMedia::FlashOverlay($slice) => Either::Right(boxed($call)),
            DeviceMedia::Zoned($slice) => Either::Right(boxed($call)),
            DeviceMedia::ZonedOverlay($slice) => Either::Right(boxed($call)),
            DeviceMedia::Fdp($slice) => Either::Right(boxed($call)),
        }
    };
}

/// An operation whose future is not kept in the caller's. Beside what it does to the device, one allocation is nothing.
fn boxed<'a, T>(operation: impl Future<Output = T> + 'a) -> Pin<Box<dyn Future<Output = T> + 'a>> {
    Box::pin(operation)
}

impl Media for DeviceMedia {
    fn geometry(&self) -> &Geometry {
        of_each!(self, slice => slice.geometry())
    }

    fn report(&self) -> impl Future<Output = Result<Vec<ChunkInfo>, MediaError>> {
        begin!(self, slice => slice.report())
    }

    fn write(
        &self,
        chunk: ChunkId,
        sector: u32,
        buf: AlignedBuf,
        durability: Durability,
    ) -> impl Future<Output = (Result<(), MediaError>, AlignedBuf)> {
        begin!(self, slice => slice.write(chunk, sector, buf, durability))
    }

    fn append(
        &self,
        chunk: ChunkId,
        buf: AlignedBuf,
        durability: Durability,
    ) -> impl Future<Output = (Result<u32, MediaError>, AlignedBuf)> {
        begin!(self, slice => slice.append(chunk, buf, durability))
    }

    fn read(
        &self,
        chunk: ChunkId,
        sector: u32,
        buf: AlignedBuf,
    ) -> impl Future<Output = (Result<(), MediaError>, AlignedBuf)> {
        begin!(self, slice => slice.read(chunk, sector, buf))
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
        begin!(self, slice => slice.reset(chunk))
    }

    fn finish(&self, chunk: ChunkId) -> impl Future<Output = Result<(), MediaError>> {
        begin!(self, slice => slice.finish(chunk))
    }

    fn flush(&self) -> impl Future<Output = Result<(), MediaError>> {
        begin!(self, slice => slice.flush())
    }

    fn counters(&self) -> MediaCounters {
        of_each!(self, slice => slice.counters())
    }
}
