//! One simulated disk as the running process sees it, with its faults.

use super::media::{Event, Inode, Media, write};
use rusqlite::ffi;
use std::collections::BTreeMap;
use std::ffi::c_int;
use std::sync::Arc;

/// What happens at a chosen call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// This one call fails. A sync that fails loses what it should have brought to rest.
    Eio,
    /// This one call fails for want of space.
    Enospc,
    /// This call and all after it fail.
    PowerCut,
}

/// A disk: what the process sees, and what a power cut would leave.
///
/// - Every mutating call counts as one in `ops`, also a failed one.
/// - `seen` and `media` get the same changes in the same order.
#[derive(Debug, Default)]
pub struct Disk {
    seen: BTreeMap<Inode, Vec<u8>>,
    names: BTreeMap<String, Inode>,
    inode_next: Inode,
    media: Media,
    trace: Option<Vec<Event>>,
    ops: u64,
    reads: u64,
    fault: Option<(u64, Fault)>,
    read_fault: Option<u64>,
    dead: bool,
}

impl Disk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// The disk of a machine that starts from what a crash left.
    pub fn boot(media: Media) -> Self {
        let media = media.at_boot();
        let inode_next = media.names.values().max().map_or(0, |i| i + 1);
        Self { seen: media.data.clone(), names: media.names.clone(), inode_next, media, ..Self::default() }
    }

    /// Lets the `op`-th mutating call (from 1, counted over the disk's life) fail.
    pub fn fail_at(&mut self, op: u64, fault: Fault) {
        self.fault = Some((op, fault));
    }

    /// Lets the `read`-th read (from 1, counted over the disk's life) fail.
    pub fn fail_read_at(&mut self, read: u64) {
        self.read_fault = Some(read);
    }

    /// From now on every mutating call fails: the power is gone, or the process is.
    pub fn kill(&mut self) {
        self.dead = true;
    }

    /// How many mutating calls there were.
    pub fn ops(&self) -> u64 {
        self.ops
    }

    /// How many reads there were.
    pub fn reads(&self) -> u64 {
        self.reads
    }

    /// Starts to record events.
    pub fn record(&mut self) {
        self.trace = Some(Vec::new());
    }

    /// The events since [`record`](Self::record), which ends.
    pub fn take_trace(&mut self) -> Vec<Event> {
        self.trace.take().unwrap_or_default()
    }

    /// Puts a note of the test into the record.
    pub fn mark(&mut self, note: u64) {
        self.push(Event::Mark(note));
    }

    /// What a power cut would leave now; see [`Media::crash`].
    pub fn crash(&self, seed: u64, keep: u32) -> Media {
        self.media.crash(seed, keep)
    }

    /// What the process sees of a file now.
    pub fn file(&self, name: &str) -> Option<&[u8]> {
        self.names.get(name).and_then(|i| self.seen.get(i)).map(Vec::as_slice)
    }

    pub(super) fn lookup(&self, name: &str) -> Option<Inode> {
        self.names.get(name).copied()
    }

    pub(super) fn create(&mut self, name: &str) -> Result<Inode, c_int> {
        self.op(ffi::SQLITE_CANTOPEN)?;
        let inode = self.inode_next;
        self.inode_next += 1;
        self.names.insert(name.to_owned(), inode);
        self.seen.insert(inode, Vec::new());
        self.push(Event::Create(name.to_owned(), inode));
        Ok(inode)
    }

    pub(super) fn delete(&mut self, name: &str, sync_folder: bool) -> Result<(), c_int> {
        self.op(ffi::SQLITE_IOERR_DELETE)?;
        if self.names.remove(name).is_none() {
            return Err(ffi::SQLITE_IOERR_DELETE_NOENT);
        }
        self.push(Event::Delete(name.to_owned()));
        if sync_folder { self.sync_folder() } else { Ok(()) }
    }

    /// Fills `out` from `offset`; says whether all of it was there. The rest is zeros.
    pub(super) fn read(&mut self, inode: Inode, offset: usize, out: &mut [u8]) -> Result<bool, c_int> {
        self.reads += 1;
        if self.read_fault == Some(self.reads) {
            return Err(ffi::SQLITE_IOERR_READ);
        }
        let file = self.seen.get(&inode).map(Vec::as_slice).unwrap_or_default();
        let there = file.get(offset..).unwrap_or_default();
        let len = there.len().min(out.len());
        let (head, tail) = out.split_at_mut(len);
        head.copy_from_slice(&there[..len]);
        tail.fill(0);
        Ok(tail.is_empty())
    }

    pub(super) fn write(&mut self, inode: Inode, offset: usize, bytes: &[u8]) -> Result<(), c_int> {
        self.op(ffi::SQLITE_IOERR_WRITE)?;
        write(self.seen.entry(inode).or_default(), offset, bytes);
        self.push(Event::Write(inode, offset, Arc::from(bytes)));
        Ok(())
    }

    pub(super) fn truncate(&mut self, inode: Inode, len: usize) -> Result<(), c_int> {
        self.op(ffi::SQLITE_IOERR_TRUNCATE)?;
        self.seen.entry(inode).or_default().resize(len, 0);
        self.push(Event::Truncate(inode, len));
        Ok(())
    }

    pub(super) fn sync(&mut self, inode: Inode) -> Result<(), c_int> {
        let synced = self.op(ffi::SQLITE_IOERR_FSYNC);
        self.push(if synced.is_ok() { Event::Sync(inode) } else { Event::SyncFailed(inode, self.ops) });
        synced
    }

    pub(super) fn sync_folder(&mut self) -> Result<(), c_int> {
        self.op(ffi::SQLITE_IOERR_DIR_FSYNC)?;
        self.push(Event::DirSync);
        Ok(())
    }

    pub(super) fn len(&self, inode: Inode) -> usize {
        self.seen.get(&inode).map_or(0, Vec::len)
    }

    fn push(&mut self, event: Event) {
        if let Some(trace) = &mut self.trace {
            trace.push(event.clone());
        }
        self.media.push(event);
    }

    /// Counts a mutating call and lets it fail where a fault was ordered.
    fn op(&mut self, failure: c_int) -> Result<(), c_int> {
        if self.dead {
            return Err(failure);
        }
        self.ops += 1;
        match self.fault {
            Some((at, fault)) if at == self.ops => match fault {
                Fault::Eio => Err(failure),
                Fault::Enospc => Err(ffi::SQLITE_FULL),
                Fault::PowerCut => {
                    self.dead = true;
                    Err(failure)
                }
            },
            _ => Ok(()),
        }
    }
}
