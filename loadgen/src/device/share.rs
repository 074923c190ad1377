//! A result as a share of what the device gives: our operations per second divided by the probe's, with requests of the
//! same size, depth, mix and durability, or the nearest that were probed.

use crate::device::cell::Cell;
use crate::device::report::{DeviceReport, Measured};

/// A result beside the device's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Share<'a> {
    /// Our operations per second divided by the cell's.
    pub(crate) share: f64,
    /// The cell that was taken.
    pub(crate) cell: &'a Measured,
    /// The cell is what was asked for, not merely near it.
    pub(crate) exact: bool,
}

impl std::fmt::Display for Share<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let near = if self.exact { "" } else { "nearest cell: " };
        write!(f, "{:.0} % of the device ({near}{})", self.share * 100.0, self.cell.name())
    }
}

/// What part `ops_s` is of what the probe found for requests like `like`, or the nearest to them. `None`: the probe has
/// no cell of that durability that could be compared.
pub(crate) fn share<'a>(report: &'a DeviceReport, like: &Cell, ops_s: f64) -> Option<Share<'a>> {
    let like = Cell { bytes: like.bytes.max(1).next_multiple_of(report.sector_bytes.max(1)), ..*like };
    let cell = nearest(&report.cells, &like)?;
    Some(Share { share: ops_s / cell.ops_s, cell, exact: distance(cell, &like) == 0.0 })
}

/// The cell most like `like`; the first of several. Whether writes are durable is never traded for anything, nor whether
/// there are any.
fn nearest<'a>(cells: &'a [Measured], like: &Cell) -> Option<&'a Measured> {
    let writes = |read_share: f64| read_share < 1.0;
    cells
        .iter()
        .filter(|cell| cell.ops_s > 0.0)
        .filter(|cell| writes(cell.read_share) == writes(like.read_share))
        .filter(|cell| !writes(like.read_share) || cell.durable == like.durable)
        .min_by(|one, other| distance(one, like).total_cmp(&distance(other, like)))
}

/// How unlike they are. In operations per second a doubled size weighs about twice as much as a doubled depth, and
/// another mix more than either.
fn distance(cell: &Measured, like: &Cell) -> f64 {
    let doublings = |a: u32, b: u32| (f64::from(a.max(1)) / f64::from(b.max(1))).log2().abs();
    16.0 * (cell.read_share - like.read_share).abs()
        + 2.0 * doublings(cell.bytes, like.bytes)
        + doublings(cell.depth, like.depth)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(bytes: u32, depth: u32, read_share: f64, durable: bool) -> Measured {
        Measured {
            bytes,
            depth,
            read_share,
            durable,
            seconds: 1.0,
            operations: 1_000,
            ops_s: 1_000.0,
            mb_s: 1.0,
            cpu_s_per_mops: 1.0,
            reads: None,
            writes: None,
        }
    }

    fn report(cells: Vec<Measured>) -> DeviceReport {
        DeviceReport {
            format: 1,
            command: "device".to_owned(),
            version: String::new(),
            partial: false,
            ended_early: None,
            path: "f".to_owned(),
            size_bytes: 1 << 30,
            sector_bytes: 512,
            chunk_bytes: 8 << 20,
            shards: 1,
            cells,
        }
    }

    #[test]
    fn the_nearest_cell_is_taken() {
        const K: u32 = 1024;
        let mut cells = Vec::new();
        for (bytes, depth) in [(4 * K, 1), (4 * K, 32), (32 * K, 32)] {
            cells.push(measured(bytes, depth, 1.0, false));
        }
        for durable in [false, true] {
            cells.push(measured(4 * K, 1, 0.0, durable));
            for (bytes, depth) in [(K, 8), (K, 32), (4 * K, 8), (4 * K, 32), (32 * K, 32)] {
                cells.push(measured(bytes, depth, 0.5, durable));
            }
        }
        let report = report(cells);
        let cases = [
            // (asked for) -> (taken), exact
            ((4 * K, 32, 1.0, false), (4 * K, 32, 1.0), true),
            // Durability says nothing where nothing is written.
            ((4 * K, 32, 1.0, true), (4 * K, 32, 1.0), true),
            ((4 * K, 64, 1.0, true), (4 * K, 32, 1.0), false),
            ((16 * K, 32, 1.0, false), (32 * K, 32, 1.0), false),
            ((1000, 8, 0.5, true), (K, 8, 0.5), true),
            ((4 * K, 64, 0.5, true), (4 * K, 32, 0.5), false),
            ((4 * K, 12, 0.5, false), (4 * K, 8, 0.5), false),
            ((32 * K, 8, 0.5, false), (32 * K, 32, 0.5), false),
            // 95 % reads write, so a cell that writes is nearest.
            ((4 * K, 32, 0.95, false), (4 * K, 32, 0.5), false),
            ((4 * K, 2, 0.0, true), (4 * K, 1, 0.0), false),
        ];
        for ((bytes, depth, read_share, durable), (taken_bytes, taken_depth, taken_share), exact) in cases {
            let like = Cell { bytes, depth, read_share, durable };
            let found = share(&report, &like, 500.0).unwrap();
            let taken = (found.cell.bytes, found.cell.depth, found.cell.read_share, found.exact);
            assert_eq!(taken, (taken_bytes, taken_depth, taken_share, exact), "{like:?}");
            assert!(read_share == 1.0 || found.cell.durable == durable, "{like:?}");
            assert_eq!(found.share, 0.5);
        }
    }

    #[test]
    fn nothing_alike_is_no_share() {
        let report = report(vec![measured(4096, 1, 1.0, false), measured(4096, 1, 0.5, false)]);
        assert!(
            share(&report, &Cell { bytes: 4096, depth: 1, read_share: 0.5, durable: true }, 1.0).is_none()
        );
        assert!(
            share(&report, &Cell { bytes: 4096, depth: 1, read_share: 0.5, durable: false }, 1.0).is_some()
        );
    }

    #[test]
    fn it_says_which_cell_it_took() {
        let report = report(vec![measured(4096, 32, 1.0, false)]);
        let like = |depth| Cell { bytes: 4096, depth, read_share: 1.0, durable: false };
        let said = |depth| share(&report, &like(depth), 640.0).unwrap().to_string();
        assert_eq!(said(32), "64 % of the device (4.0 KiB random read, depth 32)");
        assert_eq!(said(64), "64 % of the device (nearest cell: 4.0 KiB random read, depth 32)");
    }
}
