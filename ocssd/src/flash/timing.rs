//! How long flash takes, in virtual time.
//!
//! ```text
//! write  channel |==transfer==|                  read   unit    |==sense==|
//!        unit                 |==program==|             channel           |==transfer==|
//! ```
//!
//! A parallel unit does one thing at a time; the units of a group share its channel. What an operation waits for is
//! decided when it is submitted, so equal sequences of operations take equal times.
//!
//! Invariant: nothing here reads a clock. Whoever uses the device hands in `now` and a way to sleep
//! ([`FlashClock`]): the simulator its virtual time, a reactor its timers.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

/// Times of the flash itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NandTiming {
    /// To sense one page (tR). Default 60 us.
    pub read_page: Duration,
    /// To program one page (tPROG). Default 700 us.
    pub program_page: Duration,
    /// To erase one chunk (tBERS). Default 5 ms.
    pub erase: Duration,
    /// Bytes a second over a group's channel; 0: transfers take no time. Default 1.2e9.
    pub channel_bytes_per_s: u64,
    /// Pages that a unit senses or programs together, one in each plane. Default 1.
    pub planes: u32,
}

impl Default for NandTiming {
    fn default() -> Self {
        Self {
            read_page: Duration::from_micros(60),
            program_page: Duration::from_micros(700),
            erase: Duration::from_millis(5),
            channel_bytes_per_s: 1_200_000_000,
            planes: 1,
        }
    }
}

impl NandTiming {
    fn transfer(&self, bytes: u64) -> Duration {
        match self.channel_bytes_per_s {
            0 => Duration::ZERO,
            rate => Duration::from_nanos((u128::from(bytes) * 1_000_000_000 / u128::from(rate)) as u64),
        }
    }

    fn steps(&self, pages: u32) -> u32 {
        pages.div_ceil(self.planes)
    }
}

/// Sleeps until a point of the clock.
pub type SleepUntil = Rc<dyn Fn(Duration) -> Pin<Box<dyn Future<Output = ()>>>>;

/// Where a handle gets its time from. Belongs to one thread, as handles do; all clocks of one device must agree.
#[derive(Clone)]
pub struct FlashClock {
    /// Time since some fixed point, never going back.
    pub now: Rc<dyn Fn() -> Duration>,
    /// Resolves once `now` has reached the given point.
    pub sleep_until: SleepUntil,
}

impl fmt::Debug for FlashClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FlashClock({:?})", (self.now)())
    }
}

/// Until when each unit and channel is busy.
#[derive(Debug)]
pub(super) struct Schedule {
    timing: Option<NandTiming>,
    units: Vec<Duration>,
    channels: Vec<Duration>,
    units_per_channel: u32,
}

impl Schedule {
    pub(super) fn new(timing: Option<NandTiming>, groups: u32, units_per_channel: u32) -> Self {
        let idle = |count: u32| vec![Duration::ZERO; count as usize];
        Self { timing, units: idle(groups * units_per_channel), channels: idle(groups), units_per_channel }
    }

    /// Everything is idle: the device starts anew.
    pub(super) fn clear(&mut self) {
        self.units.fill(Duration::ZERO);
        self.channels.fill(Duration::ZERO);
    }

    /// When a write that is submitted now is programmed.
    pub(super) fn write(&mut self, now: Duration, unit: u32, pages: u32, bytes: u64) -> Option<Duration> {
        let timing = self.timing?;
        let (unit, channel) = self.ends(unit);
        // The unit's register takes the data, so both must be idle.
        let begins = now.max(*unit).max(*channel);
        *channel = begins + timing.transfer(bytes);
        *unit = *channel + timing.program_page * timing.steps(pages);
        Some(*unit)
    }

    /// When the bytes of a read that is submitted now are with the host.
    pub(super) fn read(&mut self, now: Duration, unit: u32, pages: u32, bytes: u64) -> Option<Duration> {
        let timing = self.timing?;
        let (unit, channel) = self.ends(unit);
        let sensed = now.max(*unit) + timing.read_page * timing.steps(pages);
        *channel = sensed.max(*channel) + timing.transfer(bytes);
        *unit = *channel;
        Some(*unit)
    }

    /// When a reset that is submitted now is done.
    pub(super) fn erase(&mut self, now: Duration, unit: u32) -> Option<Duration> {
        let timing = self.timing?;
        let (unit, _) = self.ends(unit);
        *unit = now.max(*unit) + timing.erase;
        Some(*unit)
    }

    fn ends(&mut self, unit: u32) -> (&mut Duration, &mut Duration) {
        let channel = unit / self.units_per_channel;
        (&mut self.units[unit as usize], &mut self.channels[channel as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: fn(u64) -> Duration = Duration::from_micros;

    /// 2 groups of 2 units; a page of 4000 bytes is 4 us on the channel, 60 us to sense, 700 us to program.
    fn schedule(planes: u32) -> Schedule {
        let timing = NandTiming { channel_bytes_per_s: 1_000_000_000, planes, ..NandTiming::default() };
        Schedule::new(Some(timing), 2, 2)
    }

    #[test]
    fn a_unit_does_one_thing_at_a_time() {
        let mut schedule = schedule(1);
        assert_eq!(schedule.write(US(10), 0, 1, 4000), Some(US(714)));
        assert_eq!(schedule.write(US(10), 0, 1, 4000), Some(US(1418)));
        assert_eq!(schedule.read(US(10), 0, 1, 4000), Some(US(1482)));
        assert_eq!(schedule.erase(US(2000), 0), Some(US(7000)));
    }

    #[test]
    fn units_of_a_group_share_only_its_channel() {
        let mut schedule = schedule(1);
        assert_eq!(schedule.write(US(0), 0, 1, 4000), Some(US(704)));
        assert_eq!(schedule.write(US(0), 1, 1, 4000), Some(US(708)), "waits for the channel");
        assert_eq!(schedule.write(US(0), 2, 1, 4000), Some(US(704)), "of another group");
        schedule.clear();
        assert_eq!(schedule.read(US(0), 0, 1, 4000), Some(US(64)));
        assert_eq!(schedule.read(US(0), 1, 1, 4000), Some(US(68)));
    }

    #[test]
    fn planes_work_together() {
        assert_eq!(schedule(1).write(US(0), 0, 4, 0), Some(US(2800)));
        assert_eq!(schedule(4).write(US(0), 0, 4, 0), Some(US(700)));
        assert_eq!(schedule(4).write(US(0), 0, 5, 0), Some(US(1400)));
    }

    #[test]
    fn without_times_nothing_waits() {
        let mut schedule = Schedule::new(None, 1, 1);
        assert_eq!(schedule.write(US(1), 0, 1, 1), None);
        assert_eq!(schedule.read(US(1), 0, 1, 1), None);
        assert_eq!(schedule.erase(US(1), 0), None);
    }
}
