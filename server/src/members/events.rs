//! What changed among the members between two views.
//!
//! Whoever listens has his own last view, so nothing is queued for those who are slow: they see the difference to what
//! they saw last, and miss what came and went in between.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::{Stream, StreamExt, stream};
use tokio::sync::watch;

use super::{Liveness, MemberView};

/// A change among the members.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemberEvent {
    /// It is a member now.
    Joined(MemberView),
    /// It is a member no more; this is how it was seen last.
    Left(MemberView),
    /// It votes now.
    Promoted(MemberView),
    /// It only follows now.
    Demoted(MemberView),
    /// It answers again.
    Alive(MemberView),
    /// It has not answered for a while.
    Suspect(MemberView),
    /// It is taken to be gone.
    Dead(MemberView),
    /// Another leads, or nobody does.
    LeaderChanged(Option<MemberView>),
}

/// The difference between two views: for each member in the order of ids, then the leader.
pub fn events(before: &[MemberView], after: &[MemberView]) -> Vec<MemberEvent> {
    let (old, new) = (by_id(before), by_id(after));
    let mut events = Vec::new();
    for (_, member) in old.iter().filter(|(id, _)| !new.contains_key(id)) {
        events.push(MemberEvent::Left((*member).clone()));
    }
    for (id, &member) in &new {
        let known = old.get(id);
        match known {
            None => events.push(MemberEvent::Joined(member.clone())),
            Some(known) if member.voter && !known.voter => events.push(MemberEvent::Promoted(member.clone())),
            Some(known) if !member.voter && known.voter => events.push(MemberEvent::Demoted(member.clone())),
            Some(_) => {}
        }
        // Whoever joins is alive until something else is said.
        let was = known.map_or(Liveness::Alive, |known| known.liveness);
        if was != member.liveness {
            events.push(match member.liveness {
                Liveness::Alive => MemberEvent::Alive(member.clone()),
                Liveness::Suspect => MemberEvent::Suspect(member.clone()),
                Liveness::Dead => MemberEvent::Dead(member.clone()),
            });
        }
    }
    let leader = |views: &[MemberView]| views.iter().find(|member| member.leader).cloned();
    let (was, is) = (leader(before), leader(after));
    if was.as_ref().map(|member| member.id) != is.as_ref().map(|member| member.id) {
        events.push(MemberEvent::LeaderChanged(is));
    }
    events
}

fn by_id(views: &[MemberView]) -> BTreeMap<u64, &MemberView> {
    views.iter().map(|member| (member.id, member)).collect()
}

/// A stream of changes among the members. It begins with those that are there, and ends with the node.
pub struct MemberEvents(Pin<Box<dyn Stream<Item = MemberEvent> + Send>>);

impl MemberEvents {
    pub(crate) fn new(views: watch::Receiver<Vec<MemberView>>) -> MemberEvents {
        let start = (views, Vec::new(), VecDeque::new(), true);
        MemberEvents(Box::pin(stream::unfold(start, |(mut views, mut seen, mut queue, first)| async move {
            let mut look = first;
            loop {
                if let Some(event) = queue.pop_front() {
                    return Some((event, (views, seen, queue, false)));
                }
                if !look && views.changed().await.is_err() {
                    return None;
                }
                look = false;
                let now = views.borrow_and_update().clone();
                queue.extend(events(&seen, &now));
                seen = now;
            }
        })))
    }

    /// The next change; `None` when the node has ended. Cancel safe.
    pub async fn next(&mut self) -> Option<MemberEvent> {
        self.0.next().await
    }
}

impl Stream for MemberEvents {
    type Item = MemberEvent;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<MemberEvent>> {
        self.0.as_mut().poll_next(cx)
    }
}

impl fmt::Debug for MemberEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemberEvents").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn between<const B: usize, const A: usize>(
        before: [MemberView; B],
        after: [MemberView; A],
    ) -> Vec<MemberEvent> {
        events(&before, &after)
    }

    fn member(id: u64) -> MemberView {
        MemberView {
            id,
            name: format!("n{id}"),
            peer_address: format!("n{id}:50052"),
            client_address: String::new(),
            voter: true,
            leader: false,
            liveness: Liveness::Alive,
            last_contact: None,
            matched: None,
            lag: None,
        }
    }

    fn with(id: u64, change: impl FnOnce(&mut MemberView)) -> MemberView {
        let mut member = member(id);
        change(&mut member);
        member
    }

    #[test]
    fn those_who_come_and_go_are_told_once() {
        assert_eq!(
            between([], [member(1), member(2)]),
            [MemberEvent::Joined(member(1)), MemberEvent::Joined(member(2))]
        );
        let replaced = between([member(1), member(2)], [member(2), member(3)]);
        assert_eq!(replaced, [MemberEvent::Left(member(1)), MemberEvent::Joined(member(3))]);
        assert_eq!(between([member(1)], [member(1)]), []);
    }

    #[test]
    fn a_learner_is_promoted_and_a_voter_demoted() {
        let learner = with(1, |member| member.voter = false);
        assert_eq!(between([learner.clone()], [member(1)]), [MemberEvent::Promoted(member(1))]);
        assert_eq!(between([member(1)], [learner.clone()]), [MemberEvent::Demoted(learner)]);
    }

    #[test]
    fn a_silent_member_is_suspect_then_dead_then_alive_again() {
        let silent = |liveness| with(1, |member| member.liveness = liveness);
        let (suspect, dead) = (silent(Liveness::Suspect), silent(Liveness::Dead));
        assert_eq!(between([member(1)], [suspect.clone()]), [MemberEvent::Suspect(suspect.clone())]);
        assert_eq!(between([suspect], [dead.clone()]), [MemberEvent::Dead(dead.clone())]);
        assert_eq!(between([dead.clone()], [member(1)]), [MemberEvent::Alive(member(1))]);
        // Seen for the first time when it is dead already.
        assert_eq!(between([], [dead.clone()]), [MemberEvent::Joined(dead.clone()), MemberEvent::Dead(dead)]);
    }

    #[test]
    fn a_change_of_leader_is_one_event() {
        let leads = |id| with(id, |member| member.leader = true);
        let moved = between([leads(1), member(2)], [member(1), leads(2)]);
        assert_eq!(moved, [MemberEvent::LeaderChanged(Some(leads(2)))]);
        assert_eq!(between([leads(1)], [member(1)]), [MemberEvent::LeaderChanged(None)]);
    }

    #[test]
    fn positions_alone_are_no_event() {
        let moved = with(1, |member| (member.matched, member.lag) = (Some(7), Some(0)));
        assert_eq!(between([member(1)], [moved]), []);
    }

    #[tokio::test]
    async fn a_stream_begins_with_what_is_there_and_ends_with_the_node() {
        let (views, watched) = watch::channel(vec![member(1)]);
        let mut stream = MemberEvents::new(watched);
        assert_eq!(stream.next().await, Some(MemberEvent::Joined(member(1))));
        views.send_replace(vec![with(1, |member| member.matched = Some(1)), member(2)]);
        assert_eq!(stream.next().await, Some(MemberEvent::Joined(member(2))));
        drop(views);
        assert_eq!(stream.next().await, None);
    }
}
