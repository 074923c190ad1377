//! What a volume must hold: every sector of a line's life has one right content, so whatever is there is right or wrong
//! whoever wrote it and however it ended; and what was promised must be there.

use std::collections::BTreeSet;

use terrane_ocssd::{AlignedBuf, ChunkId, ChunkState, Durability, Media, MediaError, Volume};

pub(crate) const SECTOR: usize = 512;

/// What the host knows of a line.
#[derive(Debug, Clone, Default)]
pub(crate) struct LineModel {
    pub(crate) life: u64,
    /// End of what was submitted.
    pub(crate) written: u32,
    /// End of what was acknowledged, in order.
    pub(crate) acknowledged: u32,
    /// End of what must survive a power cut.
    pub(crate) promised: u32,
    pub(crate) closed: bool,
    /// Closed, and not yet flushed since.
    pub(crate) closing: bool,
    /// A reset of it was cut short: it holds its old content, or nothing, or a part.
    pub(crate) resetting: bool,
    /// An operation of it failed or was dropped: no more writes or resets before it is opened again.
    pub(crate) stopped: bool,
    /// Members that went offline with what they held.
    pub(crate) gone: u32,
}

#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) lines: Vec<LineModel>,
    pub(crate) lag: u32,
    /// Chunks that went offline and were no line's, as far as the volume said. One of them may be what the record still
    /// names of a line that moved elsewhere, and is that line's again after a power cut.
    pub(crate) strays: u32,
    /// The device pads chunks that it is to close, with zeros, and recovery closes chunks.
    pub(crate) pads: bool,
}

/// The one right content of sectors.
pub(crate) fn content(line: u32, life: u64, sector: u32, sectors: u32) -> AlignedBuf {
    let mut buf = AlignedBuf::zeroed(sectors as usize * SECTOR);
    for (at, bytes) in buf.chunks_mut(SECTOR).enumerate() {
        let number = u64::from(line) << 48 | life << 24 | u64::from(sector + at as u32) | 1 << 60;
        let number = number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        bytes.chunks_mut(8).for_each(|word| word.copy_from_slice(&number));
    }
    buf
}

impl Model {
    pub(crate) fn of<M: Media>(volume: &Volume<M>) -> Self {
        let geometry = volume.geometry();
        let lines = vec![LineModel::default(); geometry.chunks as usize];
        Self { lines, lag: geometry.mw_cunits, strays: 0, pads: false }
    }

    /// A flush that began when this much was acknowledged has ended.
    pub(crate) fn flushed(&mut self, at_begin: &[LineModel]) {
        let lag = self.lag;
        for (line, before) in self.lines.iter_mut().zip(at_begin) {
            if line.life != before.life || line.resetting {
                continue;
            }
            if before.closing {
                line.closing = false;
            }
            let covered = match before.closed {
                true => before.acknowledged,
                false => before.acknowledged.saturating_sub(lag),
            };
            line.promised = line.promised.max(covered);
        }
    }

    /// A durable write up to `end` was acknowledged.
    pub(crate) fn durable(&mut self, line: u32, end: u32) {
        let lag = self.lag;
        let line = &mut self.lines[line as usize];
        line.promised = line.promised.max(end.saturating_sub(lag));
    }

    /// The volume was opened after a power cut: what is there is on the flash, to its last sector.
    pub(crate) fn survived_cut(&mut self) {
        for line in self.lines.iter_mut().filter(|line| !line.resetting) {
            line.promised = line.promised.max(line.acknowledged);
        }
    }

    /// Checks a volume that was just opened, and goes on from there. Opening it flushes what a process before left in the
    /// device, so all that it shows is promised, but for the last sectors of chunks that may be open.
    pub(crate) async fn check_opened<M: Media>(&mut self, volume: &Volume<M>) {
        let report = volume.report().await.unwrap();
        let lag = self.lag;
        let whole = volume.geometry().chunk_sectors;
        for (index, (info, line)) in report.iter().zip(&mut self.lines).enumerate() {
            let (index, end) = (index as u32, info.write_pointer);
            let told = format!("line {index}: {info:?}, expected {line:?}");
            if line.gone == 0 && !line.resetting && self.strays > 0 && reads_fail(volume, index, end).await {
                self.strays -= 1;
                line.gone = 1;
            }
            if line.gone > 0 && !line.resetting && info.state == ChunkState::Closed {
                // The others say where it ends.
                assert!(end >= line.promised, "{told}");
                let gone = check_lost(volume, index, line, end).await.len() as u32;
                assert!(gone <= line.gone, "{gone} members are gone: {told}");
                line.closed = true;
                line.stopped = false;
                line.written = end;
                line.acknowledged = end;
                continue;
            }
            if info.state == ChunkState::Offline {
                // It has a member without a chunk, which is found out only when nothing is in it.
                assert!(line.resetting || line.promised == 0, "{told}");
                *line = LineModel { stopped: true, life: line.life, ..LineModel::default() };
                continue;
            }
            let most = if line.resetting || self.pads { whole } else { line.written };
            assert!(end <= most, "{told}");
            assert!(line.resetting || end >= line.promised, "lost what was promised: {told}");
            // A reset that was cut short may have taken a chunk that cannot be erased.
            let gone = line.resetting && reads_fail(volume, index, end).await;
            let pointer = end;
            let end = match self.pads && !gone {
                true => before_padding(volume, index, line.life, end).await,
                false => end,
            };
            assert!(line.resetting || end >= line.promised, "padding in place of what was promised: {told}");
            if !gone {
                check(volume, index, line.life, end).await;
            }
            line.written = end;
            line.acknowledged = end;
            // What was padded in part can be written on behind that; here it is not.
            line.closed = info.state == ChunkState::Closed || end < pointer;
            line.closing = line.closed;
            line.stopped = false;
            if info.state != ChunkState::Closed {
                // It has a spare, to which all that was there could be moved.
                line.gone = 0;
            }
            if end == 0 {
                line.promised = 0;
            } else if !line.resetting {
                line.promised = line.promised.max(end.saturating_sub(lag));
            }
        }
    }

    /// Checks all that was acknowledged on an open volume. `scarce`: there were no spares at some moment.
    pub(crate) async fn check_all<M: Media>(&self, volume: &Volume<M>, scarce: bool) {
        for (index, line) in self.lines.iter().enumerate().filter(|(_, line)| !line.resetting) {
            match line.gone {
                0 => {
                    let end = shown_end(volume, index as u32, line, scarce).await;
                    check(volume, index as u32, line.life, end.expect("power is on")).await;
                }
                most => {
                    let gone = check_lost(volume, index as u32, line, line.acknowledged).await;
                    assert!(gone.len() as u32 <= most, "line {index}: members {gone:?} are gone, {line:?}");
                }
            }
        }
    }
}

/// Where what was acknowledged of a line on an open volume ends for its readers: a line that broke for want of a spare is
/// closed where its chunk failed. What was promised is below that, and a line that the host closed does not break. `None`:
/// the power is gone.
pub(crate) async fn shown_end<M: Media>(
    volume: &Volume<M>,
    index: u32,
    line: &LineModel,
    scarce: bool,
) -> Option<u32> {
    let info = volume.report().await.ok()?[index as usize];
    let end = info.write_pointer;
    if info.state != ChunkState::Closed || end >= line.acknowledged {
        return Some(line.acknowledged);
    }
    assert!(scarce, "line {index} ends at {end}, and there always were spares: {line:?}");
    assert!(end >= line.promised && !line.closed, "line {index} ends at {end}: {line:?}");
    Some(end)
}

/// Reads the front of a line that lost members, sector by sector: the others' are right, theirs say that they are gone.
/// What was not promised may be cut off, where the line was closed. Returns the members that were found to be gone.
pub(crate) async fn check_lost<M: Media>(
    volume: &Volume<M>,
    index: u32,
    line: &LineModel,
    end: u32,
) -> BTreeSet<u32> {
    let width = volume.status().stripe_units;
    let unit_sectors = volume.geometry().ws_opt / width;
    let mut gone = BTreeSet::new();
    for sector in 0..end {
        match volume.read(ChunkId(index), sector, AlignedBuf::zeroed(SECTOR)).await {
            (Ok(()), buf) => {
                let right = content(index, line.life, sector, 1);
                assert!(*buf == *right, "line {index}, sector {sector} is wrong: {line:?}");
            }
            (Err(MediaError::Unreadable { chunk, sector: named }), _) => {
                assert_eq!((chunk, named), (ChunkId(index), sector));
                gone.insert(sector / unit_sectors % width);
            }
            (Err(MediaError::PowerLost), _) => return gone,
            (Err(error), _) => {
                let Ok(report) = volume.report().await else { return gone };
                let info = report[index as usize];
                let ends = info.state == ChunkState::Closed && info.write_pointer <= sector;
                let refused = matches!(error, MediaError::Rule { .. });
                assert!(
                    refused && sector >= line.promised && ends,
                    "line {index}, sector {sector}: {error}, {line:?}"
                );
            }
        }
    }
    gone
}

/// Whether a part of a line is gone.
async fn reads_fail<M: Media>(volume: &Volume<M>, line: u32, end: u32) -> bool {
    if end == 0 {
        return false;
    }
    let buf = AlignedBuf::zeroed(end as usize * SECTOR);
    matches!(volume.read(ChunkId(line), 0, buf).await.0, Err(MediaError::Unreadable { .. }))
}

/// Where the padding of a line begins: each of its sectors is right, or padding.
async fn before_padding<M: Media>(volume: &Volume<M>, line: u32, life: u64, end: u32) -> u32 {
    if end == 0 {
        return 0;
    }
    let (result, buf) = volume.read(ChunkId(line), 0, AlignedBuf::zeroed(end as usize * SECTOR)).await;
    result.unwrap();
    let right = content(line, life, 0, end);
    let sectors = || buf.chunks(SECTOR).zip(right.chunks(SECTOR));
    let padding = |(found, right): &(&[u8], &[u8])| found != right && found.iter().all(|byte| *byte == 0);
    assert!(sectors().all(|sector| sector.0 == sector.1 || padding(&sector)), "line {line} is wrong");
    sectors().position(|sector| padding(&sector)).map_or(end, |first| first as u32)
}

/// Reads the front of a line and compares: as a whole, and in odd pieces.
async fn check<M: Media>(volume: &Volume<M>, line: u32, life: u64, end: u32) {
    if end == 0 {
        return;
    }
    let read = async |from: u32, to: u32| {
        let buf = AlignedBuf::zeroed((to - from) as usize * SECTOR);
        let (result, buf) = volume.read(ChunkId(line), from, buf).await;
        result.unwrap_or_else(|error| panic!("line {line}, sectors {from}..{to} of {end}: {error}"));
        let right = content(line, life, from, to - from);
        for at in 0..to - from {
            let range = at as usize * SECTOR..(at as usize + 1) * SECTOR;
            assert!(
                buf[range.clone()] == right[range],
                "line {line}, life {life}: sector {} of {end} is wrong",
                from + at
            );
        }
    };
    read(0, end).await;
    let (third, half) = (end / 3, end / 2);
    if third < half {
        read(third, half).await;
    }
    read(end - 1, end).await;
}

/// Writes the right content.
pub(crate) async fn write<M: Media>(
    volume: &Volume<M>,
    line: u32,
    life: u64,
    sector: u32,
    sectors: u32,
    durability: Durability,
) -> Result<(), MediaError> {
    volume.write(ChunkId(line), sector, content(line, life, sector, sectors), durability).await.0
}
