//! Who we are among the nodes of the cluster, and whose word we take.
//!
//! Every peer message carries an envelope: cluster, sender, the start of the sender's data directory, target.
//! [`PeerGuard`] refuses what was not meant for this node and what comes from a disk that was rolled back or cloned. A
//! message that is refused is never counted as a vote or an acknowledgement. Nothing here decides by address: a lagging
//! node does not know the newest members, so the membership is no filter either.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use lock_table::planted;
use raftlock_proto::peer::{Envelope, StaleStorage};
use tokio::sync::watch;

use crate::store::{Store, StoreError};

/// The random name of a cluster, made once by the node that bootstraps it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub [u8; 16]);

impl ClusterId {
    /// Reads one off the wire.
    pub fn from_slice(bytes: &[u8]) -> Option<ClusterId> {
        bytes.try_into().ok().map(ClusterId)
    }

    /// As the wire carries it.
    pub fn to_bytes(self) -> Bytes {
        Bytes::copy_from_slice(&self.0)
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One start of a data directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Boot {
    /// How often the directory has been started, this time included. On disk before anything is said.
    pub count: u64,
    /// Drawn at this start and never stored. A node that starts again counts one more, so it needs no memory of it; two
    /// clones of one disk count the same and differ here.
    pub nonce: u64,
}

/// This node, as its peer messages name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster that it belongs to.
    pub cluster: ClusterId,
    /// Its storage id, which is its node id.
    pub me: u64,
    /// This start of its data directory.
    pub boot: Boot,
}

impl Identity {
    /// The envelope of a message from this node to `target`.
    pub fn envelope(&self, target: u64) -> Option<Envelope> {
        Some(Envelope {
            cluster_id: self.cluster.to_bytes(),
            sender: self.me,
            sender_boot: self.boot.count,
            sender_nonce: self.boot.nonce,
            target,
        })
    }
}

/// Why a peer's message was refused.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refusal {
    /// No envelope, or one that cannot be read.
    #[error("the message names no cluster, sender and target")]
    NoEnvelope,
    /// A message of another cluster.
    #[error("the message is of cluster {theirs}, and this node belongs to cluster {ours}")]
    WrongCluster {
        /// What the message says.
        theirs: String,
        /// What we are.
        ours: ClusterId,
    },
    /// A message for another node: an address was given to a new node, or two were swapped.
    #[error("the message is for node {meant}, and this is node {me}: check the peer addresses")]
    WrongNode {
        /// Whom the message names.
        meant: u64,
        /// Who we are.
        me: u64,
    },
    /// A reply from another node than the one asked.
    #[error("node {asked} was asked, and node {answered} answered")]
    WrongSender {
        /// Whom we asked.
        asked: u64,
        /// Who answered.
        answered: u64,
    },
    /// The sender's disk is older than one that we have seen: it was restored from a copy.
    #[error(
        "node {sender} shows boot {}, but boot {} was seen before: its data directory was rolled back. Empty it and \
         let the node join anew", shown.count, seen.count
    )]
    RolledBack {
        /// Who sent it.
        sender: u64,
        /// The start that it shows.
        shown: Boot,
        /// The latest that we have seen.
        seen: Boot,
    },
    /// Two nodes run on copies of one disk.
    #[error(
        "node {sender} shows boot {}, and another node showed the same one: one of the two runs on a copy of the \
         other's data directory. Empty the copy and let that node join anew", shown.count
    )]
    Cloned {
        /// Who sent it.
        sender: u64,
        /// The start that it shows.
        shown: Boot,
        /// The one that we have seen.
        seen: Boot,
    },
    /// A boot counter that no data directory can have reached.
    #[error("node {sender} shows boot {count}, which is absurd")]
    AbsurdBoot {
        /// Who sent it.
        sender: u64,
        /// What it shows.
        count: u64,
    },
    /// What was seen could not be written down.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// No boot counter above this is believed: one that is would lock its node out for good. A start a second reaches it
/// in 136 years.
const BOOT_COUNT_MAX: u64 = 1 << 32;

/// Senders whose starts are remembered. A cluster that replaces a node every day fills it in three years; then the
/// ones with the smallest ids, which are random, are forgotten.
const SENDERS_MAX: usize = 1_024;

/// Senders whose refusal was logged; more than a cluster has nodes, and then the log stays silent.
const ALARMED_MAX: usize = 64;

/// The name under which the latest starts seen are kept.
const PEER_BOOTS: &str = "peer_boots";

/// The latest start seen of each sender.
type Boots = BTreeMap<u64, Boot>;

/// Checks envelopes and remembers the latest start of each sender's data directory.
///
/// - A message counts only after the start that it shows is on disk here, so that an older copy is known for what it is
///   even after a restart of ours. That is one write for each start of a peer, and none for a message.
/// - Of two clones the first is believed.
#[derive(Debug)]
pub struct PeerGuard {
    identity: Identity,
    store: Store,
    boots: Mutex<Boots>,
    /// Held while a start is written down.
    writing: tokio::sync::Mutex<()>,
    alarmed: Mutex<BTreeSet<u64>>,
    stale: watch::Sender<Option<String>>,
}

impl PeerGuard {
    /// A guard that knows what `store` remembers.
    pub fn open(identity: Identity, store: Store) -> Self {
        let boots = store.value(PEER_BOOTS).map(|bytes| boots_from_bytes(&bytes)).unwrap_or_default();
        let (writing, alarmed) = Default::default();
        PeerGuard {
            identity,
            store,
            boots: Mutex::new(boots),
            writing,
            alarmed,
            stale: watch::Sender::new(None),
        }
    }

    /// Who we are.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Checks a request. Cancel safe.
    pub async fn check_request(&self, envelope: Option<&Envelope>) -> Result<(), Refusal> {
        let checked = async {
            let envelope = self.check_cluster_and_target(envelope)?;
            self.check_boot(envelope).await
        };
        checked.await.inspect_err(|refusal| self.alarm(envelope, refusal))
    }

    /// Checks the reply of `asked`. Cancel safe.
    pub async fn check_reply(&self, asked: u64, envelope: Option<&Envelope>) -> Result<(), Refusal> {
        let checked = async {
            let envelope = self.check_cluster_and_target(envelope)?;
            if envelope.sender != asked && !planted::is("identity-unchecked") {
                return Err(Refusal::WrongSender { asked, answered: envelope.sender });
            }
            self.check_boot(envelope).await
        };
        checked.await.inspect_err(|refusal| self.alarm(envelope, refusal))
    }

    fn check_cluster_and_target<'a>(&self, envelope: Option<&'a Envelope>) -> Result<&'a Envelope, Refusal> {
        let envelope = envelope.ok_or(Refusal::NoEnvelope)?;
        if envelope.cluster_id != self.identity.cluster.0[..] {
            let theirs =
                ClusterId::from_slice(&envelope.cluster_id).map_or("none".into(), |id| id.to_string());
            return Err(Refusal::WrongCluster { theirs, ours: self.identity.cluster });
        }
        if envelope.target != self.identity.me && !planted::is("identity-unchecked") {
            return Err(Refusal::WrongNode { meant: envelope.target, me: self.identity.me });
        }
        Ok(envelope)
    }

    async fn check_boot(&self, envelope: &Envelope) -> Result<(), Refusal> {
        let (sender, shown) = (envelope.sender, boot_of(envelope));
        if !self.is_news(sender, shown)? {
            return Ok(());
        }
        let _one_at_a_time = self.writing.lock().await;
        // Again: a clone may have been written down meanwhile.
        if !self.is_news(sender, shown)? {
            return Ok(());
        }
        let mut next = self.lock().clone();
        next.insert(sender, shown);
        while next.len() > SENDERS_MAX {
            let other = next.keys().copied().find(|id| *id != sender).expect("more than one");
            next.remove(&other);
        }
        self.store.put_value(PEER_BOOTS, boots_to_bytes(&next)).await?;
        *self.lock() = next;
        Ok(())
    }

    /// Whether this is a later start than was seen before.
    fn is_news(&self, sender: u64, shown: Boot) -> Result<bool, Refusal> {
        if shown.count > BOOT_COUNT_MAX {
            return Err(Refusal::AbsurdBoot { sender, count: shown.count });
        }
        match self.lock().get(&sender).copied() {
            Some(seen) if shown.count < seen.count => Err(Refusal::RolledBack { sender, shown, seen }),
            Some(seen) if shown.count == seen.count && shown.nonce != seen.nonce => {
                Err(Refusal::Cloned { sender, shown, seen })
            }
            Some(seen) => Ok(shown.count > seen.count),
            None => Ok(true),
        }
    }

    /// Says once for each sender what is wrong with it.
    fn alarm(&self, envelope: Option<&Envelope>, refusal: &Refusal) {
        let sender = envelope.map_or(0, |envelope| envelope.sender);
        let mut alarmed = self.alarmed.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if alarmed.len() < ALARMED_MAX && alarmed.insert(sender) {
            tracing::error!(sender, "a peer's message was refused: {refusal}");
        }
    }

    /// What a sender is told whose data directory is stale.
    pub fn told(&self, refusal: &Refusal) -> Option<StaleStorage> {
        let (Refusal::RolledBack { sender, seen, .. } | Refusal::Cloned { sender, seen, .. }) = refusal
        else {
            return None;
        };
        Some(StaleStorage {
            envelope: self.identity.envelope(*sender),
            boot_seen: seen.count,
            nonce_seen: seen.nonce,
        })
    }

    /// `asked` refused our message and says that our own data directory is stale. If that is so, this node must stop
    /// for good.
    ///
    /// One member's word is enough. It cannot be outvoted: those who have not seen the later start would take this
    /// node's votes and acknowledgements for those of the disk that it was, and a commit that only they remember would
    /// be lost. So it is checked instead: the word comes from the very node that was asked, of our cluster, to us, from
    /// a disk that is not stale itself; and it names a start of our directory that cannot be this one or one before
    /// it, which an honest member can only have from that start's own messages. A member that is confused about us
    /// alone, or damaged, does not bring such a proof together; one that lies owns the cluster anyway.
    pub async fn heed(&self, asked: u64, told: &StaleStorage) {
        if self.check_reply(asked, told.envelope.as_ref()).await.is_err() {
            return;
        }
        let (ours, seen) = (self.identity.boot, Boot { count: told.boot_seen, nonce: told.nonce_seen });
        let later = seen.count > ours.count && seen.count <= BOOT_COUNT_MAX;
        let other = seen.count == ours.count && seen.nonce != ours.nonce;
        if !later && !other {
            tracing::warn!(
                asked,
                boot = seen.count,
                "a member calls this node's data directory stale for no reason"
            );
            return;
        }
        let how = if later { "rolled back to an older state" } else { "copied, and runs twice" };
        self.stale.send_replace(Some(format!(
            "the data directory was {how}: node {asked} has seen start {} of it, and this is start {}. Empty it and \
             let the node join anew",
            seen.count, ours.count
        )));
    }

    /// Why this node must stop for good, once a member has said so.
    pub fn stale(&self) -> watch::Receiver<Option<String>> {
        self.stale.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, Boots> {
        self.boots.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

fn boot_of(envelope: &Envelope) -> Boot {
    Boot { count: envelope.sender_boot, nonce: envelope.sender_nonce }
}

fn boots_from_bytes(bytes: &[u8]) -> Boots {
    let number = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().expect("8 bytes"));
    let rows = bytes.chunks_exact(24);
    rows.map(|row| (number(&row[..8]), Boot { count: number(&row[8..16]), nonce: number(&row[16..]) }))
        .collect()
}

fn boots_to_bytes(boots: &Boots) -> Bytes {
    let rows = boots.iter().map(|(sender, boot)| [*sender, boot.count, boot.nonce]);
    rows.flatten().flat_map(u64::to_be_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{StoreOptions, Writer};

    const US: Identity = Identity { cluster: ClusterId([7; 16]), me: 1, boot: Boot { count: 4, nonce: 40 } };

    fn from(sender: u64, count: u64, nonce: u64, target: u64) -> Option<Envelope> {
        Identity { me: sender, boot: Boot { count, nonce }, ..US }.envelope(target)
    }

    fn guard(dir: &tempfile::TempDir) -> PeerGuard {
        let options = StoreOptions {
            writer: Writer::Inline,
            allow_volatile: true,
            ballast_bytes: 0,
            ..StoreOptions::new(dir.path().to_owned())
        };
        PeerGuard::open(US, Store::open(options).expect("a store"))
    }

    fn folder() -> tempfile::TempDir {
        tempfile::tempdir().expect("a temporary folder")
    }

    #[tokio::test]
    async fn a_message_of_another_cluster_or_for_another_node_is_refused() {
        let dir = folder();
        let guard = guard(&dir);
        let foreign = Identity { cluster: ClusterId([8; 16]), me: 2, ..US }.envelope(1);
        assert!(matches!(guard.check_request(foreign.as_ref()).await, Err(Refusal::WrongCluster { .. })));
        let misled = guard.check_request(from(2, 1, 0, 9).as_ref()).await;
        assert!(matches!(misled, Err(Refusal::WrongNode { meant: 9, me: 1 })));
        assert!(matches!(guard.check_request(None).await, Err(Refusal::NoEnvelope)));
        let absurd = guard.check_request(from(2, u64::MAX, 0, 1).as_ref()).await;
        assert!(matches!(absurd, Err(Refusal::AbsurdBoot { sender: 2, .. })));
        guard.check_request(from(2, 1, 0, 1).as_ref()).await.expect("it was not taken down");
    }

    #[tokio::test]
    async fn a_disk_that_was_rolled_back_is_refused_by_request_and_reply() {
        let dir = folder();
        let guard = guard(&dir);
        guard.check_request(from(2, 5, 50, 1).as_ref()).await.expect("the first start seen");
        guard.check_request(from(2, 5, 50, 1).as_ref()).await.expect("the same");
        guard.check_request(from(2, 6, 60, 1).as_ref()).await.expect("a later one");
        let stale = from(2, 5, 50, 1);
        assert!(matches!(guard.check_request(stale.as_ref()).await, Err(Refusal::RolledBack { .. })));
        assert!(matches!(guard.check_reply(2, stale.as_ref()).await, Err(Refusal::RolledBack { .. })));
    }

    #[tokio::test]
    async fn the_second_of_two_clones_is_refused_and_told_what_to_do() {
        let dir = folder();
        let guard = guard(&dir);
        guard.check_request(from(2, 5, 50, 1).as_ref()).await.expect("the first");
        let refused = guard.check_request(from(2, 5, 51, 1).as_ref()).await.expect_err("the copy");
        assert!(matches!(refused, Refusal::Cloned { sender: 2, .. }), "{refused}");
        assert!(refused.to_string().contains("Empty the copy"), "{refused}");
        guard.check_request(from(2, 5, 50, 1).as_ref()).await.expect("the first goes on");
    }

    #[tokio::test]
    async fn what_replies_showed_is_known_after_a_restart() {
        let dir = folder();
        let first = guard(&dir);
        first.check_reply(2, from(2, 5, 50, 1).as_ref()).await.expect("a reply");
        // As a crash leaves it: nothing is written any more.
        first.store.abandon();
        drop(first);
        let again = guard(&dir);
        let clone = again.check_request(from(2, 5, 51, 1).as_ref()).await;
        assert!(matches!(clone, Err(Refusal::Cloned { .. })), "{clone:?}");
        let old = again.check_request(from(2, 4, 0, 1).as_ref()).await;
        assert!(matches!(old, Err(Refusal::RolledBack { .. })), "{old:?}");
    }

    #[tokio::test]
    async fn replies_write_only_when_a_peer_has_started_again() {
        let dir = folder();
        let guard = guard(&dir);
        guard.check_reply(2, from(2, 5, 50, 1).as_ref()).await.expect("a reply");
        let commits = guard.store.stats().log.commits;
        for _ in 0..100 {
            guard.check_reply(2, from(2, 5, 50, 1).as_ref()).await.expect("a reply");
        }
        assert_eq!(guard.store.stats().log.commits, commits);
        guard.check_reply(2, from(2, 6, 60, 1).as_ref()).await.expect("a reply");
        assert_eq!(guard.store.stats().log.commits, commits + 1);
    }

    #[tokio::test]
    async fn a_reply_counts_only_from_the_one_who_was_asked() {
        let dir = folder();
        let guard = guard(&dir);
        guard.check_reply(2, from(2, 1, 0, 1).as_ref()).await.expect("node 2 was asked");
        let swapped = guard.check_reply(2, from(3, 1, 0, 1).as_ref()).await;
        assert!(matches!(swapped, Err(Refusal::WrongSender { asked: 2, answered: 3 })));
    }

    #[tokio::test]
    async fn only_a_proof_makes_a_node_call_itself_stale() {
        let dir = folder();
        let guard = guard(&dir);
        let told = |envelope: Option<Envelope>, boot_seen, nonce_seen| StaleStorage {
            envelope,
            boot_seen,
            nonce_seen,
        };
        let good = from(2, 3, 30, 1);
        // Another cluster, another target, another sender, no start that this one could be behind.
        let foreign = Identity { cluster: ClusterId([8; 16]), me: 2, ..US }.envelope(1);
        guard.heed(2, &told(foreign, 9, 0)).await;
        guard.heed(2, &told(from(2, 3, 30, 7), 9, 0)).await;
        guard.heed(2, &told(from(3, 3, 30, 1), 9, 0)).await;
        guard.heed(2, &told(good.clone(), 3, 0)).await;
        guard.heed(2, &told(good.clone(), US.boot.count, US.boot.nonce)).await;
        guard.heed(2, &told(good.clone(), u64::MAX, 0)).await;
        // The one that says so is stale itself.
        guard.heed(2, &told(from(2, 2, 20, 1), 9, 0)).await;
        assert_eq!(*guard.stale().borrow(), None);
        guard.heed(2, &told(good, US.boot.count, US.boot.nonce + 1)).await;
        let why = guard.stale().borrow().clone().expect("the same start with another nonce is a clone");
        assert!(why.contains("Empty it and let the node join anew"), "{why}");
    }
}
