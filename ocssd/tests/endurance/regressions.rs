//! What long runs found, step by step, so that it is found again when the operations of a seed are others.

use std::pin::pin;
use std::task::Poll;

use terrane_ocssd::{AlignedBuf, ChunkId, ChunkState, Durability, Geometry, Media, SimMedia, SimOptions};

use crate::model::Model;
use crate::rig::{Promises, block_on, poll_once};

const CHUNK: ChunkId = ChunkId(0);

/// A simulated medium that tracks write pointers, and what the model knows of it.
struct Script {
    media: SimMedia,
    model: Model,
}

impl Script {
    fn new(seed: u64) -> Self {
        let geometry = Geometry {
            groups: 1,
            parallel_units: 1,
            chunks: 2,
            chunk_sectors: 16,
            sector_bytes: 512,
            ws_min: 1,
            ws_opt: 4,
            mw_cunits: 0,
            max_open: 0,
        };
        let options = SimOptions { seed, conventional: false, yields_max: 6, ..SimOptions::default() };
        let media = SimMedia::new(geometry, options);
        let promises = Promises { tracks_pointers: true, pads: false, tells_faults: true, volume: None };
        let report = block_on(media.report()).unwrap();
        let model = Model::new(geometry, promises, media.protects_buffer(), &report);
        Self { media, model }
    }

    fn write_durable(&mut self) {
        let mut buf = AlignedBuf::zeroed(4 * 512);
        let ticket = self.model.write_submitted(CHUNK, true, &mut buf);
        let (result, _) = block_on(self.media.write(CHUNK, ticket.sector, buf, Durability::Durable));
        self.model.write_completed(ticket, &result, &self.media.take_fault_log());
    }

    fn reset(&mut self) {
        self.model.reset_submitted(CHUNK);
        let result = block_on(self.media.reset(CHUNK));
        self.model.reset_completed(CHUNK, &result);
    }

    /// Submits a reset and loses interest, if it is not over by then.
    fn give_reset_up(&mut self) {
        self.model.reset_submitted(CHUNK);
        let mut reset = pin!(self.media.reset(CHUNK));
        if let Poll::Ready(result) = poll_once(reset.as_mut()) {
            self.model.reset_completed(CHUNK, &result);
        }
    }

    fn flush(&mut self) {
        let mark = self.model.flush_submitted();
        let result = block_on(self.media.flush());
        assert!(result.is_ok(), "a restart forgets that one failed: {result:?}");
        self.model.flush_completed(mark, &result, &self.media.take_fault_log());
    }

    /// Submits a flush that fails, and does the rest before it is over.
    fn fail_flush_around(&mut self, rest: impl FnOnce(&mut Self)) {
        self.media.fail_next_flush();
        let mark = self.model.flush_submitted();
        let media = self.media.clone();
        let mut flush = pin!(media.flush());
        let begun = poll_once(flush.as_mut());
        rest(self);
        let result = match begun {
            Poll::Ready(result) => result,
            Poll::Pending => block_on(flush),
        };
        result.as_ref().expect_err("it was told to fail");
        self.model.flush_completed(mark, &result, &self.media.take_fault_log());
    }

    /// The host dies, and its successor flushes before the power goes.
    fn comes_back_open(&mut self) -> bool {
        self.media.restart();
        self.model.restarted(&block_on(self.media.report()).unwrap());
        self.flush();
        self.media.power_on();
        let report = block_on(self.media.report()).unwrap();
        self.model.power_returned(&report);
        report[CHUNK.0 as usize].state == ChunkState::Open
    }
}

/// Seed 4389 of `tracking_with_faults`. A flush that had to make a reset durable fails, and a second reset of the chunk is given
/// up. The chunk is free after a restart, as [`Media`] allows ("as before or as after"): by the first reset, which is doomed.
/// That a later flush succeeds makes it no more durable, so the chunk may come back with what it held. The model took it
/// for freed by the second one.
#[test]
fn a_reset_that_was_given_up_makes_the_one_before_no_more_durable() {
    let came_back = (0..60).filter(|seed| {
        let mut script = Script::new(*seed);
        script.write_durable();
        script.reset();
        script.fail_flush_around(Script::give_reset_up);
        script.comes_back_open()
    });
    let came_back = came_back.count();
    assert!(came_back > 5, "{came_back}");
}

/// The same, where the flush had failed before.
#[test]
fn a_reset_that_is_given_up_after_the_flush_failed_makes_the_one_before_no_more_durable() {
    let came_back = (0..60).filter(|seed| {
        let mut script = Script::new(*seed);
        script.write_durable();
        script.reset();
        script.fail_flush_around(|_| {});
        script.give_reset_up();
        script.comes_back_open()
    });
    let came_back = came_back.count();
    assert!(came_back > 5, "{came_back}");
}

/// That excuse goes no further: something was written before the reset that was given up, so the chunk is free by that one, and
/// the flush holds. A medium that brings it back is found out.
#[test]
#[should_panic(expected = "never written up to 4")]
fn a_reset_that_must_have_happened_is_durable_by_a_flush() {
    let mut script = Script::new(0);
    let mut report = block_on(script.media.report()).unwrap();
    script.write_durable();
    script.reset();
    script.fail_flush_around(|_| {});
    script.write_durable();
    script.model.reset_submitted(CHUNK);
    script.model.restarted(&report);
    script.flush();
    report[CHUNK.0 as usize].state = ChunkState::Open;
    report[CHUNK.0 as usize].write_pointer = 4;
    script.model.power_returned(&report);
}
