//! Scans over all groups: each holds the keys of one range of hashes, so the rows of a range of keys are spread over
//! all of them, about evenly.
//!
//! Every group is asked for its share of the rows and a little more; the rows are merged by key, and a group whose rows
//! are used up is asked again. So about as many values are read as are returned, where asking every group for all rows
//! would read a multiple.

use std::collections::VecDeque;
use std::ops::Bound;

use bytes::Bytes;
use futures_util::future::try_join_all;
use terrane_engine::GroupId;
use terrane_ocssd::Media;

use crate::target::engine::shard::Shard;
use crate::target::{Failure, Row};

/// One group's rows on their way into the merge.
struct Source {
    group: GroupId,
    /// Where to go on.
    from: Bound<Bytes>,
    rows: VecDeque<Row>,
    more: bool,
}

/// The share of one of `groups` in `limit` rows, and twice its standard deviation more: one group in twenty is asked
/// again.
fn share(limit: usize, groups: usize) -> usize {
    let mean = limit.div_ceil(groups);
    if groups == 1 { limit } else { (mean + 2 * mean.isqrt() + 1).min(limit) }
}

/// The first `limit` rows from a key on.
pub(super) async fn scan(shard: &Shard<impl Media>, from: &[u8], limit: usize) -> Result<Vec<Row>, Failure> {
    if limit == 0 {
        return Ok(Vec::new());
    }
    let from = Bytes::copy_from_slice(from);
    let source =
        |group| Source { group, from: Bound::Included(from.clone()), rows: VecDeque::new(), more: true };
    let mut sources: Vec<Source> = shard.all_groups().map(source).collect();
    let groups = sources.len();
    let mut merged: Vec<Row> = Vec::with_capacity(limit.min(1024));
    while merged.len() < limit {
        let wanted = share(limit - merged.len(), groups);
        try_join_all(sources.iter_mut().map(|source| refill(shard, source, wanted))).await?;
        // While every source that has more to give shows its next key, the least of these is the next row of all.
        while merged.len() < limit && sources.iter().all(|source| !source.rows.is_empty() || !source.more) {
            let next = sources.iter_mut().filter(|source| !source.rows.is_empty());
            let Some(least) = next.min_by(|a, b| a.rows[0].key.cmp(&b.rows[0].key)) else {
                return Ok(merged);
            };
            merged.extend(least.rows.pop_front());
        }
    }
    Ok(merged)
}

/// Fetches the next rows of a source that shows none and has more.
async fn refill(shard: &Shard<impl Media>, source: &mut Source, wanted: usize) -> Result<(), Failure> {
    if !source.rows.is_empty() || !source.more {
        return Ok(());
    }
    let got = shard.scan_group(source.group, source.from.clone(), wanted).await?;
    if let Some(last) = got.rows.last() {
        source.from = Bound::Excluded(last.key.clone());
    }
    // No rows although there are more: none to wait for.
    source.more = got.more && !got.rows.is_empty();
    source.rows = got.rows.into();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_enough_and_not_all() {
        assert_eq!(share(100, 1), 100);
        assert_eq!(share(1, 8), 1);
        assert_eq!(share(100, 2), 50 + 14 + 1);
        for (limit, groups) in [(1, 2), (10, 3), (1000, 64)] {
            let share = share(limit, groups);
            assert!(share * groups >= limit && share <= limit);
        }
    }
}
