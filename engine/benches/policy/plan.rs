//! Which policies are run on which loads.

use terrane_engine::policy::heat::MEMORY;
use terrane_engine::policy::placement::{CLASSES, RATIO};
use terrane_engine::policy::victim::Score;

use crate::sim::{Policy, Streams};
use crate::trace::{Choice, Load};

/// A policy and what it is called.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// Its name.
    pub(crate) name: String,
    /// What it does.
    pub(crate) policy: Policy,
}

/// A load and the policies that are run on it.
#[derive(Debug, Clone)]
pub(crate) struct Section {
    /// What is printed above.
    pub(crate) title: String,
    /// `None`: the trace that was recorded.
    pub(crate) load: Option<Load>,
    /// The policies.
    pub(crate) rows: Vec<Row>,
}

/// The store's policy.
pub(crate) const OURS: Streams = Streams::Heat { user: 0, classes: CLASSES, ratio: RATIO, memory: MEMORY };
const ROOT: Score = Score::CostBenefit { age_exponent: 0.5 };
const STEEP: Score = Score::CostBenefit { age_exponent: 0.75 };
const FOUR: Streams = Streams::LastInterval { classes: 4, ratio: 4.0 };

fn row(name: &str, streams: Streams, score: Score) -> Row {
    Row { name: name.to_owned(), policy: Policy { streams, score, heads: false } }
}

/// The store's policy, its victims from the candidates' heads, as in the store.
pub(crate) fn ours() -> Row {
    Row {
        name: "heat, rent (the store's)".to_owned(),
        policy: Policy { streams: OURS, score: Score::Rent, heads: true },
    }
}

/// The table of the design.
pub(crate) fn main_rows() -> Vec<Row> {
    vec![
        row("one stream, greedy", Streams::One, Score::Greedy),
        row("user / relocated, greedy", Streams::UserRelocated, Score::Greedy),
        row("user / relocated, (1-u) age^0.5 / u", Streams::UserRelocated, ROOT),
        row("4 + 4 classes, (1-u) age^0.5 / u", FOUR, ROOT),
        row("4 + 4 classes, (1-u) age^0.75 / u", FOUR, STEEP),
        row("SepBIT, (1-u) age / u", Streams::SepBit, Score::CostBenefit { age_exponent: 1.0 }),
        ours(),
        row("the same, looking at every segment", OURS, Score::Rent),
        row("true rates, rent", Streams::Rates { classes: 16, ratio: 1.5 }, Score::Rent),
        row("oracle of the next write, greedy", Streams::Oracle { classes: 16, ratio: 1.5 }, Score::Greedy),
    ]
}

/// What other loads are run with.
pub(crate) fn short_rows() -> Vec<Row> {
    vec![
        row("one stream, greedy", Streams::One, Score::Greedy),
        row("4 + 4 classes, (1-u) age^0.75 / u", FOUR, STEEP),
        row("SepBIT, (1-u) age / u", Streams::SepBit, Score::CostBenefit { age_exponent: 1.0 }),
        ours(),
    ]
}

/// Zipf's law with θ = 0.99, records of one size.
pub(crate) fn zipf(keys: usize, updates: usize, seed: u64) -> Load {
    Load { keys, updates, choice: Choice::Zipf { theta: 0.99 }, bytes: 1024, varied: false, churn: 0, seed }
}

/// The other loads.
pub(crate) fn other_sections(base: Load) -> Vec<Section> {
    let section =
        |title: &str, load| Section { title: title.to_owned(), load: Some(load), rows: short_rows() };
    let zipf = |theta| Choice::Zipf { theta };
    vec![
        section("Uniform keys", Load { choice: Choice::Uniform, ..base }),
        section("Zipf 0.8", Load { choice: zipf(0.8), ..base }),
        section("Zipf 1.2", Load { choice: zipf(1.2), ..base }),
        section("Zipf 0.99, records of 256 B to 16 KiB", Load { bytes: 256, varied: true, ..base }),
        section(
            "Zipf 0.99, the 1,000 hottest keys change places once in an overwrite",
            Load { churn: 1_000, ..base },
        ),
        section("Zipf 0.99, the same ten times in an overwrite", Load { churn: 10_000, ..base }),
    ]
}

/// What was tried on the way to the store's policy: one thing changed at a time.
pub(crate) fn tried() -> Vec<Row> {
    let mut rows = vec![ours()];
    let heat = |user, classes, ratio, memory| Streams::Heat { user, classes, ratio, memory };
    for memory in 1..=7 {
        rows.push(row(&format!("memory of {memory}"), heat(0, CLASSES, RATIO, memory), Score::Rent));
    }
    for (classes, ratio) in [
        (4, 2.0),
        (4, 4.0),
        (6, 2.0),
        (6, 3.0),
        (8, 1.5),
        (8, 2.0),
        (8, 3.0),
        (12, 1.5),
        (12, 2.0),
        (16, 1.5),
    ] {
        rows.push(row(
            &format!("{classes} classes of {ratio} to 1"),
            heat(0, classes, ratio, MEMORY),
            Score::Rent,
        ));
    }
    for user in [1, 2, 4, 8] {
        rows.push(row(
            &format!("users apart, in {user} streams"),
            heat(user, CLASSES, RATIO, MEMORY),
            Score::Rent,
        ));
    }
    for (name, score) in [
        ("greedy", Score::Greedy),
        ("(1-u) age^0.5 / u", ROOT),
        ("(1-u) age^0.75 / u", STEEP),
        ("(1-u) age / u", Score::CostBenefit { age_exponent: 1.0 }),
    ] {
        rows.push(row(&format!("score {name}"), OURS, score));
    }
    rows.push(row("user / relocated, rent", Streams::UserRelocated, Score::Rent));
    rows.push(row("4 + 4 classes by last interval and age, rent", FOUR, Score::Rent));
    rows.push(row("SepBIT, rent", Streams::SepBit, Score::Rent));
    rows.push(row("SepBIT, greedy", Streams::SepBit, Score::Greedy));
    rows
}
