//! What no policy can beat that knows how often each key is written but not when.
//!
//! If space has a price, each rate has a cheapest age to be cleaned at (`engine/src/policy/victim.rs`). With records of
//! each rate in segments of their own, cleaned at that age, the price follows from the space there is, and the copies
//! from the price. Records of unlike rates in one segment, or no estimate of the rate, can only cost more. It holds for writes
//! at random times and segments of many records; who knows the times can do better.

/// Keys that are alike: how many, and the chance of each of them to be the next that is written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Alike {
    /// How many.
    pub(crate) keys: f64,
    /// Chance of each.
    pub(crate) rate: f64,
}

/// Keys chosen by Zipf's law, those of nearly the same rank taken together.
pub(crate) fn zipf(keys: usize, theta: f64) -> Vec<Alike> {
    let weight = |rank: usize| (rank as f64).powf(-theta);
    let sum: f64 = (1..=keys).map(weight).sum();
    let mut groups = Vec::new();
    let mut from = 1;
    while from <= keys {
        let to = (from + from / 32 + 1).min(keys + 1);
        let share: f64 = (from..to).map(weight).sum::<f64>() / sum;
        let count = (to - from) as f64;
        groups.push(Alike { keys: count, rate: share / count });
        from = to;
    }
    groups
}

/// The least write amplification with `space` times the room of what is alive.
pub(crate) fn least_amplification(groups: &[Alike], space: f64) -> f64 {
    // The higher the price of space, the less is used.
    let price = bisect(1e-12, 1.0, |price| at_price(groups, price).0 > space);
    at_price(groups, price).1
}

/// Write amplification of cleaning the oldest segment of keys that are all alike: u = e^(−space·(1−u)), and 1/(1−u).
pub(crate) fn oldest_first(space: f64) -> f64 {
    let live = bisect(1e-9, 1.0 - 1e-9, |live| (-space * (1.0 - live)).exp() > live);
    1.0 / (1.0 - live)
}

/// Space and write amplification.
fn at_price(groups: &[Alike], price: f64) -> (f64, f64) {
    let (mut space, mut copies, mut keys) = (0.0, 0.0, 0.0);
    for group in groups {
        // e^x − 1 − x = rate / price, with x = rate × age.
        let x = bisect(1e-9, 64.0, |x| x.exp_m1() - x < group.rate / price);
        space += group.keys * x / -(-x).exp_m1();
        copies += group.keys * group.rate / x.exp_m1();
        keys += group.keys;
    }
    (space / keys, 1.0 + copies)
}

/// Where `below` turns from true to false, by halves of the logarithm.
fn bisect(mut low: f64, mut high: f64, below: impl Fn(f64) -> bool) -> f64 {
    for _ in 0..80 {
        let middle = (low * high).sqrt();
        if below(middle) { low = middle } else { high = middle }
    }
    low
}
