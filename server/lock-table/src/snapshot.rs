//! A table as bytes, taken bit by bit while batches go on.
//!
//! A snapshot is a row of chunks, each with a format byte, a checksum and its number. They hold the
//! header, then the sessions, requests and finished tickets by key, then an end mark. Nothing
//! derived is written. Reading one back is in `restore.rs`.

use prost::Message;

use crate::convert::element_len;
use crate::envelope::{SNAPSHOT_FORMAT, seal};
use crate::records;
use crate::table::{BatchInProgress, LockTable};

/// A chunk is closed when it has this much. The record that closes it may be a large one (64 long
/// names, much metadata: some 100 KB), which keeps a chunk below 1 MiB.
const CHUNK_BYTES: usize = 256 * 1024;

/// A snapshot in progress. The maps know how far it is.
#[derive(Debug)]
pub(crate) struct Snapshot {
    /// For the first chunk.
    header: Option<records::Header>,
    index: u32,
}

impl LockTable {
    /// Begins a snapshot of the table as it is now; ends the one in progress.
    ///
    /// Fails inside a batch, whose half is nobody's state.
    pub fn snapshot_begin(&mut self) -> Result<(), BatchInProgress> {
        if self.in_batch() {
            return Err(BatchInProgress);
        }
        let counts = [self.sessions.len(), self.requests.len(), self.finished.len()];
        let header = records::Header::new(&self.header, counts);
        self.sessions.read_begin();
        self.requests.read_begin();
        self.finished.read_begin();
        self.snapshot = Some(Snapshot { header: Some(header), index: 0 });
        Ok(())
    }

    /// The next chunk, of at most `budget` records and less than 1 MiB; `None` when there is no
    /// more. Whatever the batches and steps in between, all chunks together are the table as it was
    /// at the beginning.
    pub fn snapshot_step(&mut self, budget: usize) -> Option<Vec<u8>> {
        let mut snapshot = self.snapshot.take()?;
        let mut chunk = records::Chunk {
            index: snapshot.index,
            header: snapshot.header.take(),
            ..records::Chunk::default()
        };
        let mut len = 0;
        for _ in 0..budget.max(1) {
            if len >= CHUNK_BYTES {
                break;
            }
            len += if let Some((id, session)) = self.sessions.read_next() {
                push(&mut chunk.sessions, records::Session::new(id, &session))
            } else if let Some((sequence, request)) = self.requests.read_next() {
                push(&mut chunk.requests, records::Request::new(sequence, &request))
            } else if let Some((key, finished)) = self.finished.read_next() {
                push(&mut chunk.finished, records::Finished::new(key, finished))
            } else {
                chunk.is_last = true;
                return Some(seal(SNAPSHOT_FORMAT, &chunk));
            };
        }
        snapshot.index += 1;
        self.snapshot = Some(snapshot);
        Some(seal(SNAPSHOT_FORMAT, &chunk))
    }

    /// Ends a snapshot before its last chunk.
    pub fn snapshot_abort(&mut self) {
        self.snapshot = None;
        self.sessions.read_abort();
        self.requests.read_abort();
        self.finished.read_abort();
    }
}

fn push<R: Message>(records: &mut Vec<R>, record: R) -> usize {
    let len = element_len(&record);
    records.push(record);
    len
}
