//! Reading: from the tail, from the cache, or with one direct read of the sectors that hold the record.
//!
//! Invariants: what to read is decided at the call, before the first await; what was read counts only if checksum,
//! group, incarnation, index and term are those of the record that was asked for (rule 10). A read pins its segment: it is
//! not written again while the read is under way, so the place stays good.
//!
//! Payloads stay as they are stored, in the tail and in the cache too; a compressed value is decompressed for each reader, at the
//! end. So memory holds more of them, and a scan never has more raw values than it returns.

use std::ops::Bound;

use bytes::Bytes;
use terrane_ocssd::{AlignedBuf, ChunkId, Media, MediaError};

use crate::core::Core;
use crate::entry::{ENTRY_OPS, Entry, GroupId, Value};
use crate::error::ReadError;
use crate::group::Group;
use crate::index::{Located, Place};
use crate::lineage;
use crate::op::{self, Said, Stored};
use crate::pipeline::Pipeline;
use crate::record::{self, RecordHeader, RecordKind};
use crate::segment::Stamp;
use crate::store::{Shared, Store};

/// Reads of one call that run at once.
const READS_AT_ONCE: usize = 16;

/// What a key's look-up found without waiting.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lookup {
    /// The key has no value.
    Absent,
    /// Its value was in memory.
    Ready(Value),
    /// Its value must be read: [`Store::get`].
    OnMedia {
        /// Bytes of the record, about what the read will hold in memory. A compressed value comes on top when it is ready.
        bytes: u32,
    },
}

/// Rows of a scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    /// Key and value, in ascending order of keys.
    pub rows: Vec<(Bytes, Value)>,
    /// A limit ended the scan: there are more keys after the last row.
    pub more: bool,
}

/// A record that must be read, and all that identifies it.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    slot: u32,
    group: GroupId,
    incarnation: u32,
    index: u64,
    term: u64,
    place: Place,
    stamp: Stamp,
}

/// What is wanted (a value, or the payload of an entry), or where to find it.
enum Source<T> {
    Memory(T),
    Medium(Wanted),
}

/// A source that stays good.
enum Held<'a, M: Media, T> {
    Memory(T),
    Medium(Pinned<'a, M>),
}

impl<'a, M: Media, T> Held<'a, M, T> {
    fn new(shared: &'a Shared<M>, core: &mut Core, source: Source<T>) -> Self {
        match source {
            Source::Memory(found) => Held::Memory(found),
            Source::Medium(wanted) => Held::Medium(Pinned::new(shared, core, wanted)),
        }
    }
}

/// A record that is to be read, in a segment that is not written again before.
struct Pinned<'a, M: Media> {
    shared: &'a Shared<M>,
    wanted: Wanted,
}

impl<'a, M: Media> Pinned<'a, M> {
    fn new(shared: &'a Shared<M>, core: &mut Core, wanted: Wanted) -> Self {
        core.log.pin(wanted.place.chunk);
        Self { shared, wanted }
    }
}

impl<M: Media> Drop for Pinned<'_, M> {
    fn drop(&mut self) {
        let recycled = self.shared.core.borrow_mut().log.unpin(self.wanted.place.chunk);
        if recycled {
            self.shared.work.wake_all();
        }
    }
}

/// A value as it is stored. It is a part of its payload, which it keeps in memory.
struct Kept {
    stored: Bytes,
    /// Bytes of the raw value, if what is stored is compressed.
    compressed_of: Option<u32>,
    version: u64,
    expires_unix_ms: Option<u64>,
}

impl Kept {
    fn raw_bytes(&self) -> usize {
        self.compressed_of.map_or(self.stored.len(), |raw_bytes| raw_bytes as usize)
    }
}

/// A row of a scan before it is read: key and value.
type ImageRow<'a, M> = (Bytes, Held<'a, M, Kept>);

impl Core {
    fn wanted(&self, slot: u32, index: u64, place: Place) -> Wanted {
        let group = &self.groups[slot as usize];
        let term = lineage::term_at(&group.runs, index).expect("the lineage goes back to the first entry");
        Wanted {
            slot,
            group: group.id,
            incarnation: group.incarnation,
            index,
            term,
            place,
            stamp: self.log.segment(place.chunk).stamp,
        }
    }

    /// The value of a live version, from memory if it is there.
    fn value_source(&mut self, slot: u32, key: &[u8], located: Located) -> Source<Kept> {
        let group = &self.groups[slot as usize];
        if let Some(entry) = group.tail_entry(located.version) {
            let value = value_in(&entry.payload, key, located.version);
            return Source::Memory(
                value.expect("a live version puts its key, and appended payloads are sound"),
            );
        }
        // Of an entry of several ops, only some may have been read: then it says nothing of the key.
        let cached =
            self.cache.get((slot, located.version), |payload| value_in(payload, key, located.version));
        if let Some(value) = cached {
            return Source::Memory(value);
        }
        assert!(!located.place.is_pending(), "what is not placed is in the tail");
        Source::Medium(self.wanted(slot, located.version, located.place))
    }

    fn entry_source(&self, slot: u32, index: u64) -> (u64, u8, Source<Bytes>) {
        let group = &self.groups[slot as usize];
        let term = group.term_at(index).expect("the index is in the log");
        if let Some(entry) = group.tail_entry(index) {
            return (term, entry.kind, Source::Memory(entry.payload.clone()));
        }
        let place = group.place(index).expect("the index is in the log");
        (term, 0, Source::Medium(self.wanted(slot, index, place)))
    }
}

/// What the payload says of the key at `version`.
fn value_in(payload: &Bytes, key: &[u8], version: u64) -> Option<Kept> {
    match op::last_said(payload, key).ok()?? {
        Said::Put { value, expires_unix_ms } => {
            let (stored, compressed_of) = match value {
                Stored::Raw(value) => (value, None),
                Stored::Compressed { stored, raw_bytes } => (stored, Some(raw_bytes)),
            };
            Some(Kept { stored: payload.slice_ref(stored), compressed_of, version, expires_unix_ms })
        }
        Said::Deleted => None,
    }
}

impl<M: Media> Shared<M> {
    /// The value as its reader gets it.
    fn raw(&self, group: GroupId, kept: Kept) -> Result<Value, ReadError> {
        let Kept { stored, compressed_of, version, expires_unix_ms } = kept;
        let value = match compressed_of {
            None => stored,
            Some(raw_bytes) => {
                let raw = self.decompressor.borrow_mut().decompress(&stored, raw_bytes);
                raw.map_err(|reason| ReadError::Compressed { group, index: version, reason })?.into()
            }
        };
        Ok(Value { value, version, expires_unix_ms })
    }
}

impl<M: Media> Store<M> {
    /// The value of a key if it can be had without reading the medium. A group that does not exist has no keys. A value that
    /// cannot be decompressed is not to be had: [`Store::get`] says why.
    pub fn try_get(&self, group: GroupId, key: &[u8]) -> Lookup {
        let mut core = self.shared.core.borrow_mut();
        let Some(slot) = core.slot(group) else { return Lookup::Absent };
        let Some(located) = core.groups[slot as usize].index.get(key) else { return Lookup::Absent };
        let kept = match core.value_source(slot, key, located) {
            Source::Memory(kept) => kept,
            Source::Medium(wanted) => return Lookup::OnMedia { bytes: wanted.place.length },
        };
        drop(core);
        let stored_bytes = kept.stored.len() as u32;
        match self.shared.raw(group, kept) {
            Ok(value) => Lookup::Ready(value),
            Err(_) => Lookup::OnMedia { bytes: stored_bytes },
        }
    }

    /// The value that the key has in the applied index at the time of the call.
    pub async fn get(&self, group: GroupId, key: &[u8]) -> Result<Option<Value>, ReadError> {
        let pinned = {
            let mut core = self.shared.core.borrow_mut();
            let slot = core.slot(group).ok_or(ReadError::UnknownGroup(group))?;
            let Some(located) = core.groups[slot as usize].index.get(key) else { return Ok(None) };
            match core.value_source(slot, key, located) {
                Source::Memory(kept) => {
                    drop(core);
                    return self.shared.raw(group, kept).map(Some);
                }
                Source::Medium(wanted) => Pinned::new(&self.shared, &mut core, wanted),
            }
        };
        // On the heap, so that the future of a get is small: most are answered before, and each is moved at least once.
        let kept = Box::pin(read_value(pinned, key)).await?;
        self.shared.raw(group, kept).map(Some)
    }

    /// Live keys between the bounds in ascending order, as they are at the time of the call: at most `count_max`
    /// rows, and rows until `bytes_max` bytes of keys and raw values are reached (at least one row, if there is one). What
    /// must be read counts as the payload it is in before. Reads run concurrently, a bounded number at a time.
    pub async fn scan(
        &self,
        group: GroupId,
        start: Bound<&[u8]>,
        end: Bound<&[u8]>,
        count_max: usize,
        bytes_max: usize,
    ) -> Result<Scan, ReadError> {
        let (image, more) = self.scan_image(group, start, end, count_max, bytes_max)?;
        let mut rows = Vec::with_capacity(image.len());
        let mut image = image.into_iter();
        let mut pipeline = Pipeline::new();
        let mut bytes = 0;
        loop {
            while pipeline.len() < READS_AT_ONCE
                && let Some((key, source)) = image.next()
            {
                pipeline.push(async move {
                    let kept = match source {
                        Held::Memory(kept) => kept,
                        Held::Medium(pinned) => read_value(pinned, &key).await?,
                    };
                    Ok::<_, ReadError>((key, kept))
                });
            }
            let Some(read) = pipeline.next().await else { return Ok(Scan { rows, more }) };
            if bytes >= bytes_max && !rows.is_empty() {
                return Ok(Scan { rows, more: true });
            }
            let (key, kept) = read?;
            let value = self.shared.raw(group, kept)?;
            bytes += key.len() + value.value.len();
            rows.push((key, value));
        }
    }

    /// The keys of a scan, each with its value or where that is.
    fn scan_image(
        &self,
        group: GroupId,
        start: Bound<&[u8]>,
        end: Bound<&[u8]>,
        count_max: usize,
        bytes_max: usize,
    ) -> Result<(Vec<ImageRow<'_, M>>, bool), ReadError> {
        let mut core = self.shared.core.borrow_mut();
        let slot = core.slot(group).ok_or(ReadError::UnknownGroup(group))?;
        let mut found = Vec::new();
        let mut more = false;
        // No more keys than the rows below may take; a payload that is not on the medium yet counts by its key alone.
        let mut bytes_least = 0;
        let mut range = core.groups[slot as usize].index.range(start, end);
        while let Some((key, located)) = range.next_key() {
            if found.len() == count_max || (bytes_least >= bytes_max && !found.is_empty()) {
                more = true;
                break;
            }
            bytes_least += match located.place.is_pending() {
                true => key.len(),
                false => located.place.length as usize - record::HEADER_BYTES,
            };
            found.push((Bytes::copy_from_slice(key), located));
        }
        let mut image = Vec::with_capacity(found.len());
        let mut bytes = 0;
        for (key, located) in found {
            if bytes >= bytes_max && !image.is_empty() {
                return Ok((image, true));
            }
            let source = core.value_source(slot, &key, located);
            bytes += match &source {
                Source::Memory(kept) => key.len() + kept.raw_bytes(),
                Source::Medium(wanted) => wanted.payload_bytes() as usize,
            };
            image.push((key, Held::new(&self.shared, &mut core, source)));
        }
        Ok((image, more))
    }

    /// Entries from `from` on if all of them are in memory: at most `count_max`, and until `bytes_max` bytes of
    /// payload are reached. `None` if one of them would have to be read, or `from` is outside the log.
    pub fn try_entries(
        &self,
        group: GroupId,
        from: u64,
        count_max: usize,
        bytes_max: u64,
    ) -> Option<Vec<Entry>> {
        let core = self.shared.core.borrow();
        let group = core.group(group)?;
        let range = entry_range(group, from, count_max)?;
        let mut entries = Vec::with_capacity((range.end - range.start).min(1024) as usize);
        let mut bytes = 0;
        for index in range {
            if bytes >= bytes_max && !entries.is_empty() {
                break;
            }
            let entry = group.tail_entry(index)?;
            bytes += entry.payload.len() as u64;
            entries.push(Entry {
                term: group.term_at(index)?,
                kind: entry.kind,
                payload: entry.payload.clone(),
            });
        }
        Some(entries)
    }

    /// Entries from `from` on as the log holds them at the time of the call, read from the medium where they are not
    /// in memory: at most `count_max`, and until `bytes_max` bytes of payload are reached, but at least one. The
    /// log may be truncated while this reads: the caller checks the terms before it uses them.
    pub async fn entries(
        &self,
        group: GroupId,
        from: u64,
        count_max: usize,
        bytes_max: u64,
    ) -> Result<Vec<Entry>, ReadError> {
        let mut sources = {
            let mut core = self.shared.core.borrow_mut();
            let slot = core.slot(group).ok_or(ReadError::UnknownGroup(group))?;
            let at = &core.groups[slot as usize];
            let (first, last) = (at.first_index, at.last_index);
            let range = entry_range(at, from, count_max);
            let range = range.ok_or(ReadError::OutOfLog { index: from, first, last })?;
            let mut sources = Vec::new();
            let mut bytes = 0;
            for index in range {
                if bytes >= bytes_max && !sources.is_empty() {
                    break;
                }
                let (term, kind, source) = core.entry_source(slot, index);
                bytes += match &source {
                    Source::Memory(payload) => payload.len() as u64,
                    Source::Medium(wanted) => u64::from(wanted.payload_bytes()),
                };
                sources.push((term, kind, Held::new(&self.shared, &mut core, source)));
            }
            sources.into_iter()
        };
        let mut entries = Vec::with_capacity(sources.len());
        let mut pipeline = Pipeline::new();
        loop {
            while pipeline.len() < READS_AT_ONCE
                && let Some((term, kind, source)) = sources.next()
            {
                pipeline.push(async move {
                    let (kind, payload) = match source {
                        Held::Memory(payload) => (kind, payload),
                        Held::Medium(pinned) => read_verified(&pinned, Wanted::entry_in).await?,
                    };
                    Ok::<_, ReadError>(Entry { term, kind, payload })
                });
            }
            match pipeline.next().await {
                Some(entry) => entries.push(entry?),
                None => return Ok(entries),
            }
        }
    }
}

fn entry_range(group: &Group, from: u64, count_max: usize) -> Option<std::ops::Range<u64>> {
    if from < group.first_index || from > group.last_index {
        return None;
    }
    let end = from.saturating_add(count_max.max(1) as u64).min(group.last_index + 1);
    Some(from..end)
}

async fn read_value<M: Media>(pinned: Pinned<'_, M>, key: &[u8]) -> Result<Kept, ReadError> {
    let payload = read_verified(&pinned, Wanted::value_in).await?;
    let wanted = &pinned.wanted;
    // The record is the one that was asked for; that it says nothing of the key means that the index is wrong
    // about this device's content, as seen after a recovery. It is an error, never another key's value.
    let kept = value_in(&payload, key, wanted.index).ok_or_else(|| wanted.damaged())?;
    let mut core = pinned.shared.core.borrow_mut();
    core.counters.cache_misses += 1;
    core.cache.insert((wanted.slot, wanted.index), payload);
    Ok(kept)
}

impl Wanted {
    fn payload_bytes(&self) -> u32 {
        self.place.length - record::HEADER_BYTES as u32
    }

    fn damaged(&self) -> ReadError {
        ReadError::Damaged {
            group: self.group,
            index: self.index,
            chunk: ChunkId(self.place.chunk),
            offset: self.place.offset,
        }
    }

    /// Whether a record is the one that is wanted, or a part of it. What cleaning moved has no term any more.
    fn is(&self, header: &RecordHeader) -> bool {
        let kind = match header.kind {
            RecordKind::Entry => header.term == self.term,
            RecordKind::Settled => true,
            RecordKind::State | RecordKind::Tombstone => false,
        };
        kind && header.group == self.group
            && header.incarnation == self.incarnation
            && header.index == self.index
    }

    /// The payload of a record that holds one put.
    fn value_in(&self, bytes: &[u8]) -> Option<Bytes> {
        let record = record::decode(bytes, self.stamp)?;
        let ops = record.header.kind == RecordKind::Settled || record.header.entry_kind == ENTRY_OPS;
        (self.is(&record.header) && ops).then(|| Bytes::copy_from_slice(record.payload))
    }

    /// Kind and payload of an entry, put together from its records.
    fn entry_in(&self, bytes: &[u8]) -> Option<(u8, Bytes)> {
        record::decode_entry(bytes, self.stamp, |header| self.is(header))
    }
}

/// What `take` finds in the bytes of a record. A failure or a mismatch is tried once more.
async fn read_verified<M: Media, T>(
    pinned: &Pinned<'_, M>,
    take: impl Fn(&Wanted, &[u8]) -> Option<T>,
) -> Result<T, ReadError> {
    let Pinned { shared, wanted } = pinned;
    let layout = shared.core.borrow().layout;
    let once = async || {
        let Place { chunk, offset, length } = wanted.place;
        let first = layout.sector_of(offset);
        let end = (offset + length).div_ceil(layout.sector_bytes);
        let buf = AlignedBuf::zeroed(((end - first) * layout.sector_bytes) as usize);
        let (result, buf) = shared.media.read(ChunkId(chunk), first, buf).await;
        result?;
        let at = (offset - first * layout.sector_bytes) as usize;
        Ok::<_, MediaError>(take(wanted, &buf[at..at + length as usize]))
    };
    match once().await {
        Ok(Some(found)) => Ok(found),
        Err(MediaError::PowerLost) => Err(MediaError::PowerLost.into()),
        _ => once().await?.ok_or_else(|| wanted.damaged()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Options;
    use crate::slice::SliceId;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};
    use terrane_ocssd::{Geometry, SimMedia, SimOptions};

    const GROUP: GroupId = GroupId(1);
    const OTHER: GroupId = GroupId(2);

    /// Every operation of the medium completes at once.
    fn now<T>(future: impl Future<Output = T>) -> T {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(out) => out,
            Poll::Pending => panic!("the medium completes at once"),
        }
    }

    /// Two groups with two durable entries each, nothing of it in memory.
    fn store() -> Store<SimMedia> {
        let geometry = Geometry {
            groups: 1,
            parallel_units: 1,
            chunks: 8,
            chunk_sectors: 32,
            sector_bytes: 512,
            ws_min: 1,
            ws_opt: 1,
            mw_cunits: 0,
            max_open: 0,
        };
        let media = SimMedia::new(geometry, SimOptions::default());
        let slice = SliceId { cluster: 1, node: 1, shard: 1 };
        now(Store::format(&media, slice)).unwrap();
        let (store, _) = now(Store::open(media.clone(), slice, Options::default())).unwrap();
        for (group, value) in [(GROUP, b"mine"), (OTHER, b"else")] {
            drop(store.create_group(group, Bytes::new()).unwrap());
            let put =
                |key: &[u8]| Entry { term: 1, kind: ENTRY_OPS, payload: op::encode_put(key, value, None) };
            drop(store.append(group, 1, vec![put(b"k"), put(b"l")]).unwrap());
            store.apply(group, 2).unwrap();
        }
        store.close();
        now(store.run_flusher()).unwrap();
        now(Store::open(media, slice, Options::default())).unwrap().0
    }

    /// Without rule 10 (only the checksum is verified): the value of another key, version or group is returned.
    #[test]
    fn rule_10_a_place_that_holds_another_record_is_an_error() {
        let store = store();
        let place = |group, key: &[u8]| {
            store.shared.core.borrow().group(group).unwrap().index.get(key).unwrap().place
        };
        assert_eq!(&now(store.get(GROUP, b"l")).unwrap().unwrap().value[..], b"mine");
        for wrong in [place(GROUP, b"l"), place(OTHER, b"k")] {
            let mut core = store.shared.core.borrow_mut();
            let slot = core.slot(GROUP).unwrap() as usize;
            core.groups[slot].index.repoint(b"k", 1, wrong);
            drop(core);
            let read = now(store.get(GROUP, b"k"));
            assert!(matches!(read, Err(ReadError::Damaged { group: GROUP, index: 1, .. })), "{read:?}");
        }
    }

    #[test]
    fn rule_10_a_record_of_another_life_of_the_group_or_chunk_is_an_error() {
        let store = store();
        let mut wanted = {
            let core = store.shared.core.borrow();
            let slot = core.slot(GROUP).unwrap();
            let place = core.groups[slot as usize].index.get(b"k").unwrap().place;
            core.wanted(slot, 1, place)
        };
        let read = |wanted: Wanted| {
            let pinned = Pinned::new(&store.shared, &mut store.shared.core.borrow_mut(), wanted);
            now(read_verified(&pinned, Wanted::value_in))
        };
        assert!(read(wanted).is_ok());
        wanted.incarnation += 1;
        assert!(matches!(read(wanted), Err(ReadError::Damaged { .. })));
        wanted.incarnation -= 1;
        wanted.term += 1;
        assert!(matches!(read(wanted), Err(ReadError::Damaged { .. })));
        wanted.term -= 1;
        let next = crate::segment::Generation(wanted.stamp.generation.0 + 1);
        wanted.stamp = Stamp::new(store.shared.slice, next);
        assert!(matches!(read(wanted), Err(ReadError::Damaged { .. })));
    }
}
