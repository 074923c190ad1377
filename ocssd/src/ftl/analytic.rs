//! What mathematics says of a drive's write amplification, to hold the model against.
//!
//! Everything here speaks of one *ratio*: physical pages that serve as room for data, for each valid page
//! ([`FtlOptions::room_ratio`](crate::ftl::FtlOptions::room_ratio)), and of the limit of many blocks. Writes are
//! independent and, unless said otherwise, uniform over the valid pages.
//!
//! - **FIFO** ([`fifo`]). A block is collected after every other was. Let `A` be the amplification, `v` the share of
//!   its pages that are still valid then. All pages of the drive are programmed once in between, of which `1 − v`
//!   for the host: the host has overwritten each page `ratio × (1 − v)` times on average, so one survives with
//!   probability `v = exp(−ratio (1 − v))`, and `A = 1 / (1 − v)`. Solved with Lambert's W this is the expression of
//!   Xiang and Kurkoski, "An Improved Analytic Expression for Write Amplification in NAND Flash", ICNC 2012, and of
//!   Desnoyers, "Analytic Modeling of SSD Write Performance", SYSTOR 2012, for LRU cleaning. It does not
//!   depend on the size of a block.
//! - **Greedy** ([`greedy`]). The emptiest block dies younger than by FIFO only as far as blocks of equal age differ,
//!   which they do less the more pages they have. So FIFO's formula is the limit for large blocks (which is
//!   why Xiang and Kurkoski hold it against greedy simulations), and for small ones it is too high: by 12 % at 64
//!   pages and a ratio of 1.07. The mean field result for a finite block is exact for many blocks (Van Houdt,
//!   "A mean field model for a class of garbage collection algorithms in flash-based solid state drives",
//!   SIGMETRICS 2013, whose d-choices becomes greedy as d grows; Bux and Iliadis, "Performance of greedy garbage
//!   collection in flash-based solid-state drives", 2010), and here it has a closed form, derived at the function.
//!   Desnoyers' approximation of it, `fifo(k × ratio) / k` with `k = 1 + 1 / (2 × block)`, agrees within 1 % from 64
//!   pages a block on: a test says so.
//! - **d-choices** ([`choices`]): the same with a victim that is the best of so many random ones; 1 is random
//!   collection.
//! - **FIFO of skewed writes** ([`fifo_skewed`]): pages that are written at different rates, all in one log.
//!
//! Hu et al., "Write Amplification Analysis in Flash-Based Solid State Drives", SYSTOR 2009, were the first to
//! model it (a window of old blocks, greedy within), without a closed form.

/// `−1/e`, where Lambert's W begins.
const BRANCH_POINT: f64 = -0.367_879_441_171_442_33;

/// Lambert's W, principal branch: the `w ≥ −1` with `w × exp(w) = x`. Not a number for `x < −1/e`.
///
/// By Newton's method: from a start not below the solution it descends to it, since `w × exp(w)` is convex and
/// rises where `w > −1`.
pub fn lambert_w0(x: f64) -> f64 {
    if x.is_nan() || x < BRANCH_POINT {
        return f64::NAN;
    }
    // Where the result is about x itself, subtracting would leave nothing of it.
    if x.abs() < 1e-5 {
        return x * (1.0 - x * (1.0 - 1.5 * x));
    }
    // Upper bounds: near the branch point the square root of its series there, `w = −1 + p − p²/3 + …` with
    // `p = √(2(ex + 1))`; for large x the logarithm, for it is above W from e on.
    let mut w = if x < 1.0 {
        let p = (2.0 * (std::f64::consts::E * x + 1.0)).max(0.0).sqrt();
        p - 1.0
    } else if x < std::f64::consts::E {
        1.0
    } else {
        x.ln()
    };
    for _ in 0..100 {
        let exp = w.exp();
        let slope = exp * (w + 1.0);
        let next = w - (w * exp - x) / slope;
        // Converged, or at the branch point itself, where the slope is 0.
        if !next.is_finite() || (w - next).abs() <= f64::EPSILON * w.abs() || next >= w {
            break;
        }
        w = next;
    }
    w
}

/// Amplification with FIFO collection, for any size of block. Infinite for a ratio of 1 or less.
///
/// From `v = exp(−r (1 − v))` follows `−r v exp(−r v) = −r exp(−r)`, so `v = −W(−r exp(−r)) / r`.
pub fn fifo(ratio: f64) -> f64 {
    if ratio <= 1.0 {
        return f64::INFINITY;
    }
    // Rounding must not take a ratio just above 1 below the branch point.
    let valid = -lambert_w0((-ratio * (-ratio).exp()).max(BRANCH_POINT)) / ratio;
    1.0 / (1.0 - valid)
}

/// Amplification with greedy collection of blocks of so many pages. Infinite for a ratio of 1 or less.
///
/// Count the blocks by their valid pages `j`, and let each of `U` valid pages be overwritten at rate `1/U`. A
/// block falls from `j` to `j − 1` at rate `j/U`, and `c` blocks are collected for each write. With greedy there is a
/// level `m` such that no block lives below it: the blocks that fall below are collected at once, and as many at
/// `m` as are needed beside. Above it every block falls all the way, so `x_j × j / U = c`, which gives, with `x`
/// blocks at `m`, `B` pages a block and `N` blocks:
///
/// - blocks: `cU (1/B + … + 1/(m+1)) + x = N`
/// - pages: `cU (B − m) + m x = U`
/// - at `m` no more than all can fall: `0 ≤ x ≤ cU / m`.
///
/// Exactly one `m` fits. `c × B` pages are programmed for each write.
///
/// # Panics
/// If a block has no pages.
pub fn greedy(ratio: f64, block_pages: u32) -> f64 {
    assert!(block_pages > 0, "a block has pages");
    if ratio <= 1.0 {
        return f64::INFINITY;
    }
    // With U = 1: the number of blocks, a share of U.
    let blocks = ratio / f64::from(block_pages);
    let mut harmonic = 0.0;
    for level in (0..block_pages).rev() {
        harmonic += 1.0 / f64::from(level + 1);
        let per_level = harmonic / f64::from(block_pages - level);
        let at_level = (blocks - per_level) / (1.0 - f64::from(level) * per_level);
        let collected = (1.0 - f64::from(level) * at_level) / f64::from(block_pages - level);
        if at_level >= 0.0 && f64::from(level) * at_level <= collected {
            return collected * f64::from(block_pages);
        }
    }
    // So much room that blocks die by themselves.
    1.0
}

/// Amplification where the victim is the block with the fewest valid pages among `draws` random ones. Infinite for a
/// ratio of 1 or less.
///
/// With the terms of [`greedy`], and `s_j` the share of blocks with `j` valid pages or more: the victim is below `j`
/// unless all draws are at `j` or above, so as many blocks fall from `j` as are collected below it, `j (s_j −
/// s_(j+1)) = λ (1 − s_j^d)` with `λ = cU/N`. For a given `λ` that is solved from `j = B` downwards; the shares add
/// up to the mean of valid pages, which rises with `λ`.
///
/// # Panics
/// If a block has no pages or the victim no draw.
pub fn choices(ratio: f64, block_pages: u32, draws: u32) -> f64 {
    assert!(block_pages > 0 && draws > 0, "a block has pages, a victim is drawn");
    if ratio <= 1.0 {
        return f64::INFINITY;
    }
    let draws = f64::from(draws);
    let mean_valid = |lambda: f64| {
        let (mut above, mut sum) = (0.0, 0.0);
        for level in (1..=block_pages).rev().map(f64::from) {
            // level × s + λ s^d = λ + level × above: the left side rises with s and is at most the right at
            // s = above.
            let balance = |share: f64| level * (share - above) - lambda * (1.0 - share.powf(draws));
            above = rising_root(above, 1.0, balance);
            sum += above;
        }
        sum
    };
    let wanted = f64::from(block_pages) / ratio;
    let mut most = 1.0;
    while mean_valid(most) < wanted {
        most *= 2.0;
    }
    // λ = cU/N and U/N = B/ratio, so c × B = λ × ratio.
    rising_root(0.0, most, |lambda| mean_valid(lambda) - wanted) * ratio
}

/// Pages that are all written at the same rate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RateClass {
    /// How many.
    pub pages: f64,
    /// Share of all writes that go to these pages together.
    pub writes: f64,
}

/// Amplification with FIFO collection where pages are written at different rates, host's and moved pages in one log of
/// `physical_pages`. Infinite if they do not fit.
///
/// A page written at rate `λ` (per write of the host) is either overwritten within one round of the log, of `L`
/// writes, or moved once more: it is moved `λ / (exp(λL) − 1)` times per write. A round takes all physical pages,
/// `L × A` of them. With one class this is [`fifo`]; with two, Desnoyers' LRU cleaning of hot and cold data.
pub fn fifo_skewed(classes: &[RateClass], physical_pages: f64) -> f64 {
    if classes.iter().map(|class| class.pages).sum::<f64>() >= physical_pages {
        return f64::INFINITY;
    }
    let round = |amplification: f64| physical_pages / amplification;
    let programmed = |amplification: f64| {
        let moved = |class: &RateClass| {
            if class.pages <= 0.0 {
                return 0.0;
            }
            let rounds = class.writes / class.pages * round(amplification);
            // Pages never written are moved once a round.
            if rounds < 1e-12 { class.pages / round(amplification) } else { class.writes / rounds.exp_m1() }
        };
        1.0 + classes.iter().map(moved).sum::<f64>()
    };
    let mut most = 2.0;
    while programmed(most) > most && most < 1e9 {
        most *= 2.0;
    }
    rising_root(1.0, most, |amplification| amplification - programmed(amplification))
}

/// Where a rising function passes zero between two bounds, by bisection to the last bit.
fn rising_root(mut low: f64, mut high: f64, function: impl Fn(f64) -> f64) -> f64 {
    for _ in 0..200 {
        let middle = low + (high - low) / 2.0;
        if middle <= low || middle >= high {
            break;
        }
        if function(middle) < 0.0 { low = middle } else { high = middle }
    }
    high
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64, tolerance: f64) {
        assert!((found / expected - 1.0).abs() <= tolerance, "{found} instead of {expected}");
    }

    /// The constants are those of tables: W(1) is the omega constant.
    #[test]
    fn lambert_w_at_known_points() {
        assert_eq!(lambert_w0(0.0), 0.0);
        close(lambert_w0(1.0), 0.567_143_290_409_783_8, 1e-15);
        close(lambert_w0(std::f64::consts::E), 1.0, 1e-15);
        close(lambert_w0(10.0), 1.745_528_002_740_699_4, 1e-14);
        close(lambert_w0(-0.1), -0.111_832_559_158_962_97, 1e-14);
        close(lambert_w0(-std::f64::consts::LN_2 / 2.0), -std::f64::consts::LN_2, 1e-12);
        // At the branch point half of the digits are lost: the slope is zero there.
        close(lambert_w0(BRANCH_POINT), -1.0, 1e-7);
        assert_eq!(BRANCH_POINT, -(-1.0f64).exp());
        assert!(lambert_w0(-0.37).is_nan());
        assert!(lambert_w0(f64::NAN).is_nan());
    }

    #[test]
    fn lambert_w_inverts_over_its_whole_range() {
        for step in 0..=4000 {
            let w = -0.999 + f64::from(step) * 0.01;
            close(lambert_w0(w * w.exp()), w, if w < -0.9 { 1e-9 } else { 1e-12 });
        }
        for x in [1e-300, 1e-10, 1e10, 1e100, 1e300] {
            let w = lambert_w0(x);
            close(w.ln() + w, x.ln(), 1e-12);
        }
    }

    /// The figures that are quoted everywhere, and the example in the abstract of Xiang and Kurkoski.
    #[test]
    fn fifo_gives_the_published_figures() {
        for (ratio, quoted) in [(1.1, 5.7), (1.2, 3.2), (1.3, 2.4), (1.4, 2.0), (1.6, 1.6)] {
            assert!((fifo(ratio) - quoted).abs() < 0.05, "{ratio}: {} instead of {quoted}", fifo(ratio));
        }
        assert!((fifo(1.3) - 2.36).abs() < 0.005);
        assert_eq!(fifo(1.0), f64::INFINITY);
    }

    #[test]
    fn fifo_satisfies_its_equation() {
        for ratio in [1.001, 1.07, 1.5, 3.0, 10.0] {
            let amplification = fifo(ratio);
            close(1.0 - 1.0 / amplification, (-ratio / amplification).exp(), 1e-9);
        }
    }

    #[test]
    fn greedy_tends_to_fifo_for_large_blocks_and_to_desnoyers_before() {
        for ratio in [1.05, 1.07, 1.15, 1.28, 1.6, 2.5] {
            close(greedy(ratio, 1 << 20), fifo(ratio), 1e-4);
            for block_pages in [64, 256, 2048] {
                let k = 1.0 + 0.5 / f64::from(block_pages);
                close(greedy(ratio, block_pages), fifo(k * ratio) / k, 0.01);
            }
        }
    }

    /// Blocks of one page never hold a valid page when they are collected.
    #[test]
    fn greedy_at_the_edges() {
        assert_eq!(greedy(1.5, 1), 1.0);
        assert_eq!(greedy(1.0, 64), f64::INFINITY);
        close(greedy(50.0, 64), 1.0, 1e-12);
    }

    /// Random collection: a victim has `1/ratio` of its pages valid, as every block has.
    #[test]
    fn choices_lie_between_random_and_greedy() {
        for ratio in [1.07, 1.28, 2.0] {
            close(choices(ratio, 32, 1), ratio / (ratio - 1.0), 1e-9);
            let falling = [1, 2, 3, 10, 100].map(|draws| choices(ratio, 32, draws));
            assert!(falling.is_sorted_by(|left, right| left > right), "{falling:?}");
            close(choices(ratio, 32, 3000), greedy(ratio, 32), 0.002);
        }
    }

    #[test]
    fn skewed_fifo_agrees_where_it_can_be_compared() {
        let all = RateClass { pages: 1000.0, writes: 1.0 };
        close(fifo_skewed(&[all], 1280.0), fifo(1.28), 1e-9);
        // The same writes in unequal parts of the same rate.
        let parts = [0.1, 0.6, 0.3].map(|part| RateClass { pages: 1000.0 * part, writes: part });
        close(fifo_skewed(&parts, 1280.0), fifo(1.28), 1e-9);
        // A half that is never written is moved once a round: A = 1 + hot's + cold / L.
        let still = [RateClass { pages: 500.0, writes: 1.0 }, RateClass { pages: 500.0, writes: 0.0 }];
        let amplification = fifo_skewed(&still, 1280.0);
        let round = 1280.0 / amplification;
        close(amplification, 1.0 + 1.0 / (round / 500.0).exp_m1() + 500.0 / round, 1e-9);
        assert_eq!(fifo_skewed(&[all], 1000.0), f64::INFINITY);
    }
}
