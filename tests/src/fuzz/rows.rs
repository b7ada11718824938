//! Rows of the log, votes and descriptions of snapshots: what a node reads back from its disk and hears from its peers.

use prost::Message;
use raftlock_proto::peer;
use raftlock_server::raft_doors::{Reread, reread};

use super::{INPUTS, change, count, hex};
use crate::tally::Tally;

pub(super) fn all(rng: &mut fastrand::Rng, tally: &mut Tally) -> Result<(), String> {
    for kind in [Reread::Entry, Reread::Vote, Reread::Snapshot] {
        let valid: Vec<Vec<u8>> = (0..20).map(|_| some(rng, kind)).collect();
        if let Some(bad) = valid.iter().find(|bytes| reread(kind, bytes).is_none()) {
            return Err(format!("{kind:?}: a good one is refused: {}", hex(bad)));
        }
        for _ in 0..INPUTS {
            let mut bytes = valid[rng.usize(0..valid.len())].clone();
            change(rng, &mut bytes, &valid);
            let read = reread(kind, &bytes);
            count(tally, "rows", read.is_some());
            // What was read is written as what is read again.
            if let Some(written) = read
                && reread(kind, &written).as_ref() != Some(&written)
            {
                return Err(format!("{kind:?} is not what was written: {}", hex(&bytes)));
            }
        }
    }
    Ok(())
}

fn some(rng: &mut fastrand::Rng, kind: Reread) -> Vec<u8> {
    match kind {
        Reread::Vote => {
            peer::Vote { term: rng.u64(0..9), node: rng.u64(..), committed: rng.bool() }.encode_to_vec()
        }
        Reread::Entry => {
            let payload = match rng.u8(0..3) {
                0 => peer::entry::Payload::Blank(true),
                1 => peer::entry::Payload::Batch((0..rng.u8(0..40)).collect::<Vec<u8>>().into()),
                _ => peer::entry::Payload::Membership(some_membership(rng)),
            };
            peer::Entry { id: Some(some_log_id(rng)), payload: Some(payload) }.encode_to_vec()
        }
        Reread::Snapshot => peer::SnapshotMeta {
            id: format!("{:x}", rng.u32(..)),
            last_log: rng.bool().then(|| some_log_id(rng)),
            membership_log: rng.bool().then(|| some_log_id(rng)),
            membership: Some(some_membership(rng)),
            chunks: rng.u64(0..9),
            bytes: rng.u64(0..99_999),
        }
        .encode_to_vec(),
    }
}

fn some_log_id(rng: &mut fastrand::Rng) -> peer::LogId {
    peer::LogId { term: rng.u64(0..9), node: rng.u64(..), index: rng.u64(0..9_999) }
}

fn some_membership(rng: &mut fastrand::Rng) -> peer::Membership {
    let ids: Vec<u64> = (0..rng.u64(1..6)).map(|_| rng.u64(..)).collect();
    let node = |id: &u64| {
        let node =
            peer::Node { name: format!("n{id}"), peer_address: "p:1".into(), client_address: "c:1".into() };
        (*id, node)
    };
    let mut configs = vec![peer::VoterSet { ids: ids.clone() }];
    if rng.bool() {
        configs.push(peer::VoterSet { ids: ids[..1].to_vec() });
    }
    peer::Membership { configs, nodes: ids.iter().map(node).collect() }
}
