//! Who we are among the nodes of the cluster, and whose word we take.
//!
//! Every peer message carries an envelope: cluster, sender, the sender's boot counter, target. [`PeerGuard`] refuses
//! what was not meant for this node and what comes from a disk that was rolled back or cloned. A message that is
//! refused is never counted as a vote or an acknowledgement. Nothing here decides by address: a lagging node does
//! not know the newest members, so the membership is no filter either.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Mutex;

use bytes::Bytes;
use raftlock_proto::peer::Envelope;

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

/// This node, as its peer messages name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster that it belongs to.
    pub cluster: ClusterId,
    /// Its storage id, which is its node id.
    pub me: u64,
    /// How often its data directory has been started.
    pub boot: u64,
}

impl Identity {
    /// The envelope of a message from this node to `target`.
    pub fn envelope(&self, target: u64) -> Option<Envelope> {
        Some(Envelope {
            cluster_id: self.cluster.to_bytes(),
            sender: self.me,
            sender_boot: self.boot,
            target,
        })
    }
}

/// Why a peer's message was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
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
    /// The sender's disk is older than one we have seen: it was restored from a copy, or cloned.
    #[error(
        "node {sender} shows boot {shown}, but boot {seen} was seen before: its data directory was rolled back or \
         cloned. Empty it and let the node join anew"
    )]
    StaleStorage {
        /// Who sent it.
        sender: u64,
        /// The boot counter that it shows.
        shown: u64,
        /// The highest that we have seen.
        seen: u64,
    },
}

/// Checks envelopes and remembers the highest boot counter of each sender.
#[derive(Debug)]
pub struct PeerGuard {
    identity: Identity,
    boots: Mutex<BTreeMap<u64, u64>>,
}

impl PeerGuard {
    /// A guard that has seen `boots` before.
    pub fn new(identity: Identity, boots: BTreeMap<u64, u64>) -> Self {
        PeerGuard { identity, boots: Mutex::new(boots) }
    }

    /// Who we are.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Checks a request. `Ok(Some(boots))`: a boot counter rose, and these are now the highest seen.
    pub fn check_request(&self, envelope: Option<&Envelope>) -> Result<Option<BTreeMap<u64, u64>>, Refusal> {
        let envelope = self.check_cluster_and_target(envelope)?;
        self.check_boot(envelope.sender, envelope.sender_boot)
    }

    /// Checks the reply of `asked`.
    pub fn check_reply(&self, asked: u64, envelope: Option<&Envelope>) -> Result<(), Refusal> {
        let envelope = self.check_cluster_and_target(envelope)?;
        if envelope.sender != asked {
            return Err(Refusal::WrongSender { asked, answered: envelope.sender });
        }
        self.check_boot(envelope.sender, envelope.sender_boot).map(|_| ())
    }

    fn check_cluster_and_target<'a>(&self, envelope: Option<&'a Envelope>) -> Result<&'a Envelope, Refusal> {
        let envelope = envelope.ok_or(Refusal::NoEnvelope)?;
        if envelope.cluster_id != self.identity.cluster.0[..] {
            let theirs =
                ClusterId::from_slice(&envelope.cluster_id).map_or("none".into(), |id| id.to_string());
            return Err(Refusal::WrongCluster { theirs, ours: self.identity.cluster });
        }
        if envelope.target != self.identity.me {
            return Err(Refusal::WrongNode { meant: envelope.target, me: self.identity.me });
        }
        Ok(envelope)
    }

    fn check_boot(&self, sender: u64, shown: u64) -> Result<Option<BTreeMap<u64, u64>>, Refusal> {
        let mut boots = self.boots.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let seen = boots.entry(sender).or_insert(0);
        if shown < *seen {
            return Err(Refusal::StaleStorage { sender, shown, seen: *seen });
        }
        let rose = shown > *seen;
        *seen = shown;
        Ok(rose.then(|| boots.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const US: Identity = Identity { cluster: ClusterId([7; 16]), me: 1, boot: 4 };

    fn from(sender: u64, boot: u64, target: u64) -> Option<Envelope> {
        Identity { me: sender, boot, ..US }.envelope(target)
    }

    #[test]
    fn a_message_of_another_cluster_or_for_another_node_is_refused() {
        let guard = PeerGuard::new(US, BTreeMap::new());
        let foreign = Identity { cluster: ClusterId([8; 16]), me: 2, boot: 1 }.envelope(1);
        assert!(matches!(guard.check_request(foreign.as_ref()), Err(Refusal::WrongCluster { .. })));
        let misled = from(2, 1, 9);
        assert_eq!(guard.check_request(misled.as_ref()), Err(Refusal::WrongNode { meant: 9, me: 1 }));
        assert_eq!(guard.check_request(None), Err(Refusal::NoEnvelope));
    }

    #[test]
    fn a_disk_that_was_rolled_back_is_refused() {
        let guard = PeerGuard::new(US, BTreeMap::new());
        assert_eq!(guard.check_request(from(2, 5, 1).as_ref()), Ok(Some(BTreeMap::from([(2, 5)]))));
        assert_eq!(guard.check_request(from(2, 5, 1).as_ref()), Ok(None));
        let stale = Refusal::StaleStorage { sender: 2, shown: 4, seen: 5 };
        assert_eq!(guard.check_request(from(2, 4, 1).as_ref()), Err(stale.clone()));
        assert_eq!(guard.check_reply(2, from(2, 4, 1).as_ref()), Err(stale));
    }

    #[test]
    fn a_reply_counts_only_from_the_one_who_was_asked() {
        let guard = PeerGuard::new(US, BTreeMap::new());
        assert_eq!(guard.check_reply(2, from(2, 1, 1).as_ref()), Ok(()));
        let swapped = guard.check_reply(2, from(3, 1, 1).as_ref());
        assert_eq!(swapped, Err(Refusal::WrongSender { asked: 2, answered: 3 }));
    }
}
