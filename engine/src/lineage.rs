//! The term lineage of a log: which term wrote which run of indexes.
//!
//! Invariants: runs ascend strictly in `first` and in `term`; a run reaches to the next run's first index, the last
//! one to the end of the log. Together with an index, the lineage says which of several records of that index is the
//! entry (rule 2 of recovery), since within one incarnation (index, term) names one content for ever.

/// A run of log entries of one term: from `first` up to the next run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TermRun {
    /// The term that wrote these entries.
    pub term: u64,
    /// Index of the first of them.
    pub first: u64,
}

/// The term that `runs` give to `index`; `None` before the first run.
pub(crate) fn term_at(runs: &[TermRun], index: u64) -> Option<u64> {
    // The last run holds almost every index that is asked for.
    match runs.last() {
        Some(run) if run.first <= index => return Some(run.term),
        None => return None,
        _ => {}
    }
    let after = runs.partition_point(|run| run.first <= index);
    Some(runs[after.checked_sub(1)?].term)
}

/// Cuts the runs so that they end before `first`. True if a run went.
pub(crate) fn truncate_from(runs: &mut Vec<TermRun>, first: u64) -> bool {
    let keep = runs.partition_point(|run| run.first < first);
    let cut = keep < runs.len();
    runs.truncate(keep);
    cut
}

/// Whether `runs` ascend as the invariant demands.
pub(crate) fn is_ascending(runs: &[TermRun]) -> bool {
    runs.windows(2).all(|pair| pair[0].term < pair[1].term && pair[0].first < pair[1].first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(list: &[(u64, u64)]) -> Vec<TermRun> {
        list.iter().map(|&(term, first)| TermRun { term, first }).collect()
    }

    #[test]
    fn an_index_belongs_to_the_run_that_starts_at_or_before_it() {
        let runs = runs(&[(2, 3), (4, 7), (9, 8)]);
        let terms: Vec<_> = (1..=10).map(|index| term_at(&runs, index)).collect();
        let (two, four, nine) = (Some(2), Some(4), Some(9));
        assert_eq!(terms, [None, None, two, two, two, two, four, nine, nine, nine]);
        assert_eq!(term_at(&[], 1), None);
    }

    #[test]
    fn truncation_drops_runs_that_start_at_or_after_the_cut() {
        let mut list = runs(&[(2, 3), (4, 7), (9, 8)]);
        assert!(!truncate_from(&mut list, 9));
        assert!(truncate_from(&mut list, 7));
        assert_eq!(list, runs(&[(2, 3)]));
        assert!(truncate_from(&mut list, 1));
        assert!(list.is_empty());
    }

    #[test]
    fn runs_must_ascend_in_both() {
        assert!(is_ascending(&runs(&[(1, 1), (2, 5)])));
        assert!(!is_ascending(&runs(&[(1, 1), (2, 1)])));
        assert!(!is_ascending(&runs(&[(2, 1), (2, 5)])));
    }
}
