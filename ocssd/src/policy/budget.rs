//! How much background work may read and write: a token bucket in bytes and operations, shared by several consumers.
//!
//! Cleaning, scrubbing and snapshots are guests on a device whose first duty is the foreground. They draw on one
//! budget, so that together they stay within it, and [`Budget::set_rate`] is the one screw that foreground latency
//! turns.
//!
//! ```text
//!   rate ──┬── share of cleaning ──▶ [ its own tokens ]──┐ overflow
//!          ├── share of scrubbing ─▶ [ its own tokens ]──┤
//!          └── the rest ───────────────────────▶ [ common tokens ] ── overflow: lost
//! ```
//!
//! A consumer pays with its own tokens first, then with common ones. Nobody else touches its own tokens, so a minimum
//! share needs no trust; what it leaves unused overflows to the common tokens, so nothing is wasted. Common tokens
//! go by priority: a consumer that was refused holds a *claim*, and whoever ranks below it (lower priority, or equal
//! and later) must leave it what it claimed of the common tokens until it came back, gave up, or let its moment pass
//! by [`CLAIM_LAPSE`].
//!
//! Invariants:
//! - In any window of time, what is granted is at most rate × window + burst, in bytes and in operations. All tokens
//!   together never exceed the burst.
//! - A consumer with a share `s` is granted what fits its own tokens ([`Budget::guaranteed`]) within
//!   cost / (s × rate), whatever the others do.
//! - The arithmetic is exact: tokens are counted in 10⁻¹² of a byte or operation, so that nanoseconds × permille × rate
//!   is a whole number. Asking often or rarely makes no difference.
//! - Time that goes backwards is taken as time that stands still.

use std::time::Duration;

/// How long after the moment it could have been granted a claim still keeps lower ranks from the common tokens. It
/// bounds what a consumer that went away without [`Budget::withdraw`] costs the others.
pub const CLAIM_LAPSE: Duration = Duration::from_millis(100);

const NANOS_PER_S: u128 = 1_000_000_000;
const PERMILLE: u128 = 1_000;
/// Parts of one byte or operation.
const PARTS: u128 = NANOS_PER_S * PERMILLE;

/// Bytes and operations: a cost, or an allowance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes moved.
    pub bytes: u64,
    /// Operations submitted.
    pub operations: u64,
}

/// What becomes available each second. `u64::MAX`: no limit worth mentioning, if the burst is as large.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Bytes a second.
    pub bytes_per_s: u64,
    /// Operations a second.
    pub operations_per_s: u64,
}

/// One who draws on the budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Consumer {
    /// For messages.
    pub name: &'static str,
    /// Higher goes first to the common tokens.
    pub priority: u8,
    /// Part of the rate and of the burst that is its own, in permille. 0: it may starve.
    pub share_permille: u32,
}

/// Which consumer: its place in [`BudgetOptions::consumers`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConsumerId(pub usize);

/// How a [`Budget`] is set up.
#[derive(Debug, Clone)]
pub struct BudgetOptions {
    /// What becomes available each second.
    pub rate: Rate,
    /// Most that can be saved up. A consumer's single cost must fit its share of it to be guaranteed. Larger: fewer,
    /// longer disturbances of the foreground.
    pub burst: Cost,
    /// Who draws on it. Shares add up to 1,000 at most.
    pub consumers: Vec<Consumer>,
}

/// Shares add up to more than all there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the consumers' minimum shares add up to {permille} of 1000")]
pub struct SharesError {
    /// Their sum.
    pub permille: u64,
}

/// Why nothing was granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Too early: to be asked again then. [`Duration::MAX`]: not before the rate is raised.
    #[error("not before {0:?}")]
    NotBefore(Duration),
    /// More than can ever be saved up: to be asked for in pieces.
    #[error("more than the {} bytes and {} operations that can be saved up", most.bytes, most.operations)]
    TooLarge {
        /// Most that this consumer can be granted at once.
        most: Cost,
    },
}

/// Tokens of one kind, in parts.
#[derive(Debug, Clone)]
struct Tokens {
    rate: u64,
    shares: Vec<u32>,
    own: Vec<u128>,
    own_max: Vec<u128>,
    common: u128,
    common_max: u128,
}

impl Tokens {
    fn full(rate: u64, burst: u64, shares: &[u32]) -> Self {
        let part = |permille: u32| u128::from(burst) * NANOS_PER_S * u128::from(permille);
        let own_max: Vec<u128> = shares.iter().map(|share| part(*share)).collect();
        let common_max = u128::from(burst) * PARTS - own_max.iter().sum::<u128>();
        Self { rate, shares: shares.to_vec(), own: own_max.clone(), own_max, common: common_max, common_max }
    }

    /// What a share of the rate brings in `nanos`. Saturates: no bucket is that large.
    fn inflow(&self, permille: u128, nanos: u128) -> u128 {
        u128::from(self.rate).saturating_mul(nanos).saturating_mul(permille)
    }

    fn own_after(&self, consumer: usize, nanos: u128) -> u128 {
        let inflow = self.inflow(u128::from(self.shares[consumer]), nanos);
        self.own[consumer].saturating_add(inflow).min(self.own_max[consumer])
    }

    fn common_after(&self, nanos: u128) -> u128 {
        let shared: u128 = self.shares.iter().map(|share| u128::from(*share)).sum();
        let mut common = self.common.saturating_add(self.inflow(PERMILLE - shared, nanos));
        for consumer in 0..self.shares.len() {
            let inflow = self.inflow(u128::from(self.shares[consumer]), nanos);
            let overflow = self.own[consumer].saturating_add(inflow).saturating_sub(self.own_max[consumer]);
            common = common.saturating_add(overflow);
        }
        common.min(self.common_max)
    }

    fn advance(&mut self, nanos: u128) {
        // The common tokens first: their overflow depends on what the others hold now.
        self.common = self.common_after(nanos);
        for consumer in 0..self.shares.len() {
            self.own[consumer] = self.own_after(consumer, nanos);
        }
    }

    fn take(&mut self, consumer: usize, amount: u64) {
        let parts = u128::from(amount) * PARTS;
        let own = parts.min(self.own[consumer]);
        self.own[consumer] -= own;
        self.common = self.common.checked_sub(parts - own).expect("only what is there is granted");
    }

    /// Time in which every bucket is full, whatever it holds now; `None`: never.
    fn fill_nanos(&self) -> Option<u128> {
        let burst = self.common_max + self.own_max.iter().sum::<u128>();
        (self.rate > 0).then(|| burst.div_ceil(u128::from(self.rate) * PERMILLE))
    }
}

/// A consumer that was refused.
#[derive(Debug, Clone, Copy)]
struct Claim {
    cost: Cost,
    since: Duration,
    lapses: Duration,
}

/// The shared budget. Time is that of whoever holds it: any `Duration` that only grows.
#[derive(Debug, Clone)]
pub struct Budget {
    consumers: Vec<Consumer>,
    bytes: Tokens,
    operations: Tokens,
    claims: Vec<Option<Claim>>,
    now: Duration,
}

impl Budget {
    /// A budget with everything saved up.
    ///
    /// # Errors
    /// If shares add up to more than 1,000.
    pub fn new(options: &BudgetOptions, now: Duration) -> Result<Self, SharesError> {
        let shares: Vec<u32> = options.consumers.iter().map(|consumer| consumer.share_permille).collect();
        let permille = shares.iter().map(|share| u64::from(*share)).sum();
        if permille > 1_000 {
            return Err(SharesError { permille });
        }
        Ok(Self {
            bytes: Tokens::full(options.rate.bytes_per_s, options.burst.bytes, &shares),
            operations: Tokens::full(options.rate.operations_per_s, options.burst.operations, &shares),
            claims: vec![None; shares.len()],
            consumers: options.consumers.clone(),
            now,
        })
    }

    /// Grants `cost` if it is there, else says when to ask again; until then the consumer holds a claim.
    ///
    /// # Errors
    /// [`Refusal`]; nothing was taken.
    ///
    /// # Panics
    /// If there is no such consumer.
    pub fn try_take(&mut self, now: Duration, consumer: ConsumerId, cost: Cost) -> Result<(), Refusal> {
        self.advance(now);
        let ConsumerId(index) = consumer;
        let most = self.most(consumer);
        if cost.bytes > most.bytes || cost.operations > most.operations {
            self.claims[index] = None;
            return Err(Refusal::TooLarge { most });
        }
        let since = self.claims[index].map_or(self.now, |claim| claim.since);
        let ready = self.ready_after(index, cost, since, 0);
        if ready == Some(0) {
            self.bytes.take(index, cost.bytes);
            self.operations.take(index, cost.operations);
            self.claims[index] = None;
            return Ok(());
        }
        let ready = ready.map_or(Duration::MAX, |nanos| later(self.now, nanos));
        self.claims[index] = Some(Claim { cost, since, lapses: ready.saturating_add(CLAIM_LAPSE) });
        Err(Refusal::NotBefore(ready))
    }

    /// The earliest moment, not before `now`, at which [`Self::try_take`] can grant `cost` if others only take what
    /// they claim. `None`: never, since it is too large or the rate is zero. Claims nothing.
    ///
    /// # Panics
    /// If there is no such consumer.
    pub fn next_ready(&self, now: Duration, consumer: ConsumerId, cost: Cost) -> Option<Duration> {
        let ConsumerId(index) = consumer;
        let from = now.saturating_sub(self.now).as_nanos();
        let since = self.claims[index].map_or(now.max(self.now), |claim| claim.since);
        let nanos = self.ready_after(index, cost, since, from)?;
        Some(later(self.now, nanos))
    }

    /// The consumer no longer wants what it was refused.
    ///
    /// # Panics
    /// If there is no such consumer.
    pub fn withdraw(&mut self, consumer: ConsumerId) {
        self.claims[consumer.0] = None;
    }

    /// Changes the rate from `now` on; what is saved up stays. Who waits must ask again: its moment moved.
    pub fn set_rate(&mut self, now: Duration, rate: Rate) {
        self.advance(now);
        self.bytes.rate = rate.bytes_per_s;
        self.operations.rate = rate.operations_per_s;
        for index in 0..self.claims.len() {
            if let Some(claim) = self.claims[index] {
                let ready = self.ready_after(index, claim.cost, claim.since, 0);
                let ready = ready.map_or(Duration::MAX, |nanos| later(self.now, nanos));
                let lapses = ready.saturating_add(CLAIM_LAPSE);
                self.claims[index] = Some(Claim { lapses, ..claim });
            }
        }
    }

    /// Most that this consumer can be granted at once.
    ///
    /// # Panics
    /// If there is no such consumer.
    pub fn most(&self, consumer: ConsumerId) -> Cost {
        let of = |tokens: &Tokens| whole(tokens.own_max[consumer.0] + tokens.common_max);
        Cost { bytes: of(&self.bytes), operations: of(&self.operations) }
    }

    /// Most of a single cost that this consumer is granted in time whatever the others do.
    ///
    /// # Panics
    /// If there is no such consumer.
    pub fn guaranteed(&self, consumer: ConsumerId) -> Cost {
        let of = |tokens: &Tokens| whole(tokens.own_max[consumer.0]);
        Cost { bytes: of(&self.bytes), operations: of(&self.operations) }
    }

    fn advance(&mut self, now: Duration) {
        let nanos = now.saturating_sub(self.now).as_nanos();
        if nanos > 0 {
            self.bytes.advance(nanos);
            self.operations.advance(nanos);
            self.now = now;
        }
    }

    /// Claims, alive `nanos` from the budget's time, that go before this consumer.
    fn claims_before(
        &self,
        index: usize,
        since: Duration,
        nanos: u128,
    ) -> impl Iterator<Item = (usize, Claim)> + '_ {
        let at = later(self.now, nanos);
        let own = (self.consumers[index].priority, since);
        let before = move |other: &usize, claim: &Claim| {
            let theirs = (self.consumers[*other].priority, claim.since);
            theirs.0 > own.0 || (theirs.0 == own.0 && (theirs.1, *other) < (own.1, index))
        };
        let claims =
            self.claims.iter().enumerate().filter_map(|(other, claim)| claim.map(|claim| (other, claim)));
        claims.filter(move |(other, claim)| *other != index && claim.lapses > at && before(other, claim))
    }

    /// Nanoseconds from the budget's time, at least `from`, until `cost` can be granted.
    fn ready_after(&self, index: usize, cost: Cost, since: Duration, from: u128) -> Option<u128> {
        let ahead: Vec<(usize, Claim)> = self.claims_before(index, since, from).collect();
        // What those ahead will take of the common tokens stays there for them. Own tokens are nobody else's matter.
        let suffices = |ahead: &[(usize, Claim)], nanos: u128| {
            let enough = |tokens: &Tokens, amount: u64, claimed: fn(&Cost) -> u64| {
                let missing = |consumer: usize, amount: u64| {
                    (u128::from(amount) * PARTS).saturating_sub(tokens.own_after(consumer, nanos))
                };
                let reserved: u128 =
                    ahead.iter().map(|(other, claim)| missing(*other, claimed(&claim.cost))).sum();
                let wanted = missing(index, amount);
                wanted == 0 || wanted + reserved <= tokens.common_after(nanos)
            };
            enough(&self.bytes, cost.bytes, |cost| cost.bytes)
                && enough(&self.operations, cost.operations, |cost| cost.operations)
        };
        let behind_them = self.earliest(from, |nanos| suffices(&ahead, nanos));
        // All of them together may want more than can be saved up; and they may not come.
        let without_them = ahead.iter().map(|(_, claim)| claim.lapses).max().and_then(|lapse| {
            let alone = self.earliest(from, |nanos| suffices(&[], nanos))?;
            Some(alone.max(lapse.saturating_sub(self.now).as_nanos()))
        });
        behind_them.into_iter().chain(without_them).min()
    }

    /// The least number of nanoseconds, at least `from`, at which `suffices`, which stays true once it is.
    fn earliest(&self, from: u128, suffices: impl Fn(u128) -> bool) -> Option<u128> {
        if suffices(from) {
            return Some(from);
        }
        // A kind of token that never comes holds what it holds; the other is full by then.
        let full = [&self.bytes, &self.operations].into_iter().filter_map(Tokens::fill_nanos).max()?;
        let (mut low, mut high) = (from, full.max(from));
        if !suffices(high) {
            return None;
        }
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if suffices(middle) {
                high = middle;
            } else {
                low = middle;
            }
        }
        Some(high)
    }
}

/// Whole bytes or operations in so many parts.
fn whole(parts: u128) -> u64 {
    u64::try_from(parts / PARTS).unwrap_or(u64::MAX)
}

/// `nanos` after `from`, or the end of time.
fn later(from: Duration, nanos: u128) -> Duration {
    let seconds = u64::try_from(nanos / NANOS_PER_S).unwrap_or(u64::MAX);
    from.saturating_add(Duration::new(seconds, (nanos % NANOS_PER_S) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CLEANING: ConsumerId = ConsumerId(0);
    const SCRUB: ConsumerId = ConsumerId(1);
    const SNAPSHOT: ConsumerId = ConsumerId(2);

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn bytes(bytes: u64) -> Cost {
        Cost { bytes, operations: 1 }
    }

    /// 1,000 B/s with a burst of 1,000 B and as good as no limit of operations. Cleaning owns 500, scrubbing 100, and 400
    /// are common.
    fn options() -> BudgetOptions {
        BudgetOptions {
            rate: Rate { bytes_per_s: 1_000, operations_per_s: 1_000_000 },
            burst: Cost { bytes: 1_000, operations: 1_000_000 },
            consumers: vec![
                Consumer { name: "cleaning", priority: 2, share_permille: 500 },
                Consumer { name: "scrub", priority: 0, share_permille: 100 },
                Consumer { name: "snapshot", priority: 1, share_permille: 0 },
            ],
        }
    }

    fn budget() -> Budget {
        Budget::new(&options(), Duration::ZERO).unwrap()
    }

    #[test]
    fn own_tokens_first_then_common_ones() {
        let mut budget = budget();
        assert_eq!(budget.most(SCRUB).bytes, 500);
        assert_eq!(budget.guaranteed(SCRUB).bytes, 100);
        assert_eq!(budget.try_take(ms(0), SCRUB, bytes(300)), Ok(())); // 100 of its own, 200 common
        assert_eq!(budget.try_take(ms(0), SNAPSHOT, bytes(200)), Ok(())); // the rest of the common ones
        assert_eq!(budget.try_take(ms(0), CLEANING, bytes(500)), Ok(())); // all of its own
        // Scrubbing's own come at 100 B/s, common ones at 400 B/s: 50 bytes in 100 ms.
        assert_eq!(budget.try_take(ms(0), SCRUB, bytes(50)), Err(Refusal::NotBefore(ms(100))));
        assert_eq!(budget.try_take(ms(100), SCRUB, bytes(50)), Ok(()));
    }

    /// Without the overflow a lone consumer would get its share and the common part, and the rest would be lost.
    #[test]
    fn unused_shares_overflow_to_whoever_wants() {
        let mut budget = budget();
        assert_eq!(budget.try_take(ms(0), SNAPSHOT, bytes(400)), Ok(()));
        for step in 1..=100 {
            assert_eq!(budget.try_take(ms(step * 100), SNAPSHOT, bytes(100)), Ok(()), "step {step}");
        }
    }

    /// Without claims scrubbing, which asks for little, would take every byte before cleaning's 900 gather.
    #[test]
    fn who_waits_is_not_overtaken_by_lower_priority() {
        let mut budget = budget();
        budget.try_take(ms(0), CLEANING, bytes(900)).unwrap();
        budget.try_take(ms(0), SCRUB, bytes(100)).unwrap();
        let Err(Refusal::NotBefore(ready)) = budget.try_take(ms(0), CLEANING, bytes(900)) else { panic!() };
        let mut asked = 0;
        let mut scrubbed = 0;
        while asked <= ready.as_millis() as u64 {
            scrubbed += u64::from(budget.try_take(ms(asked), SCRUB, bytes(1)).is_ok());
            asked += 1;
        }
        assert_eq!(scrubbed, ready.as_millis() as u64 / 10, "its share, and no more");
        assert_eq!(budget.try_take(ready, CLEANING, bytes(900)), Ok(()));
    }

    #[test]
    fn equal_priority_is_first_come_first_served() {
        let mut options = options();
        options.consumers[1].priority = 1;
        options.consumers[1].share_permille = 0;
        let mut budget = Budget::new(&options, Duration::ZERO).unwrap();
        budget.try_take(ms(0), SNAPSHOT, bytes(500)).unwrap();
        let Err(Refusal::NotBefore(first)) = budget.try_take(ms(0), SNAPSHOT, bytes(400)) else { panic!() };
        let Err(Refusal::NotBefore(second)) = budget.try_take(ms(1), SCRUB, bytes(10)) else { panic!() };
        assert!(first < second, "{first:?} {second:?}");
        assert_eq!(budget.try_take(first, SNAPSHOT, bytes(400)), Ok(()));
        assert_eq!(budget.try_take(second, SCRUB, bytes(10)), Ok(()));
    }

    #[test]
    fn a_claim_that_nobody_comes_for_lapses() {
        let mut budget = budget();
        budget.try_take(ms(0), SNAPSHOT, bytes(400)).unwrap();
        let Err(Refusal::NotBefore(ready)) = budget.try_take(ms(0), SNAPSHOT, bytes(400)) else { panic!() };
        budget.try_take(ready, SCRUB, bytes(100)).unwrap();
        let Err(Refusal::NotBefore(next)) = budget.try_take(ready, SCRUB, bytes(500)) else { panic!() };
        assert!(next >= ready + CLAIM_LAPSE);
        assert_eq!(budget.try_take(next, SCRUB, bytes(500)), Ok(()));
        // One that was given up is gone at once.
        let Err(Refusal::NotBefore(ready)) = budget.try_take(next, SNAPSHOT, bytes(400)) else { panic!() };
        let with = budget.next_ready(next, SCRUB, bytes(400)).unwrap();
        budget.withdraw(SNAPSHOT);
        let without = budget.next_ready(next, SCRUB, bytes(400)).unwrap();
        assert!(without <= ready && without < with);
    }

    #[test]
    fn a_lapsed_claim_reserves_nothing_beside_a_live_one() {
        let mut budget = budget();
        budget.try_take(ms(0), SNAPSHOT, bytes(400)).unwrap();
        budget.try_take(ms(0), SNAPSHOT, bytes(400)).unwrap_err();
        budget.try_take(ms(2_000), SCRUB, bytes(500)).unwrap();
        budget.try_take(ms(2_000), CLEANING, bytes(600)).unwrap_err();
        // Cleaning claims 100 common bytes, which come at 900 B/s; scrubbing's own come at 100 B/s.
        assert_eq!(budget.next_ready(ms(2_000), SCRUB, bytes(60)), Some(ms(2_160)));
    }

    #[test]
    fn too_large_and_too_slow() {
        let mut budget = budget();
        let most = Cost { bytes: 500, operations: 500_000 };
        assert_eq!(budget.try_take(ms(0), SCRUB, bytes(501)), Err(Refusal::TooLarge { most }));
        assert_eq!(budget.next_ready(ms(0), SCRUB, bytes(501)), None);
        budget.set_rate(ms(0), Rate { bytes_per_s: 0, operations_per_s: 0 });
        assert_eq!(budget.try_take(ms(0), SCRUB, bytes(500)), Ok(()), "what is saved up stays");
        assert_eq!(budget.try_take(ms(0), SCRUB, bytes(1)), Err(Refusal::NotBefore(Duration::MAX)));
        assert_eq!(budget.next_ready(ms(5), SCRUB, bytes(1)), None);
        budget.set_rate(ms(10), Rate { bytes_per_s: 10, operations_per_s: 10 });
        // All of the 10 B/s: what is cleaning's own is full.
        assert_eq!(budget.next_ready(ms(10), SCRUB, bytes(1)), Some(ms(110)));
    }

    #[test]
    fn operations_count_as_bytes_do() {
        let mut options = options();
        options.rate.operations_per_s = 10;
        options.burst.operations = 10;
        let mut budget = Budget::new(&options, Duration::ZERO).unwrap();
        for _ in 0..5 {
            budget.try_take(ms(0), SCRUB, bytes(1)).unwrap();
        }
        // Its own one and four common ones are gone.
        assert_eq!(budget.try_take(ms(0), SCRUB, bytes(1)), Err(Refusal::NotBefore(ms(100))));
    }

    #[test]
    fn shares_are_checked() {
        let mut options = options();
        options.consumers[2].share_permille = 401;
        assert_eq!(Budget::new(&options, Duration::ZERO).unwrap_err(), SharesError { permille: 1_001 });
        options.consumers[2].share_permille = 400;
        Budget::new(&options, Duration::ZERO).unwrap();
    }

    /// With levels in whole bytes, or in floating point, this drifts.
    #[test]
    fn asking_often_loses_nothing() {
        let mut options = options();
        options.rate.bytes_per_s = 3;
        let mut budget = Budget::new(&options, Duration::ZERO).unwrap();
        let mut once = budget.clone();
        for consumer in [CLEANING, SCRUB, SNAPSHOT] {
            let own = if consumer == SNAPSHOT { 400 } else { budget.guaranteed(consumer).bytes };
            budget.try_take(ms(0), consumer, bytes(own)).unwrap();
            once.try_take(ms(0), consumer, bytes(own)).unwrap();
        }
        for nanos in (0..10_000_000_000).step_by(7_777_777) {
            budget.advance(Duration::from_nanos(nanos));
        }
        budget.advance(ms(10_000));
        once.advance(ms(10_000));
        assert_eq!(budget.bytes.own, once.bytes.own);
        assert_eq!(budget.bytes.common, once.bytes.common);
        let all = budget.bytes.common + budget.bytes.own.iter().sum::<u128>();
        assert_eq!(all, 30 * PARTS);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Ask { consumer: usize, cost: Cost },
        SetRate(Rate),
        Withdraw { consumer: usize },
    }

    fn costs() -> impl Strategy<Value = Cost> {
        (0u64..1_200, 0u64..12).prop_map(|(bytes, operations)| Cost { bytes, operations })
    }

    fn steps() -> impl Strategy<Value = Vec<(u64, Step)>> {
        let step = prop_oneof![
            12 => (0usize..3, costs()).prop_map(|(consumer, cost)| Step::Ask { consumer, cost }),
            1 => (0u64..3_000, 0u64..30)
                .prop_map(|(bytes_per_s, operations_per_s)| Step::SetRate(Rate { bytes_per_s, operations_per_s })),
            1 => (0usize..3).prop_map(|consumer| Step::Withdraw { consumer }),
        ];
        prop::collection::vec((0u64..400_000_000, step), 1..120)
    }

    fn shared() -> impl Strategy<Value = BudgetOptions> {
        let consumer = (0u8..3, 0u32..=333).prop_map(|(priority, share_permille)| Consumer {
            name: "some",
            priority,
            share_permille,
        });
        (1u64..3_000, 1u64..30, 1u64..2_000, 1u64..20, prop::collection::vec(consumer, 3)).prop_map(
            |(bytes_per_s, operations_per_s, bytes, operations, consumers)| BudgetOptions {
                rate: Rate { bytes_per_s, operations_per_s },
                burst: Cost { bytes, operations },
                consumers,
            },
        )
    }

    proptest! {
        #[test]
        fn no_window_gets_more_than_rate_and_burst(options in shared(), steps in steps()) {
            let mut budget = Budget::new(&options, Duration::ZERO).unwrap();
            let mut rate = options.rate;
            let mut now = Duration::ZERO;
            // Granted minus what the rate brought, in parts, [bytes, operations]: no later value may exceed an earlier
            // one by more than the burst. The earlier one is taken before what is granted at that moment.
            let mut excess = [0i128; 2];
            let mut least = [0i128; 2];
            let burst = [options.burst.bytes, options.burst.operations];
            for (nanos, step) in steps {
                now += Duration::from_nanos(nanos);
                for (kind, rate) in [rate.bytes_per_s, rate.operations_per_s].into_iter().enumerate() {
                    excess[kind] -= i128::from(rate) * i128::from(nanos) * PERMILLE as i128;
                    least[kind] = least[kind].min(excess[kind]);
                }
                match step {
                    Step::Ask { consumer, cost } => {
                        let promised = budget.next_ready(now, ConsumerId(consumer), cost);
                        let granted = budget.try_take(now, ConsumerId(consumer), cost);
                        match granted {
                            Ok(()) => {
                                prop_assert_eq!(promised, Some(now));
                                excess[0] += i128::from(cost.bytes) * PARTS as i128;
                                excess[1] += i128::from(cost.operations) * PARTS as i128;
                            }
                            Err(Refusal::NotBefore(ready)) => {
                                prop_assert!(ready > now);
                                prop_assert_eq!(promised.unwrap_or(Duration::MAX), ready);
                            }
                            Err(Refusal::TooLarge { .. }) => prop_assert_eq!(promised, None),
                        }
                    }
                    Step::SetRate(new) => {
                        budget.set_rate(now, new);
                        rate = new;
                    }
                    Step::Withdraw { consumer } => budget.withdraw(ConsumerId(consumer)),
                }
                for kind in 0..2 {
                    prop_assert!(excess[kind] - least[kind] <= i128::from(burst[kind]) * PARTS as i128);
                }
            }
        }

        /// Alone, a consumer is granted at the very nanosecond it was told, and not one earlier.
        #[test]
        fn the_moment_is_exact(options in shared(), costs in prop::collection::vec(costs(), 1..30)) {
            let mut budget = Budget::new(&options, Duration::ZERO).unwrap();
            let mut now = Duration::ZERO;
            for cost in costs {
                match budget.try_take(now, SCRUB, cost) {
                    Ok(()) | Err(Refusal::TooLarge { .. }) => continue,
                    Err(Refusal::NotBefore(ready)) => {
                        prop_assert_eq!(budget.next_ready(now, SCRUB, cost), Some(ready));
                        let mut early = budget.clone();
                        let just_before = ready - Duration::from_nanos(1);
                        prop_assert_eq!(early.try_take(just_before, SCRUB, cost), Err(Refusal::NotBefore(ready)));
                        prop_assert_eq!(budget.try_take(ready, SCRUB, cost), Ok(()));
                        now = ready;
                    }
                }
            }
        }

        /// The others take all they can, at every moment that anything changes, and rank higher.
        #[test]
        fn a_minimum_share_never_starves(
            mut options in shared(),
            share_permille in 50u32..=333,
            wanted in prop::collection::vec(costs(), 1..12),
            greed in prop::collection::vec((1usize..3, costs(), 0u64..50_000_000), 1..40),
        ) {
            options.consumers[0] = Consumer { name: "modest", priority: 0, share_permille };
            options.consumers[1].priority = 1;
            let mut budget = Budget::new(&options, Duration::ZERO).unwrap();
            let guaranteed = budget.guaranteed(CLEANING);
            let mut now = Duration::ZERO;
            let mut greed = greed.into_iter().cycle();
            for wanted in wanted {
                let cost = Cost {
                    bytes: wanted.bytes.min(guaranteed.bytes),
                    operations: wanted.operations.min(guaranteed.operations),
                };
                let wait = |amount: u64, rate: u64| {
                    (u128::from(amount) * PARTS).div_ceil(u128::from(rate) * u128::from(share_permille))
                };
                let nanos = wait(cost.bytes, options.rate.bytes_per_s)
                    .max(wait(cost.operations, options.rate.operations_per_s));
                let deadline = later(now, nanos);
                while now < deadline {
                    let (consumer, cost, nanos) = greed.next().unwrap();
                    let _ = budget.try_take(now, ConsumerId(consumer), cost);
                    now = (now + Duration::from_nanos(nanos)).min(deadline);
                    if nanos == 0 {
                        now = (now + Duration::from_nanos(1)).min(deadline);
                    }
                }
                prop_assert_eq!(budget.try_take(now, CLEANING, cost), Ok(()));
            }
        }
    }
}
