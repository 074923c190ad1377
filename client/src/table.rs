//! A table's operations.

use crate::client::{Shared, kind};
use crate::error::{DeleteError, Failure, GetError, PutError, ScanError};
use crate::routing::{Operation, OperationKind};
use crate::scan::{KeyRange, Scanner};
use crate::wire::{self, Condition, Consistency, ErrorReply, Response, Row, TableId, VALUE_BYTES_MAX};
use bytes::Bytes;
use std::sync::Arc;

/// Values below this are copied out of the receive buffer, so that one that is kept does not keep 64 KiB alive.
const COPIED_BYTES_MAX: usize = 16 << 10;

/// A value and its version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// The value.
    pub value: Bytes,
    /// Its version: rises with every write of the key; what [`Condition::Version`] compares.
    pub version: u64,
}

/// One table of a cluster. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Table {
    shared: Arc<Shared>,
    id: TableId,
    consistency: Consistency,
}

impl Table {
    pub(crate) fn new(shared: Arc<Shared>, id: TableId, consistency: Consistency) -> Table {
        Table { shared, id, consistency }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The table's number.
    pub fn id(&self) -> TableId {
        self.id
    }

    /// The same table, read with another consistency. Servers that do not offer it refuse by name. Whatever it is,
    /// this client asks the partition's leader first.
    pub fn with_consistency(mut self, consistency: Consistency) -> Table {
        self.consistency = consistency;
        self
    }

    /// Reads a key. `None`: it does not exist.
    ///
    /// # Errors
    /// See [`GetError`].
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Value>, GetError> {
        let key = key.as_ref();
        Failure::key(key)?;
        match self.run(key, OperationKind::Read, |head, out| wire::encode_get(head, key, out)).await {
            Ok(Response::Value { version, value }) => Ok(Some(Value { value: detached(value), version })),
            Ok(other) => Err(Failure::unexpected(kind(&other)).into()),
            Err(Failure::Refused(ErrorReply::NotFound)) => Ok(None),
            Err(failure) => Err(failure.into()),
        }
    }

    /// Writes a key. Resolves with its new version once the write is durable on a majority of its replicas.
    ///
    /// A write whose connection breaks before the answer is sent again: it may be done twice (with two versions), and
    /// a write of another client that came in between is overwritten. [`Table::put_if`] never does this. A write that
    /// a server has received and stays silent about is not sent again: it gives [`PutError::OutcomeUnknown`].
    ///
    /// # Errors
    /// See [`PutError`]. Dropping the future, too, leaves it open whether the value was written.
    pub async fn put(&self, key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Result<u64, PutError> {
        self.put_if(key, value, Condition::None).await
    }

    /// Writes a key if `condition` holds; the check and the write are one atomic step.
    ///
    /// Unless the condition is [`Condition::None`], the request is not repeated once it may have been received:
    /// a lost answer gives [`PutError::OutcomeUnknown`].
    ///
    /// # Errors
    /// [`PutError::ConditionFailed`] with the key's current version if it does not hold; else see [`PutError`].
    pub async fn put_if(
        &self,
        key: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        condition: Condition,
    ) -> Result<u64, PutError> {
        let (key, value) = (key.as_ref(), value.as_ref());
        Failure::key(key)?;
        check(condition)?;
        if value.len() > VALUE_BYTES_MAX as usize {
            // No server takes it; the limit of this one is lower still, but only it knows.
            return Err(PutError::TooLarge { limit: VALUE_BYTES_MAX });
        }
        let encode = |head: &wire::RequestHead, out: &mut Vec<u8>| {
            wire::encode_put(head, key, value, condition, 0, out);
        };
        match self.run(key, write_kind(condition), encode).await {
            Ok(Response::Written { version }) => Ok(version),
            Ok(other) => Err(Failure::unexpected(kind(&other)).into()),
            Err(failure) => Err(failure.into()),
        }
    }

    /// Deletes a key. Resolves with the deletion's version once it is durable on a majority of its replicas;
    /// `None`: there was nothing to delete. (A server may as well record the deletion of a key that does not exist,
    /// and give its version; to know, delete with [`Condition::Present`].)
    ///
    /// Like a put, a delete whose connection breaks is sent again: it may then find its own work done and give
    /// `None`.
    ///
    /// # Errors
    /// See [`DeleteError`].
    pub async fn delete(&self, key: impl AsRef<[u8]>) -> Result<Option<u64>, DeleteError> {
        self.delete_if(key, Condition::None).await
    }

    /// Deletes a key if `condition` holds; the check and the deletion are one atomic step. Never repeated once it
    /// may have been received, unless the condition is [`Condition::None`].
    ///
    /// # Errors
    /// [`DeleteError::ConditionFailed`] with the key's current version if it does not hold; else see
    /// [`DeleteError`].
    pub async fn delete_if(
        &self,
        key: impl AsRef<[u8]>,
        condition: Condition,
    ) -> Result<Option<u64>, DeleteError> {
        let key = key.as_ref();
        Failure::key(key)?;
        check(condition)?;
        let encode =
            |head: &wire::RequestHead, out: &mut Vec<u8>| wire::encode_delete(head, key, condition, out);
        match self.run(key, write_kind(condition), encode).await {
            Ok(Response::Written { version }) => Ok(Some(version)),
            Ok(other) => Err(Failure::unexpected(kind(&other)).into()),
            Err(Failure::Refused(ErrorReply::NotFound)) => Ok(None),
            Err(failure) => Err(failure.into()),
        }
    }

    /// The first `limit` rows of `range`, in ascending order of keys, merged from all partitions.
    ///
    /// Each partition's part is read in pages at different moments: a scan is not a snapshot of the table.
    ///
    /// # Errors
    /// See [`ScanError`].
    pub async fn scan(&self, range: impl Into<KeyRange>, limit: usize) -> Result<Vec<Row>, ScanError> {
        let mut scanner = self.scanner(range).rows_wanted(limit);
        let mut rows = Vec::new();
        while rows.len() < limit {
            match scanner.next().await? {
                Some(row) => rows.push(row),
                None => break,
            }
        }
        Ok(rows)
    }

    /// Walks `range` in ascending order of keys, a page of each partition in memory at a time.
    pub fn scanner(&self, range: impl Into<KeyRange>) -> Scanner {
        Scanner::new(self.shared.clone(), self.id, self.consistency, range.into())
    }

    async fn run(
        &self,
        key: &[u8],
        kind: OperationKind,
        encode: impl Fn(&wire::RequestHead, &mut Vec<u8>),
    ) -> Result<Response, Failure> {
        let operation = Operation::new(self.id, wire::partition_hash(key), kind);
        self.shared.run(operation, self.consistency, encode).await
    }
}

fn write_kind(condition: Condition) -> OperationKind {
    match condition {
        Condition::None => OperationKind::Write,
        _ => OperationKind::ConditionalWrite,
    }
}

/// Versions start at 1, so a condition on version 0 is a mistake the server would refuse as well.
fn check(condition: Condition) -> Result<(), Failure> {
    if condition == Condition::Version(0) {
        let why = "version 0 is no key's version: use Condition::Absent".to_owned();
        return Err(Failure::Refused(ErrorReply::Malformed { why }));
    }
    Ok(())
}

/// A value that may be kept without keeping the buffer it came in.
pub(crate) fn detached(value: Bytes) -> Bytes {
    if value.len() < COPIED_BYTES_MAX { Bytes::copy_from_slice(&value) } else { value }
}
