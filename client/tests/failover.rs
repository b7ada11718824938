//! What an outage costs: nothing that the lease outlives, and never a second holder.

mod support;

use std::time::Duration;

use raftlock::{GuardState, LostReason};
use raftlock_proto::v1;
use raftlock_proto::v1::session_event::Event;
use raftlock_proto::v1::session_op::Op;
use support::*;
use tokio::time::Instant;
use tonic_types::{ErrorDetails, StatusExt};

/// Two nodes, and a client whose first stream is on the first of them.
async fn two() -> (Net, Node, Node, raftlock::Client, Script) {
    let net = Net::default();
    let (mut a, b) = (net.node("a:1"), net.node("b:1"));
    b.set(State::Down);
    let client = net.client("a:1,b:1");
    let stream = node_stream(&mut a, &client).await;
    b.set(State::Up);
    (net, a, b, client, stream)
}

#[tokio::test(start_paused = true)]
async fn another_server_takes_over_guard_and_place_in_the_queue() {
    let (_net, a, mut b, client, mut stream) = two().await;
    let guard = stream.grant(&client, "k", s(9.0), 5).await;
    let waiting = tokio::spawn(client.lock("l").ttl(s(9.0)).into_future());
    stream.acquire().await;
    stream.queued(1, 2, 3).await;
    settle().await;
    let failed = Instant::now();
    a.set(State::Down);
    drop(stream);
    let mut next = b.stream().await;
    let resume = next.resumed(1, &[(1, 5)], &[(2, 2)]).await;
    assert!(failed.elapsed() < s(0.01), "at once while a lock is held, not after {:?}", failed.elapsed());
    assert_eq!(resume.session, 1);
    // Nothing is sent again: the cluster knows all of it.
    assert!(next.is_quiet_for(s(1.0)).await);
    assert!(guard.is_held());
    next.granted(1, 2, 6).await;
    assert_eq!(waiting.await.unwrap().unwrap().token().get(), 6);
    drop(guard);
    assert_eq!(next.release().await.token, 5);
}

#[tokio::test(start_paused = true)]
async fn attachments_are_counted_up() {
    let (_net, a, mut b, client, mut stream) = two().await;
    let waiting = tokio::spawn(client.lock("k").into_future());
    let open = stream.open(1).await;
    stream.acquire().await;
    a.set(State::Down);
    drop(stream);
    let mut next = b.stream().await;
    let resume = next.resumed(open.number, &[], &[]).await;
    assert!(resume.attachment > open.attachment);
    assert_eq!(resume.secret, open.secret);
    waiting.abort();
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_asked_for_again_under_the_same_ticket() {
    let (_net, a, mut b, client, mut stream) = two().await;
    let waiting = tokio::spawn(client.lock("k").wait(s(60.0)).into_future());
    stream.open(1).await;
    let first = stream.acquire().await;
    a.set(State::Down);
    drop(stream);
    let mut next = b.stream().await;
    next.resumed(1, &[], &[]).await;
    let second = next.acquire().await;
    assert_eq!(first, second, "a repeat is the same request in every word");
    next.granted(1, 1, 5).await;
    let guard = waiting.await.unwrap().unwrap();
    assert!(next.is_quiet_for(s(5.0)).await);
    assert!(guard.is_held());
}

#[tokio::test(start_paused = true)]
async fn a_grant_whose_answer_was_lost_is_found_by_the_resume() {
    let (_net, a, mut b, client, mut stream) = two().await;
    let waiting = tokio::spawn(client.lock("k").into_future());
    stream.open(1).await;
    stream.acquire().await;
    a.set(State::Down);
    drop(stream);
    let mut next = b.stream().await;
    next.resumed(1, &[(1, 5)], &[]).await;
    assert_eq!(waiting.await.unwrap().unwrap().token().get(), 5);
    assert_eq!(next.release().await.token, 5);
}

#[tokio::test(start_paused = true)]
async fn an_open_whose_answer_was_lost_is_repeated_with_the_same_secret() {
    let (_net, a, mut b, client, mut stream) = two().await;
    let waiting = tokio::spawn(client.lock("k").ttl(s(9.0)).into_future());
    let Some(Op::Open(first)) = stream.op().await else { panic!("expected an open") };
    let opened = Instant::now();
    tokio::time::sleep(s(0.5)).await;
    a.set(State::Down);
    drop(stream);
    let mut next = b.stream().await;
    let Some(Op::Open(second)) = next.op().await else { panic!("expected an open") };
    assert_eq!(first.secret, second.secret);
    assert!(second.number > first.number);
    // The lease still counts from the first.
    next.send(Event::Opened(v1::SessionOpened { key: second.key, session: 1, number: first.number })).await;
    next.renews = false;
    next.acquire().await;
    next.granted(1, 1, 5).await;
    let guard = waiting.await.unwrap().unwrap();
    assert!(guard.remaining() <= s(9.0 - 0.09) - opened.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_release_is_repeated_until_it_is_answered() {
    let (_net, a, mut b, client, mut stream) = two().await;
    let guard = stream.grant(&client, "k", s(9.0), 5).await;
    let releasing = tokio::spawn(guard.release());
    let first = stream.release().await;
    a.set(State::Down);
    drop(stream);
    let mut next = b.stream().await;
    next.resumed(1, &[(1, 5)], &[]).await;
    let second = next.release().await;
    assert_eq!((first.ticket, first.token), (second.ticket, second.token));
    assert!(!releasing.is_finished());
    // The second answer is lost as well, but this time the release was applied.
    b.set(State::Down);
    a.set(State::Up);
    drop(next);
    let mut a = a;
    let mut last = a.stream().await;
    last.resumed(1, &[], &[]).await;
    releasing.await.unwrap().unwrap();
    assert!(last.is_quiet_for(s(2.0)).await);
}

#[tokio::test(start_paused = true)]
async fn a_held_lock_that_nobody_claims_is_released() {
    let (_net, a, mut b, client, mut stream) = two().await;
    let guard = stream.grant(&client, "k", s(9.0), 5).await;
    a.set(State::Down);
    drop(stream);
    let mut next = b.stream().await;
    next.resumed(1, &[(1, 5), (7, 77)], &[(8, 1)]).await;
    let release = next.release().await;
    assert_eq!((release.ticket, release.token), (7, 77));
    assert_eq!(next.cancel().await.ticket, 8);
    // Until it is answered.
    b.set(State::Down);
    a.set(State::Up);
    drop(next);
    let mut a = a;
    let mut last = a.stream().await;
    last.resumed(1, &[(1, 5), (7, 77)], &[]).await;
    assert_eq!(last.release().await.token, 77);
    last.finished(1, 7).await;
    assert!(guard.is_held());
}

#[tokio::test(start_paused = true)]
async fn a_claimed_lock_that_the_cluster_does_not_hold_is_lost() {
    let (_net, a, mut b, client, mut stream) = two().await;
    let guard = stream.grant(&client, "k", s(9.0), 5).await;
    a.set(State::Down);
    drop(stream);
    b.stream().await.resumed(1, &[], &[]).await;
    assert_eq!(guard.lost().await, LostReason::NotHolder);
}

#[tokio::test(start_paused = true)]
async fn a_resume_may_come_in_parts() {
    let (_net, a, mut b, client, mut stream) = two().await;
    let guard = stream.grant(&client, "k", s(9.0), 5).await;
    let waiting = tokio::spawn(client.lock("l").ttl(s(9.0)).into_future());
    stream.acquire().await;
    a.set(State::Down);
    drop(stream);
    let mut next = b.stream().await;
    let resume = next.resume().await;
    let part = |held: u64, token: u64, more| v1::SessionResumed {
        key: resume.key,
        session: 1,
        held: vec![v1::HeldTicket { ticket: held, token }],
        number: 1,
        more,
        ..Default::default()
    };
    next.send(Event::Resumed(part(2, 6, true))).await;
    settle().await;
    assert!(guard.is_held() && !waiting.is_finished());
    next.send(Event::Resumed(part(1, 5, false))).await;
    assert_eq!(waiting.await.unwrap().unwrap().token().get(), 6);
    assert!(guard.is_held());
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_overtakes_the_answer_to_the_resume_is_no_loss() {
    let (_net, a, mut b, client, mut stream) = two().await;
    let waiting = tokio::spawn(client.lock("k").ttl(s(9.0)).into_future());
    stream.open(1).await;
    stream.acquire().await;
    stream.queued(1, 1, 1).await;
    a.set(State::Down);
    drop(stream);
    let mut next = b.stream().await;
    let resume = next.resume().await;
    next.granted(1, 1, 5).await;
    let answer = v1::SessionResumed {
        key: resume.key,
        session: 1,
        queued: vec![v1::QueuedTicket { ticket: 1, place: 1 }],
        number: 1,
        ..Default::default()
    };
    next.send(Event::Resumed(answer)).await;
    let guard = waiting.await.unwrap().unwrap();
    assert!(next.is_quiet_for(s(2.0)).await);
    assert!(guard.is_held());
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_ended_during_the_outage_is_over() {
    let (_net, a, mut b, client, mut stream) = two().await;
    let waiting = tokio::spawn(client.lock("k").wait(s(60.0)).into_future());
    stream.open(1).await;
    stream.acquire().await;
    stream.queued(1, 1, 4).await;
    a.set(State::Down);
    drop(stream);
    let mut next = b.stream().await;
    let resume = next.resume().await;
    let answer = v1::SessionResumed {
        key: resume.key,
        session: 1,
        number: 1,
        finished: vec![1],
        ..Default::default()
    };
    next.send(Event::Resumed(answer)).await;
    match waiting.await.unwrap().unwrap_err() {
        raftlock::Error::WaitTimeout(timeout) => assert_eq!(timeout.place, Some(4)),
        other => panic!("{other}"),
    }
    assert!(next.is_quiet_for(s(2.0)).await);
}

#[tokio::test(start_paused = true)]
async fn an_unanswered_renewal_moves_the_session_to_the_next_server() {
    let (_net, _a, mut b, client, mut stream) = two().await;
    let guard = stream.grant(&client, "k", s(9.0), 5).await;
    stream.renews = false;
    let renew = stream.renew().await;
    let queued = Instant::now();
    let mut next = b.stream().await;
    next.renews = false;
    assert!(queued.elapsed() >= s(1.0) && queued.elapsed() < s(1.05), "TTL/9, not {:?}", queued.elapsed());
    assert_eq!(guard.state(), GuardState::AtRisk);
    next.resumed(1, &[(1, 5)], &[]).await;
    // Not applied before: renewed at once, under a number of its own.
    let again = next.renew().await;
    assert!(again.number > renew.number);
    next.renewed(again.number, &[1]).await;
    settle().await;
    assert_eq!(guard.state(), GuardState::Held);
    assert!(guard.remaining() > s(8.8));
}

#[tokio::test(start_paused = true)]
async fn every_server_is_tried_before_the_lease_is_over() {
    let net = Net::default();
    let mut a = net.node("a:1");
    let dark: Vec<Node> = ["b:1", "c:1", "d:1", "e:1", "f:1"].map(|address| net.node(address)).into();
    dark.iter().for_each(|node| node.set(State::Down));
    let client = net.client("a:1,b:1,c:1,d:1,e:1,f:1");
    let mut stream = node_stream(&mut a, &client).await;
    let guard = stream.grant(&client, "k", s(9.0), 5).await;
    dark.iter().for_each(|node| node.set(State::Dark));
    let before: Vec<usize> = dark.iter().map(|node| net.dials(&node.address)).collect();
    stream.renews = false;
    let lost = guard.lost().await;
    assert_eq!(lost, LostReason::Expired);
    let tried: Vec<usize> =
        dark.iter().zip(before).map(|(node, before)| net.dials(&node.address) - before).collect();
    assert!(tried.iter().all(|&dials| dials > 0), "{tried:?}");
}

#[tokio::test(start_paused = true)]
async fn refused_connections_do_not_spin_while_a_lock_is_held() {
    let (net, a, b, client, mut stream) = two().await;
    let _guard = stream.grant(&client, "k", s(9.0), 5).await;
    a.set(State::Down);
    b.set(State::Down);
    let before = net.dials("a:1") + net.dials("b:1");
    drop(stream);
    tokio::time::sleep(s(2.0)).await;
    let dials = net.dials("a:1") + net.dials("b:1") - before;
    assert!((20..100).contains(&dials), "{dials} dials in 2 s");
}

#[tokio::test(start_paused = true)]
async fn streams_that_are_accepted_and_dropped_do_not_spin_either() {
    let net = Net::default();
    let (mut a, mut b) = (net.node("a:1"), net.node("b:1"));
    let client = net.client("a:1,b:1");
    let _waiting = tokio::spawn(client.lock("k").into_future());
    let mut streams = 0;
    let until = Instant::now() + s(10.0);
    loop {
        tokio::select! {
            stream = a.stream() => drop(stream),
            stream = b.stream() => drop(stream),
            () = tokio::time::sleep_until(until) => break,
        }
        streams += 1;
    }
    assert!((8..60).contains(&streams), "{streams} streams in 10 s");
}

#[tokio::test(start_paused = true)]
async fn a_draining_server_is_left_before_it_stops() {
    let (_net, _a, mut b, client, mut stream) = two().await;
    // Not connected beforehand, and slow to connect to now.
    b.set(State::Dark);
    let guard = stream.grant(&client, "k", s(9.0), 5).await;
    let waiting = tokio::spawn(client.lock("l").ttl(s(9.0)).into_future());
    stream.acquire().await;
    stream.queued(1, 2, 1).await;
    settle().await;
    stream.send(Event::Draining(v1::Draining {})).await;
    settle().await;
    // Until another is there, the old one still serves.
    let third = tokio::spawn(client.lock("m").ttl(s(9.0)).into_future());
    assert_eq!(stream.acquire().await.ticket, 3);
    stream.granted(1, 3, 7).await;
    let third = third.await.unwrap().unwrap();
    b.set(State::Up);
    let mut next = b.stream().await;
    let resume = next.resumed(1, &[(1, 5), (3, 7)], &[(2, 1)]).await;
    assert_eq!(resume.session, 1);
    // The older stream is told, and that is no loss.
    stream.lost(1, v1::session_lost::Reason::Superseded).await;
    drop(stream);
    next.granted(1, 2, 6).await;
    let second = waiting.await.unwrap().unwrap();
    assert!(guard.is_held() && second.is_held() && third.is_held());
    assert!(next.is_quiet_for(s(3.0)).await);
}

#[tokio::test(start_paused = true)]
async fn what_a_stream_that_was_left_says_about_its_way_is_no_news() {
    let (_net, a, mut b, client, mut stream) = two().await;
    let guard = stream.grant(&client, "k", s(9.0), 5).await;
    stream.send(Event::Draining(v1::Draining {})).await;
    let mut next = b.stream().await;
    let resume = next.resume().await;
    // The older stream is still listened to.
    stream.send(Event::Moved(v1::Moved {})).await;
    stream.send(Event::Draining(v1::Draining {})).await;
    settle().await;
    let held = vec![v1::HeldTicket { ticket: 1, token: 5 }];
    let answer = v1::SessionResumed { key: resume.key, session: 1, held, number: 1, ..Default::default() };
    next.send(Event::Resumed(answer)).await;
    assert!(next.is_quiet_for(s(3.0)).await);
    assert!(guard.is_held() && !a.has_stream());
}

#[tokio::test(start_paused = true)]
async fn a_single_draining_server_is_used_until_it_stops() {
    let (_net, mut node, client) = pair().await;
    let mut stream = node_stream(&mut node, &client).await;
    let guard = stream.grant(&client, "k", s(9.0), 5).await;
    stream.send(Event::Draining(v1::Draining {})).await;
    assert!(stream.is_quiet_for(s(4.0)).await);
    assert!(!node.has_stream());
    drop(stream);
    let mut next = node.stream().await;
    next.resumed(2, &[(1, 5)], &[]).await;
    settle().await;
    assert!(guard.is_held());
}

#[tokio::test(start_paused = true)]
async fn after_a_move_the_sessions_resume_on_the_same_stream() {
    let (_net, _a, b, client, mut stream) = two().await;
    let guard = stream.grant(&client, "k", s(9.0), 5).await;
    let waiting = tokio::spawn(client.lock("l").ttl(s(9.0)).into_future());
    let lost = stream.acquire().await;
    stream.send(Event::Moved(v1::Moved {})).await;
    stream.resumed(1, &[(1, 5)], &[]).await;
    assert_eq!(stream.acquire().await, lost);
    stream.granted(1, 2, 6).await;
    drop(waiting.await.unwrap().unwrap());
    assert!(guard.is_held() && !b.has_stream());
}

#[tokio::test(start_paused = true)]
async fn an_attachment_that_is_unknown_is_made_again() {
    let (_net, mut node, client) = pair().await;
    let mut stream = node_stream(&mut node, &client).await;
    let guard = stream.grant(&client, "k", s(9.0), 5).await;
    let releasing = tokio::spawn(guard.release());
    stream.release().await;
    stream.error(1, 1, "NOT_ATTACHED").await;
    stream.resumed(1, &[(1, 5)], &[]).await;
    stream.release().await;
    stream.finished(1, 1).await;
    releasing.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_resume_that_finds_no_session_loses_the_guards() {
    let (_net, a, mut b, client, mut stream) = two().await;
    let guard = stream.grant(&client, "k", s(9.0), 5).await;
    a.set(State::Down);
    drop(stream);
    let mut next = b.stream().await;
    let resume = next.resume().await;
    let reason = v1::session_lost::Reason::Expired.into();
    next.send(Event::Lost(v1::SessionLost { session: 1, key: resume.key, reason })).await;
    assert_eq!(guard.lost().await, LostReason::SessionEnded);
}

#[tokio::test(start_paused = true)]
async fn a_resume_refused_for_a_higher_attachment_is_made_on_a_new_stream() {
    let (_net, _a, mut b, client, mut stream) = two().await;
    let guard = stream.grant(&client, "k", s(9.0), 5).await;
    stream.send(Event::Moved(v1::Moved {})).await;
    let refused = stream.resume().await;
    let reason = v1::session_lost::Reason::Superseded.into();
    stream.send(Event::Lost(v1::SessionLost { session: 1, key: refused.key, reason })).await;
    let mut next = b.stream().await;
    let resume = next.resumed(1, &[(1, 5)], &[]).await;
    assert!(resume.attachment > refused.attachment);
    settle().await;
    assert!(guard.is_held());
}

#[tokio::test(start_paused = true)]
async fn a_server_of_another_cluster_is_skipped() {
    let net = Net::default();
    let (mut a, stranger, mut c) = (net.node("a:1"), net.node_of("b:1", "cluster-2"), net.node("c:1"));
    stranger.set(State::Down);
    c.set(State::Down);
    let client = net.client("a:1,b:1,c:1");
    let mut stream = node_stream(&mut a, &client).await;
    let guard = stream.grant(&client, "k", s(9.0), 5).await;
    stranger.set(State::Up);
    a.set(State::Down);
    drop(stream);
    tokio::time::sleep(s(1.0)).await;
    let error = client.get("k").await.unwrap_err().to_string();
    assert!(error.contains("b:1: belongs to cluster cluster-2, not to cluster-1; skipped"), "{error}");
    c.set(State::Up);
    let mut next = c.stream().await;
    next.resumed(1, &[(1, 5)], &[]).await;
    settle().await;
    assert!(guard.is_held());
    // It was connected to, but never shown a secret.
    let mut stranger = stranger;
    stranger.stream().await.ends().await;
}

#[tokio::test(start_paused = true)]
async fn the_leader_that_a_server_names_is_asked_next() {
    let net = Net::default();
    let (a, b, mut leader) = (net.node("a:1"), net.node("b:1"), net.node("x:1"));
    let mut first = net.node("f:1");
    a.set(State::Down);
    b.set(State::Down);
    let client = net.client("f:1,a:1,b:1");
    let mut stream = node_stream(&mut first, &client).await;
    let _guard = stream.grant(&client, "k", s(9.0), 5).await;
    let metadata = [("leader_endpoint".to_owned(), "x:1".to_owned())];
    let details = ErrorDetails::with_error_info("NOT_LEADER", "raftlock", metadata);
    let status = tonic::Status::with_error_details(tonic::Code::Unavailable, "not the leader", details);
    for node in [&a, &b, &first] {
        node.set(State::Up);
        node.refuse(Some(status.clone()));
    }
    drop(stream);
    // Outside the configured ones, but its answer names the pinned cluster.
    leader.stream().await.resumed(1, &[(1, 5)], &[]).await;
}

#[tokio::test(start_paused = true)]
async fn a_second_connection_is_kept_and_used() {
    let (net, a, mut b, client, mut stream) = two().await;
    let guard = stream.grant(&client, "k", s(9.0), 5).await;
    settle().await;
    let dials = net.dials("b:1");
    assert!(dials >= 1 && !b.has_stream());
    a.set(State::Down);
    // No new connection can be made; the one that is there carries the stream.
    b.set(State::Down);
    drop(stream);
    b.stream().await.resumed(1, &[(1, 5)], &[]).await;
    assert_eq!(net.dials("b:1"), dials);
    settle().await;
    assert!(guard.is_held());
}

#[tokio::test(start_paused = true)]
async fn a_node_that_leads_nowhere_is_left_while_a_lock_is_held() {
    let (_net, a, mut b, client, mut stream) = two().await;
    let guard = stream.grant(&client, "k", s(9.0), 5).await;
    a.set(State::Down);
    drop(stream);
    // It answers every resume, but never as a leader.
    let mut lost = b.stream().await;
    let met = Instant::now();
    let refusing = tokio::spawn(async move {
        while let Some(op) = lost.op().await {
            let Op::Resume(resume) = op else { panic!("expected a resume: {op:?}") };
            let error = v1::OpError { reason: "NOT_LEADER".into(), retry_after_ms: 50, ..Default::default() };
            let refusal = v1::SessionError { key: resume.key, session: 1, error: Some(error) };
            lost.send(Event::Error(refusal)).await;
        }
    });
    let mut a = a;
    a.set(State::Up);
    let mut next = a.stream().await;
    assert!(met.elapsed() < s(1.2), "{:?}", met.elapsed());
    next.resumed(1, &[(1, 5)], &[]).await;
    settle().await;
    assert!(guard.is_held());
    refusing.abort();
}

#[tokio::test(start_paused = true)]
async fn a_longer_ttl_that_is_not_granted_yet_costs_no_lease() {
    let (_net, _a, mut b, client, mut stream) = two().await;
    let guard = stream.grant(&client, "k", s(9.0), 5).await;
    stream.renews = false;
    let asked = tokio::join!(tokio::time::timeout(s(0.5), guard.extend(s(3_600.0))), stream.renew()).1;
    assert_eq!(asked.ttl_ms, 3_600_000);
    let queued = Instant::now();
    let mut next = b.stream().await;
    next.resumed(1, &[(1, 5)], &[]).await;
    assert!(queued.elapsed() < s(5.0), "{:?}", queued.elapsed());
    assert!(next.is_quiet_for(s(30.0)).await);
    assert!(guard.is_held() && guard.remaining() > s(3_500.0));
}

#[tokio::test(start_paused = true)]
async fn a_long_ttl_makes_nobody_wait_for_a_silent_server() {
    let net = Net::default();
    let (mut a, mut b) = (net.node("a:1"), net.node("b:1"));
    b.set(State::Down);
    let client = net.client("a:1,b:1");
    let waiting = tokio::spawn(client.lock("k").ttl(s(3_600.0)).into_future());
    let mut silent = a.stream().await;
    assert!(matches!(silent.op().await, Some(Op::Open(_))));
    b.set(State::Up);
    let asked = Instant::now();
    let mut next = b.stream().await;
    assert!(asked.elapsed() < s(2.1), "opened after {:?}", asked.elapsed());
    next.open(1).await;
    next.acquire().await;
    next.granted(1, 1, 5).await;
    let _guard = waiting.await.unwrap().unwrap();
    // The same for a resume, with a lock held, and for a close.
    drop(next);
    let mut silent = a.stream().await;
    silent.resume().await;
    let asked = Instant::now();
    let mut next = b.stream().await;
    assert!(asked.elapsed() < s(2.1), "resumed after {:?}", asked.elapsed());
    next.resumed(1, &[(1, 5)], &[]).await;
    let closing = tokio::spawn(async move { client.close().await });
    next.close().await;
    let asked = Instant::now();
    let mut last = a.stream().await;
    assert!(asked.elapsed() < s(2.1), "closed after {:?}", asked.elapsed());
    last.resumed(1, &[(1, 5)], &[]).await;
    last.close().await;
    last.lost(1, v1::session_lost::Reason::Closed).await;
    closing.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_swallowed_request_is_found_by_a_resume_and_sent_again_once() {
    let (_net, _a, b, client, mut stream) = two().await;
    let guard = stream.grant(&client, "k", s(9.0), 5).await;
    let waiting = tokio::spawn(client.lock("l").ttl(s(9.0)).into_future());
    let first = stream.acquire().await;
    let swallowed = Instant::now();
    // Renewals are answered all the time; only this is not.
    stream.resumed(1, &[(1, 5)], &[]).await;
    assert!(swallowed.elapsed() >= s(2.0) && swallowed.elapsed() < s(2.1), "{:?}", swallowed.elapsed());
    assert_eq!(stream.acquire().await, first, "the same request in every word");
    // This time the cluster takes it, and its answer is what gets lost.
    stream.resumed(1, &[(1, 5), (2, 6)], &[]).await;
    let second = waiting.await.unwrap().unwrap();
    assert_eq!(second.token().get(), 6);
    // A swallowed release.
    let releasing = tokio::spawn(second.release());
    stream.release().await;
    stream.resumed(1, &[(1, 5), (2, 6)], &[]).await;
    assert_eq!(stream.release().await.token, 6);
    stream.finished(1, 2).await;
    releasing.await.unwrap().unwrap();
    // A swallowed cancel.
    let waiting = tokio::spawn(client.lock("m").ttl(s(9.0)).into_future());
    assert_eq!(stream.acquire().await.ticket, 3);
    stream.queued(1, 3, 1).await;
    settle().await;
    waiting.abort();
    assert_eq!(stream.cancel().await.ticket, 3);
    stream.resumed(1, &[(1, 5)], &[(3, 1)]).await;
    assert_eq!(stream.cancel().await.ticket, 3);
    stream.finished(1, 3).await;
    assert!(stream.is_quiet_for(s(20.0)).await);
    assert!(guard.is_held() && !b.has_stream());
}

#[tokio::test(start_paused = true)]
async fn a_way_that_swallows_requests_and_resumes_is_left() {
    let (_net, _a, mut b, client, mut stream) = two().await;
    let waiting = tokio::spawn(client.lock("k").wait(s(60.0)).into_future());
    stream.open(1).await;
    stream.acquire().await;
    let swallowed = Instant::now();
    stream.resume().await;
    let mut next = b.stream().await;
    assert!(swallowed.elapsed() < s(4.5), "{:?}", swallowed.elapsed());
    next.resumed(1, &[], &[]).await;
    assert_eq!(next.acquire().await.ticket, 1);
    next.granted(1, 1, 5).await;
    assert!(waiting.await.unwrap().unwrap().is_held());
}

/// How many streams and dials there are in so much time, each stream ended as `meet` says.
async fn attempts(net: &Net, nodes: &mut [&mut Node], time: f64, mut meet: impl AsyncFnMut(Script)) -> usize {
    let dials = |nodes: &[&mut Node]| nodes.iter().map(|node| net.dials(&node.address)).sum::<usize>();
    let (before, until, mut streams) = (dials(nodes), Instant::now() + s(time), 0);
    while Instant::now() < until {
        for node in nodes.iter_mut() {
            while node.has_stream() {
                streams += 1;
                meet(node.stream().await).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    streams.max(dials(nodes) - before)
}

#[tokio::test(start_paused = true)]
async fn while_a_server_drains_and_no_other_serves_nobody_spins() {
    let net = Net::default();
    let (mut a, mut b, c) = (net.node("a:1"), net.node("b:1"), net.node("c:1"));
    b.set(State::Down);
    c.set(State::Down);
    let client = net.client("a:1,b:1,c:1");
    let mut stream = node_stream(&mut a, &client).await;
    let guard = stream.grant(&client, "k", s(9.0), 5).await;
    tokio::time::sleep(s(2.0)).await;
    // Refused by its address, and by a server that names the one that drains as the leader.
    b.set(State::Up);
    let metadata = [("leader_endpoint".to_owned(), "a:1".to_owned())];
    let details = ErrorDetails::with_error_info("NOT_LEADER", "raftlock", metadata);
    b.refuse(Some(tonic::Status::with_error_details(tonic::Code::Unavailable, "not the leader", details)));
    let before = net.dials("b:1") + net.dials("c:1");
    for _ in 0..10 {
        stream.send(Event::Draining(v1::Draining {})).await;
        assert!(stream.is_quiet_for(s(1.0)).await);
    }
    let dials = net.dials("b:1") + net.dials("c:1") - before;
    assert!((4..60).contains(&dials), "{dials} dials in 10 s");
    assert!(guard.is_held());
    // It moves as soon as one serves.
    b.refuse(None);
    let mut next = b.stream().await;
    next.resumed(20, &[(1, 5)], &[]).await;
    settle().await;
    assert!(guard.is_held());
}

#[tokio::test(start_paused = true)]
async fn servers_that_all_drain_at_once_are_not_asked_in_a_spin() {
    let (net, mut a, mut b, client, mut stream) = two().await;
    let guard = stream.grant(&client, "k", s(30.0), 5).await;
    tokio::time::sleep(s(2.0)).await;
    stream.send(Event::Draining(v1::Draining {})).await;
    let mut kept = Vec::new();
    let meet = async |mut stream: Script| {
        stream.resumed(1, &[(1, 5)], &[]).await;
        stream.send(Event::Draining(v1::Draining {})).await;
        kept.push(stream);
    };
    let streams = attempts(&net, &mut [&mut a, &mut b], 10.0, meet).await;
    assert!((3..150).contains(&streams), "{streams} attempts in 10 s");
    assert!(guard.is_held());
}

#[tokio::test(start_paused = true)]
async fn streams_that_serve_and_end_at_once_do_not_spin() {
    for is_held in [false, true] {
        let (net, mut a, mut b, client, mut stream) = two().await;
        let guard = stream.grant(&client, "k", s(60.0), 5).await;
        let held: &[(u64, u64)] = if is_held { &[(1, 5)] } else { &[] };
        let guard = Some(guard).filter(|_| is_held);
        if !is_held {
            assert_eq!(stream.release().await.token, 5);
            stream.finished(1, 1).await;
        }
        tokio::time::sleep(s(2.0)).await;
        drop(stream);
        let meet = async |mut stream: Script| {
            stream.resumed(1, held, &[]).await;
            settle().await;
        };
        let streams = attempts(&net, &mut [&mut a, &mut b], 10.0, meet).await;
        let most = if is_held { 300 } else { 40 };
        assert!((6..most).contains(&streams), "{streams} attempts in 10 s, held: {is_held}");
        drop(guard);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_served_for_a_while_is_replaced_at_once_while_a_lock_is_held() {
    let (_net, mut node, client) = pair().await;
    let mut stream = node_stream(&mut node, &client).await;
    let guard = stream.grant(&client, "k", s(9.0), 5).await;
    for _ in 0..3 {
        assert!(stream.is_quiet_for(s(1.1)).await);
        drop(stream);
        let ended = Instant::now();
        stream = node.stream().await;
        assert!(ended.elapsed() < s(0.01), "{:?}", ended.elapsed());
        stream.resumed(1, &[(1, 5)], &[]).await;
    }
    assert!(guard.is_held());
}

#[tokio::test(start_paused = true)]
async fn the_first_stream_moves_to_the_leader_and_later_ones_stay() {
    let net = Net::default();
    let (mut a, mut b) = (net.node("a:1"), net.node("b:1"));
    // Whichever comes first names the other.
    a.follow("b:1");
    b.follow("a:1");
    let client = net.client("a:1,b:1");
    client.get("anything").await.unwrap();
    let (mut of_a, mut of_b) = (a.stream().await, b.stream().await);
    let is_b_used = tokio::time::timeout(s(0.1), of_a.ends()).await.is_ok();
    let (mut first, used, mut stream) = match is_b_used {
        true => (a, b, of_b),
        false => {
            of_b.ends().await;
            (b, a, of_a)
        }
    };
    let guard = stream.grant(&client, "k", s(9.0), 5).await;
    // It is lost, and the other names it as the leader again: there the client stays.
    used.set(State::Down);
    drop(stream);
    let mut back = first.stream().await;
    back.resumed(1, &[(1, 5)], &[]).await;
    used.set(State::Up);
    assert!(back.is_quiet_for(s(1.0)).await);
    assert!(!used.has_stream());
    assert!(guard.is_held());
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_cannot_be_reached_or_is_no_endpoint_changes_nothing() {
    for leader in ["b:1", "a:1", "elsewhere:1"] {
        let net = Net::default();
        let (mut a, b) = (net.node("a:1"), net.node("b:1"));
        a.follow(leader);
        b.set(State::Down);
        let client = net.client("a:1,b:1");
        let mut stream = node_stream(&mut a, &client).await;
        b.set(State::Up);
        let guard = stream.grant(&client, "k", s(9.0), 5).await;
        assert!(stream.is_quiet_for(s(1.0)).await, "{leader}");
        assert!(guard.is_held());
        assert!(!a.has_stream() && !b.has_stream(), "{leader}");
    }
}
