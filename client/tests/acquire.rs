//! Asking for a lock: how it ends, when it ends, and that nothing is left behind when nobody waits any more.

mod support;

use std::time::Duration;

use futures_util::FutureExt;
use raftlock::{Client, Error, ErrorKind, LockGuard};
use raftlock_proto::v1;
use raftlock_proto::v1::session_op::Op;
use raftlock_proto::v1::ticket_outcome::Outcome;
use support::*;
use tokio::task::JoinSet;
use tokio::time::Instant;

fn held_by(owner: &str, place: u32) -> v1::Contention {
    v1::Contention {
        kind: v1::contention::Kind::Held.into(),
        name: "k".into(),
        owner: owner.into(),
        token: 4,
        remaining_ms: 2_500,
        holder_count: 1,
        queue_length: 3,
        place,
    }
}

#[tokio::test(start_paused = true)]
async fn an_acquire_that_is_dropped_leaves_the_queue() {
    let (_net, mut node, client) = pair().await;
    let waiting = tokio::spawn(client.lock("k").into_future());
    let mut stream = node.stream().await;
    stream.open(1).await;
    stream.acquire().await;
    stream.queued(1, 1, 1).await;
    settle().await;
    waiting.abort();
    assert_eq!(stream.cancel().await.ticket, 1);
    // Unanswered, it is sent again on the next stream.
    drop(stream);
    let mut next = node.stream().await;
    next.resumed(1, &[], &[(1, 1)]).await;
    assert_eq!(next.cancel().await.ticket, 1);
    next.finished(1, 1).await;
    assert!(next.is_quiet_for(s(5.0)).await);
}

#[tokio::test(start_paused = true)]
async fn an_acquire_that_is_dropped_before_any_answer_is_cancelled_or_released() {
    let (_net, mut node, client) = pair().await;
    let waiting = tokio::spawn(client.lock("k").into_future());
    let mut stream = node.stream().await;
    stream.open(1).await;
    stream.acquire().await;
    waiting.abort();
    assert_eq!(stream.cancel().await.ticket, 1);
    // The grant crossed the cancel, which releases it: nothing more to say.
    stream.granted(1, 1, 5).await;
    stream.finished(1, 1).await;
    assert!(stream.is_quiet_for(s(5.0)).await);
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_nobody_takes_is_released() {
    let (_net, mut node, client) = pair().await;
    let mut waiting = client.lock("k").into_future();
    assert!((&mut waiting).now_or_never().is_none());
    let mut stream = node.stream().await;
    stream.open(1).await;
    stream.acquire().await;
    stream.granted(1, 1, 5).await;
    // The grant is in the future's hands, but it is dropped before it is polled.
    settle().await;
    drop(waiting);
    let release = stream.release().await;
    assert_eq!((release.ticket, release.token), (1, 5));
}

#[tokio::test(start_paused = true)]
async fn an_acquire_that_is_dropped_before_it_is_sent_leaves_no_trace() {
    let (_net, mut node, client) = pair().await;
    let waiting = tokio::spawn(client.lock("k").into_future());
    let mut stream = node.stream().await;
    let Some(Op::Open(open)) = stream.op().await else { panic!("expected an open") };
    waiting.abort();
    settle().await;
    let opened = v1::SessionOpened { key: open.key, session: 1, number: open.number };
    stream.send(v1::session_event::Event::Opened(opened)).await;
    assert!(stream.is_quiet_for(s(5.0)).await);
}

#[tokio::test(start_paused = true)]
async fn a_try_does_not_queue() {
    let (_net, mut node, client) = pair().await;
    let trying = tokio::spawn(client.lock("k").try_acquire());
    let mut stream = node.stream().await;
    stream.open(1).await;
    assert_eq!(stream.acquire().await.wait, Some(v1::acquire::Wait::WaitMs(0)));
    stream.outcome(1, 1, Outcome::Refused(held_by("b", 0))).await;
    assert!(trying.await.unwrap().unwrap().is_none());
    let trying = tokio::spawn(client.lock("k").try_acquire());
    assert_eq!(stream.acquire().await.acked, 2);
    stream.granted(1, 2, 5).await;
    assert_eq!(trying.await.unwrap().unwrap().unwrap().token().get(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_the_cluster_ends_names_holder_and_place() {
    let (_net, mut node, client) = pair().await;
    let waiting = tokio::spawn(client.lock("k").wait(s(2.0)).into_future());
    let mut stream = node.stream().await;
    stream.open(1).await;
    assert_eq!(stream.acquire().await.wait, Some(v1::acquire::Wait::WaitMs(2_000)));
    stream.queued(1, 1, 3).await;
    tokio::time::sleep(s(2.2)).await;
    stream.outcome(1, 1, Outcome::WaitEnded(held_by("b:7", 2))).await;
    match waiting.await.unwrap().unwrap_err() {
        Error::WaitTimeout(timeout) => {
            assert_eq!((timeout.holder.as_deref(), timeout.place), (Some("b:7"), Some(2)));
            assert_eq!((timeout.queue_length, timeout.remaining), (3, Some(s(2.5))));
        }
        other => panic!("{other}"),
    }
    let refused = tokio::spawn(client.lock("k").wait(Duration::ZERO).into_future());
    stream.acquire().await;
    stream.outcome(1, 2, Outcome::Refused(held_by("b:7", 0))).await;
    let error = refused.await.unwrap().unwrap_err();
    assert_eq!((error.kind(), error.to_string().contains("b:7")), (ErrorKind::WaitTimeout, true));
}

#[tokio::test(start_paused = true)]
async fn a_wait_ends_by_the_callers_own_clock() {
    let (_net, mut node, client) = pair().await;
    let started = Instant::now();
    let waiting = tokio::spawn(client.lock("k").wait(s(2.0)).into_future());
    let mut stream = node.stream().await;
    stream.open(1).await;
    stream.acquire().await;
    stream.queued(1, 1, 3).await;
    let error = waiting.await.unwrap().unwrap_err();
    assert!(started.elapsed() < s(2.6), "{:?}", started.elapsed());
    match error {
        Error::WaitTimeout(timeout) => {
            assert_eq!((timeout.place, timeout.name.as_str()), (Some(3), "k"))
        }
        other => panic!("{other}"),
    }
    assert_eq!(stream.cancel().await.ticket, 1);

    // Without a stream it ends on time, and says why no server was asked.
    node.set(State::Down);
    drop(stream);
    settle().await;
    let started = Instant::now();
    let error = client.lock("k").wait(s(7.0)).await.unwrap_err();
    assert_eq!(started.elapsed().as_millis() / 10, 700);
    assert_eq!(error.kind(), ErrorKind::WaitTimeout);
    assert!(error.to_string().contains("a:1: connection refused"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn without_any_server_every_call_ends_and_names_each_endpoint() {
    let net = Net::default();
    let (down, dark, no_leader) = (net.node("a:1"), net.node("b:1"), net.node("c:1"));
    down.set(State::Down);
    dark.set(State::Dark);
    no_leader.refuse(Some(tonic::Status::unavailable("no leader is known")));
    let endpoints = "a:1,b:1,c:1,nowhere:1";
    let started = Instant::now();
    let error = net.builder(endpoints).connect().await.unwrap_err();
    assert_eq!(started.elapsed().as_secs(), 5);
    let text = error.to_string();
    for part in [
        "a:1: connection refused",
        "b:1: no answer within",
        "c:1: no leader is known",
        "nowhere:1: no such host",
    ] {
        assert!(text.contains(part), "{part:?} is missing in {text}");
    }
    assert!(error.is_retryable());

    let client = net.builder(endpoints).connect_timeout(s(1.0)).lazy().unwrap();
    let started = Instant::now();
    let results = tokio::join!(
        client.lock("k").into_future(),
        client.lock("k").auto_renew(false).into_future(),
        client.lock("k").wait(s(60.0)).into_future(),
        client.lock("k").try_acquire(),
        client.get("k"),
        client.list(""),
    );
    assert_eq!(started.elapsed().as_millis() / 10, 100);
    let kinds = [
        results.0.unwrap_err().kind(),
        results.1.unwrap_err().kind(),
        results.2.unwrap_err().kind(),
        results.3.unwrap_err().kind(),
        results.4.unwrap_err().kind(),
        results.5.unwrap_err().kind(),
    ];
    assert_eq!(kinds, [ErrorKind::Unavailable; 6]);
}

#[tokio::test(start_paused = true)]
async fn after_the_first_contact_a_wait_outlasts_any_outage() {
    let (_net, mut node, client) = pair().await;
    drop(node_stream(&mut node, &client).await);
    node.set(State::Down);
    settle().await;
    let waiting = tokio::spawn(client.lock("k").into_future());
    tokio::time::sleep(s(120.0)).await;
    assert_eq!(client.lock("k").try_acquire().await.unwrap_err().kind(), ErrorKind::Unavailable);
    node.set(State::Up);
    let mut stream = node.stream().await;
    stream.open(1).await;
    stream.acquire().await;
    stream.granted(1, 1, 5).await;
    drop(waiting.await.unwrap().unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_release_without_an_answer_is_reported_and_goes_on() {
    let (_net, mut node, client) = pair().await;
    let mut stream = node_stream(&mut node, &client).await;
    let guard = stream.grant(&client, "k", s(60.0), 5).await;
    let started = Instant::now();
    assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(started.elapsed().as_secs(), 5);
    stream.release().await;
    drop(stream);
    let mut next = node.stream().await;
    next.resumed(1, &[(1, 5)], &[]).await;
    assert_eq!(next.release().await.token, 5);
}

#[tokio::test(start_paused = true)]
async fn what_the_cluster_had_no_time_for_is_sent_again() {
    let (_net, mut node, client) = pair().await;
    let waiting = tokio::spawn(client.lock("k").into_future());
    let mut stream = node.stream().await;
    let Some(Op::Open(open)) = stream.op().await else { panic!("expected an open") };
    let error = v1::OpError { reason: "QUEUE_BUSY".into(), retry_after_ms: 300, ..Default::default() };
    let busy = v1::SessionError { key: open.key, session: 0, error: Some(error.clone()) };
    stream.send(v1::session_event::Event::Error(busy)).await;
    let refused = Instant::now();
    assert_eq!(stream.open(1).await.secret, open.secret);
    assert!(refused.elapsed() >= s(0.3) && refused.elapsed() < s(0.4));
    for reason in ["QUEUE_BUSY", "OUTCOME_UNKNOWN"] {
        assert_eq!(stream.acquire().await.ticket, 1);
        stream.error(1, 1, reason).await;
    }
    assert_eq!(stream.acquire().await.ticket, 1);
    stream.granted(1, 1, 5).await;
    drop(waiting.await.unwrap().unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_told_by_its_kind() {
    let (_net, mut node, client) = pair().await;
    let mut stream = node_stream(&mut node, &client).await;
    let mut opened = false;
    let cases = [
        ("CAPACITY_MISMATCH", ErrorKind::CapacityMismatch),
        ("QUEUE_FULL", ErrorKind::QueueFull),
        ("LIMIT_REACHED", ErrorKind::LimitReached),
        ("INVALID_ARGUMENT", ErrorKind::InvalidArgument),
        ("SOMETHING_NEW", ErrorKind::Refused),
    ];
    for (reason, kind) in cases {
        let waiting = tokio::spawn(client.lock("k").permits(1, 3).into_future());
        if !std::mem::replace(&mut opened, true) {
            stream.open(1).await;
        }
        let acquire = stream.acquire().await;
        assert_eq!((acquire.mode(), acquire.permits, acquire.capacity), (v1::Mode::Permits, 1, 3));
        stream.error(1, acquire.ticket, reason).await;
        assert_eq!(waiting.await.unwrap().unwrap_err().kind(), kind);
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_the_cluster_does_not_take_fails_its_requests() {
    let (_net, mut node, client) = pair().await;
    let waiting = tokio::spawn(client.lock("k").into_future());
    let mut stream = node.stream().await;
    let Some(Op::Open(open)) = stream.op().await else { panic!("expected an open") };
    let error = v1::OpError { reason: "LIMIT_REACHED".into(), ..Default::default() };
    let refused = v1::SessionError { key: open.key, session: 0, error: Some(error) };
    stream.send(v1::session_event::Event::Error(refused)).await;
    assert_eq!(waiting.await.unwrap().unwrap_err().kind(), ErrorKind::LimitReached);
}

#[tokio::test(start_paused = true)]
async fn bad_arguments_are_told_before_anything_is_sent() {
    let net = Net::default();
    let client = net.client("nowhere:1");
    let bad = [
        client.lock(""),
        client.lock("a\nb"),
        client.lock("x".repeat(513)),
        client.lock_all(Vec::<String>::new()),
        client.lock_all(["a", "a"]),
        client.lock("k").ttl(s(0.9)),
        client.lock("k").permits(4, 3),
        client.lock("k").metadata("k", "x".repeat(4096)),
    ];
    for builder in bad {
        let shown = format!("{builder:?}");
        assert_eq!(builder.await.unwrap_err().kind(), ErrorKind::InvalidArgument, "{shown}");
    }
    assert_eq!(client.get("").await.unwrap_err().kind(), ErrorKind::InvalidArgument);
}

#[tokio::test(start_paused = true)]
async fn several_locks_are_one_request_and_one_guard() {
    let (_net, mut node, client) = pair().await;
    let waiting = tokio::spawn(client.lock_all(["a", "b"]).shared().into_future());
    let mut stream = node.stream().await;
    stream.open(1).await;
    let acquire = stream.acquire().await;
    assert_eq!((acquire.names, acquire.mode), (vec!["a".to_owned(), "b".into()], v1::Mode::Shared.into()));
    stream.granted(1, 1, 5).await;
    let guard = waiting.await.unwrap().unwrap();
    assert_eq!((guard.name(), guard.names()), ("a", &["a".to_owned(), "b".into()][..]));
}

#[tokio::test(start_paused = true)]
async fn a_burst_travels_in_few_messages_within_their_limit() {
    let (_net, mut node, client) = pair().await;
    let mut stream = node_stream(&mut node, &client).await;
    let mut waiting = JoinSet::new();
    for i in 0..3_000 {
        waiting.spawn(client.lock(format!("{i:0100}")).into_future());
    }
    stream.open(1).await;
    for ticket in 1..=3_000 {
        // The script refuses a message that is too long.
        assert_eq!(stream.acquire().await.ticket, ticket);
    }
    assert!(stream.messages < 20, "{} messages", stream.messages);
    for ticket in 1..=3_000 {
        stream.granted(1, ticket, ticket).await;
    }
    let guards = waiting.join_all().await;
    assert!(guards.iter().all(|guard| guard.as_ref().is_ok_and(LockGuard::is_held)));
}

#[tokio::test(start_paused = true)]
async fn a_first_contact_is_shared_by_all_clones() {
    let (_net, mut node, client) = pair().await;
    let clone: Client = client.clone();
    let connected = tokio::spawn(async move { clone.lock("k").into_future().await });
    let mut stream = node.stream().await;
    stream.open(1).await;
    stream.acquire().await;
    let second = tokio::spawn(client.lock("l").into_future());
    assert_eq!(stream.acquire().await.session, 1);
    connected.abort();
    second.abort();
}
