//! Strangers at the ports of a real node: connections that say nothing, HTTP/2 spoken wrongly, and floods. Whatever they
//! do, the node serves others and its memory stays bounded. The numbers are rows of the list of bad input.

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::future::join_all;
use prost::Message;
use raftlock_proto::v1::session_op::Op;
use raftlock_proto::v1::{LockRequest, OpenSession, SessionOp, SessionRequest};
use raftlock_tests::cluster::PATIENCE;
use support::Processes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

const LOCK: &str = "/raftlock.v1.RaftLock/Lock";
const SESSION: &str = "/raftlock.v1.RaftLock/Session";
const HOME: [u8; 4] = [127, 0, 0, 1];

async fn dial(address: &str, from: [u8; 4]) -> TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind((from, 0).into()).expect("it is loopback");
    socket.connect(address.parse().expect("an address")).await.expect("it listens")
}

/// Whether the other end hangs up within `limit`, whatever it says first.
async fn is_shut(stream: &mut TcpStream, limit: Duration) -> bool {
    timeout(limit, stream.read_to_end(&mut Vec::new())).await.is_ok()
}

async fn count_shut(streams: &mut [TcpStream], limit: Duration) -> usize {
    let shut = join_all(streams.iter_mut().map(|stream| is_shut(stream, limit))).await;
    shut.into_iter().filter(|shut| *shut).count()
}

/// The most memory that the process ever had, in bytes.
fn peak_memory(pid: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("Linux tells");
    line.trim().trim_end_matches(" kB").parse::<usize>().expect("a number") * 1024
}

/// What one open stream may cost. Seen in a build without optimisation: 8 kB for a call, 14 kB for a session stream.
const STREAM_BYTES: usize = 24 * 1024;

/// What all floods of frames together may cost: some megabytes went by, and a hundred kilobytes were kept.
const FLOODS_BYTES: usize = 4 * 1024 * 1024;

/// What a client may cost that does not read: 4 MiB of events wait for it, as structures a few times as large.
const SLOW_CONSUMER_BYTES: usize = 48 * 1024 * 1024;

fn assert_grew_less(pid: u32, before: usize, most: usize) {
    let grown = peak_memory(pid) - before;
    assert!(grown < most, "it grew by {grown} bytes, {most} are allowed");
}

fn lock_message(name: &str, compressed: bool) -> Bytes {
    let request = LockRequest {
        resource_id: name.into(),
        client_id: "c".into(),
        ttl_seconds: 60,
        ..LockRequest::default()
    };
    framed(&request, compressed)
}

/// As gRPC sends a message.
fn framed(message: &impl Message, compressed: bool) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(compressed.into());
    bytes.put_u32(message.encoded_len() as u32);
    message.encode(&mut bytes).expect("there is room");
    bytes.freeze()
}

/// What came of a call: the status of HTTP, and that of gRPC if there was one.
type Answer = Result<(u16, Option<String>), h2::Error>;

/// One well-formed HTTP/2 request with any headers.
async fn call(stream: TcpStream, path: &str, headers: &[(&str, &str)], body: Bytes) -> Answer {
    let (client, connection) = h2::client::handshake(stream).await?;
    let connection = tokio::spawn(connection);
    let mut request = http::Request::post(format!("http://node{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(()).expect("it is well-formed");
    let answered = async {
        let (response, mut send) = client.ready().await?.send_request(request, false)?;
        send.send_data(body, true)?;
        let mut response = response.await?;
        let (http, mut grpc) = (response.status().as_u16(), response.headers().get("grpc-status").cloned());
        while let Some(data) = response.body_mut().data().await {
            let size = data?.len();
            response.body_mut().flow_control().release_capacity(size)?;
        }
        if let Some(trailers) = response.body_mut().trailers().await? {
            grpc = grpc.or(trailers.get("grpc-status").cloned());
        }
        Ok((http, grpc.map(|status| status.to_str().expect("ASCII").to_owned())))
    };
    let answer = timeout(PATIENCE, answered).await.expect("an answer, or an end");
    connection.abort();
    answer
}

const GRPC: [(&str, &str); 2] = [("content-type", "application/grpc"), ("te", "trailers")];

/// A lock that nobody else asks for, from an address of one's own.
async fn serves(address: &str, from: [u8; 4], name: &str) {
    let answer = call(dial(address, from).await, LOCK, &GRPC, lock_message(name, false)).await;
    assert_eq!(answer.expect("it is served"), (200, Some("0".to_owned())), "{name}");
}

#[tokio::test]
async fn row_41_who_only_connects_takes_nobody_elses_place_and_is_shown_out() {
    let mut node = Processes::start(1, &[]).await;
    node.kill(0);
    node.nodes[0].descriptors_max = Some(256);
    node.spawn(0);
    node.ready().await;
    let address = node.nodes[0].listen.clone();
    // Of 256 descriptors 160 are for clients, and half of those for any one address.
    let mut crowd = Vec::new();
    for _ in 0..400 {
        crowd.push(dial(&address, HOME).await);
    }
    let shut = count_shut(&mut crowd, Duration::from_secs(2)).await;
    assert!((320..400).contains(&shut), "{shut} of 400");
    serves(&address, [127, 0, 0, 2], "meanwhile").await;
    assert_eq!(count_shut(&mut crowd, PATIENCE).await, 400, "nobody stands in the door for ever");
    serves(&address, HOME, "afterwards").await;
    let told = node.log(0).matches("connections from one address are refused").count();
    assert_eq!(told, 1, "an operator reads of it once");

    let peer = node.nodes[0].peer.clone();
    let mut crowd = Vec::new();
    for _ in 0..100 {
        crowd.push(dial(&peer, HOME).await);
    }
    let shut = count_shut(&mut crowd, Duration::from_secs(2)).await;
    assert!((68..100).contains(&shut), "{shut} of 100");
    serves(&address, HOME, "the other port is not theirs").await;
}

#[tokio::test]
async fn row_42_a_connection_whose_other_end_is_gone_is_closed() {
    let node = Processes::start(1, &[]).await;
    let mut raw = Raw::greet(&node.nodes[0].listen).await;
    let begun = tokio::time::Instant::now();
    // It reads, and answers no ping.
    while raw.hear().await.is_some() {}
    let took = begun.elapsed();
    assert!(took > Duration::from_secs(9) && took < Duration::from_secs(25), "{took:?}");
}

#[tokio::test]
async fn row_30_to_32_what_is_no_call_of_ours_gets_an_answer_that_says_so() {
    let node = Processes::start(1, &[]).await;
    let address = node.nodes[0].listen.clone();
    let ask = async |path: &str, headers: &[(&str, &str)], body| {
        call(dial(&address, HOME).await, path, headers, body).await
    };
    let unimplemented = (200, Some("12".to_owned()));
    let compressed = [GRPC[0], GRPC[1], ("grpc-encoding", "gzip")];
    let answer = ask(LOCK, &compressed, lock_message("k", true)).await;
    assert_eq!(answer.expect("an answer"), unimplemented, "row 30: compressed");

    let long = "x".repeat(2_000);
    let names: Vec<String> = (0..10).map(|at| format!("x-{at}")).collect();
    let headers: Vec<(&str, &str)> =
        GRPC.into_iter().chain(names.iter().map(|name| (name.as_str(), long.as_str()))).collect();
    let answer = ask(LOCK, &headers, lock_message("k", false)).await;
    assert!(answer.is_err() || answer.is_ok_and(|(http, _)| http == 431), "row 31: headers of 20 kB");

    let answer = ask("/raftlock.v1.RaftLock/Nothing", &GRPC, Bytes::new()).await;
    assert_eq!(answer.expect("an answer"), unimplemented, "row 32: no such method");
    let answer = ask("/nothing.v1.Nothing/Lock", &GRPC, Bytes::new()).await;
    assert_eq!(answer.expect("an answer"), unimplemented, "row 32: no such service");
    let html = [("content-type", "text/html")];
    let answer = ask(LOCK, &html, Bytes::from_static(b"<html>")).await;
    assert_eq!(answer.expect("an answer"), (415, None), "row 32: wrong content type");
    let invalid = (200, Some("3".to_owned()));
    let answer = ask(LOCK, &GRPC, Bytes::from_static(b"<html>")).await;
    assert_eq!(answer.expect("an answer"), invalid, "row 32: no gRPC message");

    let mut plain = dial(&address, HOME).await;
    plain.write_all(b"GET / HTTP/1.1\r\nHost: node\r\n\r\n").await.expect("it is open");
    let mut heard = Vec::new();
    let ended = timeout(Duration::from_secs(2), plain.read_to_end(&mut heard)).await;
    assert!(ended.is_ok(), "row 32: HTTP/1 is shown out at once, not after the limit of the door");
    serves(&address, HOME, "k").await;
}

/// HTTP/2 frame by frame (RFC 9113, section 4.1).
struct Raw {
    stream: TcpStream,
    /// How many streams at once the node allows.
    streams_max: u32,
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// A setting of RFC 9113, section 6.5.2.
const MAX_CONCURRENT_STREAMS: u32 = 3;

/// Error codes of RFC 9113, section 7.
const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let size = (payload.len() as u32).to_be_bytes();
    let head = [&size[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head, payload].concat()
}

/// A header block without compression (RFC 7541, section 6.2.2).
fn grpc_headers(path: &str) -> Vec<u8> {
    let text = |text: &str| [&[text.len() as u8], text.as_bytes()].concat();
    // POST and http are in the static table, and so are the names of the path, the authority and the content type.
    let literal = |name: &[u8], value: &str| [name, &text(value)].concat();
    [
        vec![0x83, 0x86],
        literal(&[0x04], path),
        literal(&[0x01], "node"),
        literal(&[0x0f, 0x10], "application/grpc"),
        literal(&[&[0x00], text("te").as_slice()].concat(), "trailers"),
    ]
    .concat()
}

impl Raw {
    async fn greet(address: &str) -> Raw {
        let mut stream = dial(address, HOME).await;
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("it is open");
        stream.write_all(&frame(SETTINGS, 0, 0, &[])).await.expect("it is open");
        let (kind, _, settings) = hear(&mut stream).await.expect("it greets back");
        assert_eq!(kind, SETTINGS, "a node's first words");
        let number = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte));
        let setting = settings.chunks(6).find(|setting| number(&setting[..2]) == MAX_CONCURRENT_STREAMS);
        let streams_max = number(&setting.expect("there is a bound")[2..]);
        Raw { stream, streams_max }
    }

    /// The next frame: its kind, its stream, what is in it. `None` at the end.
    async fn hear(&mut self) -> Option<(u8, u32, Vec<u8>)> {
        hear(&mut self.stream).await
    }

    /// Says `words` until all is said or the node hangs up, and listens to it meanwhile and a little longer.
    async fn flood(self, words: impl Iterator<Item = Vec<u8>>) -> Heard {
        let (mut read, mut write) = self.stream.into_split();
        let listen = tokio::spawn(async move {
            let mut heard = Heard::default();
            let quiet = Duration::from_secs(2);
            while let Ok(frame) = timeout(quiet, hear(&mut read)).await {
                let Some((kind, stream, payload)) = frame else {
                    heard.hung_up = true;
                    break;
                };
                let code =
                    |at: usize| payload[at..at + 4].try_into().map(u32::from_be_bytes).expect("4 bytes");
                match kind {
                    GOAWAY => heard.goodbye = Some(code(4)),
                    RST_STREAM => drop(heard.resets.insert(stream, code(0))),
                    _ => heard.others += 1,
                }
            }
            heard
        });
        let mut said = 0;
        let mut words = words.peekable();
        while words.peek().is_some() {
            let some: Vec<u8> = words.by_ref().take(64).flatten().collect();
            if write.write_all(&some).await.is_err() {
                break;
            }
            said += some.len();
        }
        let mut heard = listen.await.expect("no panic");
        heard.said = said;
        heard
    }
}

async fn hear(stream: &mut (impl AsyncReadExt + Unpin)) -> Option<(u8, u32, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let size = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; size as usize];
    stream.read_exact(&mut payload).await.ok()?;
    Some((head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload))
}

/// What a node said to a flood.
#[derive(Debug, Default)]
struct Heard {
    said: usize,
    /// The code of its GOAWAY.
    goodbye: Option<u32>,
    hung_up: bool,
    /// By stream, why it was reset.
    resets: BTreeMap<u32, u32>,
    others: usize,
}

fn stream_number(at: u32) -> u32 {
    2 * at + 1
}

#[tokio::test]
async fn row_43_streams_above_the_bound_are_refused_one_by_one() {
    let node = Processes::start(1, &[]).await;
    let address = node.nodes[0].listen.clone();
    let before = peak_memory(node.pid(0));
    let raw = Raw::greet(&address).await;
    let (bound, more) = (raw.streams_max, 100);
    let begins = |at| frame(HEADERS, END_HEADERS, stream_number(at), &grpc_headers(LOCK));
    let heard = raw.flood((0..bound + more).map(begins)).await;
    let refused: Vec<u32> = heard.resets.keys().copied().collect();
    assert_grew_less(node.pid(0), before, bound as usize * STREAM_BYTES);
    assert_eq!(refused, (bound..bound + more).map(stream_number).collect::<Vec<_>>());
    assert!(heard.resets.values().all(|code| *code == REFUSED_STREAM), "{heard:?}");
    serves(&address, HOME, "k").await;
}

#[tokio::test]
async fn row_44_floods_end_the_connection_and_cost_little_memory() {
    let node = Processes::start(1, &[]).await;
    let address = node.nodes[0].listen.clone();
    let pid = node.pid(0);
    let before = peak_memory(pid);
    let calmed = |heard: &Heard| heard.hung_up && heard.goodbye.is_none_or(|code| code == ENHANCE_YOUR_CALM);
    let headers = grpc_headers(LOCK);

    let rapid = (0..100_000).flat_map(|at| {
        let begin = frame(HEADERS, END_HEADERS, stream_number(at), &headers);
        [begin, frame(RST_STREAM, 0, stream_number(at), &8u32.to_be_bytes())]
    });
    let heard = Raw::greet(&address).await.flood(rapid).await;
    assert!(calmed(&heard), "rapid reset: {heard:?}");

    let begin = frame(HEADERS, 0, 1, &headers);
    let more = [&[0x00, 1, b'x', 100][..], &[b'y'; 100]].concat().repeat(100);
    let endless = std::iter::once(begin).chain((0..100_000).map(|_| frame(CONTINUATION, 0, 1, &more)));
    let heard = Raw::greet(&address).await.flood(endless).await;
    assert!(calmed(&heard), "CONTINUATION: {heard:?}");

    let begin = frame(HEADERS, END_HEADERS, 1, &grpc_headers(SESSION));
    let empty = std::iter::once(begin).chain((0..1_000_000).map(|_| frame(DATA, 0, 1, &[])));
    let heard = Raw::greet(&address).await.flood(empty).await;
    assert!(calmed(&heard), "empty DATA: {heard:?}");

    // These are answered one by one, and nothing is kept of them.
    for polite in [frame(SETTINGS, 0, 0, &[]), frame(PING, 0, 0, &[0; 8])] {
        let heard = Raw::greet(&address).await.flood((0..300_000).map(|_| polite.clone())).await;
        assert!(!heard.hung_up && heard.others >= 300_000, "{heard:?}");
    }
    assert_grew_less(pid, before, FLOODS_BYTES);
    serves(&address, HOME, "k").await;
}

#[tokio::test]
async fn streams_that_are_opened_and_say_nothing_cost_little_memory() {
    let node = Processes::start(1, &[]).await;
    let address = node.nodes[0].listen.clone();
    let before = peak_memory(node.pid(0));
    let begins = |at| frame(HEADERS, END_HEADERS, stream_number(at), &grpc_headers(SESSION));
    let floods = (0..8).map(async |_| {
        let raw = Raw::greet(&address).await;
        let bound = raw.streams_max;
        (bound, raw.flood((0..bound).map(begins)).await)
    });
    let heard = join_all(floods).await;
    assert!(heard.iter().all(|(_, heard)| heard.resets.is_empty()), "{heard:?}");
    let streams: u32 = heard.iter().map(|(bound, _)| bound).sum();
    assert_grew_less(node.pid(0), before, streams as usize * STREAM_BYTES);
    serves(&address, HOME, "k").await;
}

/// A message with as many requests as fit, each of which is refused in more words than it has itself.
fn many_refused() -> Bytes {
    let open = |key| SessionOp { op: Some(Op::Open(OpenSession { key, ..OpenSession::default() })) };
    let mut message = SessionRequest::default();
    for key in 1.. {
        message.ops.push(open(key));
        if key % 1_000 == 0 && message.encoded_len() > 32 * 1024 {
            return framed(&message, false);
        }
    }
    unreachable!("the keys do not end")
}

#[tokio::test]
async fn row_45_who_does_not_read_is_cut_off_and_holds_nobody_up() {
    let node = Processes::start(1, &[]).await;
    let address = node.nodes[0].listen.clone();
    let before = peak_memory(node.pid(0));
    let (client, connection) =
        h2::client::handshake(dial(&address, HOME).await).await.expect("it speaks HTTP/2");
    let connection = tokio::spawn(connection);
    let mut request = http::Request::post(format!("http://node{SESSION}"));
    for (name, value) in GRPC {
        request = request.header(name, value);
    }
    let request = request.body(()).expect("it is well-formed");
    let (response, mut send) =
        client.ready().await.expect("it is open").send_request(request, false).expect("a stream");
    // Many times what may wait for one client, and nothing of what comes back is taken.
    let message = many_refused();
    for at in 0..100 {
        send.reserve_capacity(message.len());
        while send.capacity() < message.len() {
            let more = timeout(PATIENCE, std::future::poll_fn(|cx| send.poll_capacity(cx))).await;
            if !matches!(more.expect("it goes on reading, or ends"), Some(Ok(_))) {
                break;
            }
        }
        if send.send_data(message.clone(), false).is_err() {
            break;
        }
        if at % 10 == 0 {
            let begun = tokio::time::Instant::now();
            serves(&address, HOME, &format!("lock-{at}")).await;
            assert!(begun.elapsed() < Duration::from_secs(2), "others are held up: {:?}", begun.elapsed());
        }
    }
    assert_grew_less(node.pid(0), before, SLOW_CONSUMER_BYTES);
    let mut body = timeout(PATIENCE, response).await.expect("headers").expect("an answer").into_body();
    while let Some(data) = timeout(PATIENCE, body.data()).await.expect("the end comes") {
        let Ok(data) = data else { break };
        body.flow_control().release_capacity(data.len()).expect("it was taken");
    }
    let trailers = body.trailers().await.expect("an end in order").expect("with a status");
    assert_eq!(
        trailers.get("grpc-status").map(|code| code.as_bytes()),
        Some(&b"10"[..]),
        "ABORTED: {trailers:?}"
    );
    assert_grew_less(node.pid(0), before, SLOW_CONSUMER_BYTES);
    connection.abort();
}
