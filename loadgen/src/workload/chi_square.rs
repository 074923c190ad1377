//! How the tests of distributions decide: Pearson's chi-square against the exact law.
//!
//! The seeds are fixed, so a test passes or fails for good; right samplers stay within five standard
//! deviations, and every user of this shows beside it that a law slightly off is found out.

/// Pearson's statistic of `counts` against the counts that the exact law expects, as a standard normal
/// deviate (Wilson and Hilferty, 1931). Neighbouring cells are joined until each expects at least 10 draws;
/// what is left over at the end joins the last.
pub(crate) fn deviate(counts: &[u64], expected: &[f64]) -> f64 {
    assert_eq!(counts.len(), expected.len(), "a count for every expectation");
    let mut cells: Vec<(f64, f64)> = Vec::new();
    let (mut seen, mut due) = (0.0, 0.0);
    for (count, expected) in counts.iter().zip(expected) {
        seen += *count as f64;
        due += expected;
        if due >= 10.0 {
            cells.push((seen, due));
            (seen, due) = (0.0, 0.0);
        }
    }
    if let Some(last) = cells.last_mut() {
        last.0 += seen;
        last.1 += due;
    }
    assert!(cells.len() >= 2, "too few draws to tell anything");
    let chi2: f64 = cells.iter().map(|(seen, due)| (seen - due).powi(2) / due).sum();
    let freedom = (cells.len() - 1) as f64;
    let spread = 2.0 / (9.0 * freedom);
    ((chi2 / freedom).cbrt() - (1.0 - spread)) / spread.sqrt()
}

/// Zipf's law by its definition: what each of `ranks` ranks expects of `draws` draws.
pub(crate) fn zipf_expects(ranks: u64, theta: f64, draws: u64) -> Vec<f64> {
    let weights: Vec<f64> = (1..=ranks).map(|r| (r as f64).powf(-theta)).collect();
    let zeta: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / zeta * draws as f64).collect()
}

/// Asserts that the counts fit.
#[track_caller]
pub(crate) fn assert_fits(counts: &[u64], expected: &[f64], what: &str) {
    let z = deviate(counts, expected);
    assert!(z.abs() < 5.0, "{what}: {z:.1} standard deviations from the law");
}

/// Asserts that the counts are seen not to fit: the teeth of the other.
#[track_caller]
pub(crate) fn assert_misses(counts: &[u64], expected: &[f64], what: &str) {
    let z = deviate(counts, expected);
    assert!(z > 10.0, "{what}: only {z:.1} standard deviations from a law that is not its own");
}
