//! The end of a client: what is freed, in what time, and that nothing of it goes on.

mod support;

use std::sync::{Arc, Mutex};

use raftlock::{Client, ErrorKind, GuardState, LostReason};
use raftlock_proto::v1::session_lost::Reason;
use raftlock_proto::v1::session_op::Op;
use support::*;
use tokio::task::JoinHandle;
use tokio::time::Instant;

async fn watched() -> (Node, Client, Arc<Mutex<Option<JoinHandle<()>>>>) {
    let net = Net::default();
    let node = net.node("a:1");
    let (seams, keeper) = net.seams();
    let client = Client::builder().endpoints("a:1").seams(seams).lazy().unwrap();
    (node, client, keeper)
}

async fn ended(keeper: &Mutex<Option<JoinHandle<()>>>) {
    let keeper = keeper.lock().unwrap().take().expect("asked once");
    keeper.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn closing_frees_everything_and_later_calls_say_so() {
    let (mut node, client, keeper) = watched().await;
    let mut stream = node_stream(&mut node, &client).await;
    let guard = stream.grant(&client, "k", s(9.0), 5).await;
    let waiting = tokio::spawn(client.lock("l").ttl(s(9.0)).into_future());
    stream.acquire().await;
    stream.queued(1, 2, 1).await;
    let closing = {
        let client = client.clone();
        tokio::spawn(async move { client.close().await })
    };
    // The holder knows before the cluster does.
    assert_eq!(guard.lost().await, LostReason::ClientClosed);
    assert_eq!(guard.state(), GuardState::Lost(LostReason::ClientClosed));
    assert_eq!(waiting.await.unwrap().unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(stream.cancel().await.ticket, 2);
    assert_eq!(stream.close().await.session, 1);
    assert!(!closing.is_finished());
    assert_eq!(client.lock("m").await.unwrap_err().kind(), ErrorKind::Closed);
    stream.lost(1, Reason::Closed).await;
    closing.await.unwrap();
    stream.ends().await;
    assert_eq!(client.lock("m").await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(client.get("m").await.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(guard.release().await.unwrap_err().kind(), ErrorKind::Lost);
    client.close().await;
    ended(&keeper).await;
}

#[tokio::test(start_paused = true)]
async fn a_release_under_way_is_answered_by_the_close() {
    let (mut node, client, _keeper) = watched().await;
    let mut stream = node_stream(&mut node, &client).await;
    let guard = stream.grant(&client, "k", s(9.0), 5).await;
    let releasing = tokio::spawn(guard.release());
    stream.release().await;
    let closing = tokio::spawn(async move { client.close().await });
    stream.close().await;
    stream.lost(1, Reason::Closed).await;
    releasing.await.unwrap().unwrap();
    closing.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn closing_is_repeated_on_the_next_stream() {
    let (mut node, client, _keeper) = watched().await;
    let mut stream = node_stream(&mut node, &client).await;
    let guard = stream.grant(&client, "k", s(9.0), 5).await;
    drop(guard);
    let closing = tokio::spawn(async move { client.close().await });
    stream.release().await;
    stream.close().await;
    drop(stream);
    let mut next = node.stream().await;
    next.resumed(1, &[(1, 5)], &[]).await;
    next.release().await;
    next.close().await;
    next.lost(1, Reason::Expired).await;
    closing.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_refused_close_is_repeated_until_it_is_answered() {
    let (mut node, client, keeper) = watched().await;
    let mut stream = node_stream(&mut node, &client).await;
    let guard = stream.grant(&client, "k", s(60.0), 5).await;
    let started = Instant::now();
    let closing = tokio::spawn(async move { client.close().await });
    for reason in ["QUEUE_BUSY", "NOT_LEADER", "OUTCOME_UNKNOWN"] {
        assert_eq!(stream.close().await.session, 1);
        stream.error(1, 0, reason).await;
    }
    assert_eq!(stream.close().await.session, 1);
    stream.error(1, 0, "NOT_ATTACHED").await;
    stream.resumed(1, &[(1, 5)], &[]).await;
    assert_eq!(stream.close().await.session, 1);
    stream.lost(1, Reason::Closed).await;
    closing.await.unwrap();
    assert!(started.elapsed() < s(1.0), "{:?}", started.elapsed());
    assert!(!guard.is_held());
    ended(&keeper).await;
}

#[tokio::test(start_paused = true)]
async fn a_session_whose_open_was_not_answered_is_closed_as_well() {
    let (mut node, client, keeper) = watched().await;
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.lock("k").await.map(drop) }
    });
    let mut stream = node.stream().await;
    let Some(Op::Open(first)) = stream.op().await else { panic!("expected an open") };
    let closing = tokio::spawn(async move { client.close().await });
    assert_eq!(waiting.await.unwrap().unwrap_err().kind(), ErrorKind::Closed);
    // The cluster made the session, and its answer is lost.
    drop(stream);
    let mut next = node.stream().await;
    assert_eq!(next.open(1).await.secret, first.secret);
    assert_eq!(next.close().await.session, 1);
    next.lost(1, Reason::Closed).await;
    closing.await.unwrap();
    ended(&keeper).await;
}

#[tokio::test(start_paused = true)]
async fn closing_without_a_server_ends_within_five_seconds() {
    let (mut node, client, keeper) = watched().await;
    let mut stream = node_stream(&mut node, &client).await;
    let guard = stream.grant(&client, "k", s(60.0), 5).await;
    node.set(State::Down);
    drop(stream);
    let started = Instant::now();
    client.close().await;
    assert_eq!(started.elapsed().as_secs(), 5);
    assert!(!guard.is_held());
    ended(&keeper).await;
}

#[tokio::test(start_paused = true)]
async fn dropping_client_and_guards_ends_session_and_keeper() {
    let (mut node, client, keeper) = watched().await;
    let mut stream = node_stream(&mut node, &client).await;
    let guard = stream.grant(&client, "k", s(9.0), 5).await;
    drop(client);
    assert!(stream.is_quiet_for(s(20.0)).await, "a guard keeps its lease without its client");
    assert!(guard.is_held());
    drop(guard);
    assert_eq!(stream.release().await.token, 5);
    assert_eq!(stream.close().await.session, 1);
    stream.lost(1, Reason::Closed).await;
    stream.ends().await;
    ended(&keeper).await;
}

#[tokio::test(start_paused = true)]
async fn dropping_an_unused_client_ends_its_keeper() {
    let (_node, client, keeper) = watched().await;
    drop(client);
    ended(&keeper).await;
}

#[tokio::test(start_paused = true)]
async fn when_the_keepers_runtime_is_gone_its_guards_are_lost() {
    let (mut node, client, keeper) = watched().await;
    let mut stream = node_stream(&mut node, &client).await;
    let guard = stream.grant(&client, "k", s(9.0), 5).await;
    keeper.lock().unwrap().take().unwrap().abort();
    assert_eq!(guard.lost().await, LostReason::ClientClosed);
    assert!(!guard.is_held());
    assert_eq!(client.lock("l").await.unwrap_err().kind(), ErrorKind::Closed);
}
