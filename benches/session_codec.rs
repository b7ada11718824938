//! Messages of a session stream, to bytes and back: what the client and the leader each do for every operation, beside a
//! copy of the bytes.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use prost::Message;
use raftlock_proto::v1::{
    Acquire, Granted, SessionEvent, SessionOp, SessionRequest, SessionResponse, TicketOutcome, acquire,
    session_event, session_op, ticket_outcome,
};

/// Operations in a message: one alone, and what a busy client sends at once.
const OPERATIONS: [u64; 2] = [1, 64];

fn session_codec(c: &mut Criterion) {
    let mut group = c.benchmark_group("session_codec");
    group.sample_size(20).warm_up_time(Duration::from_millis(500));
    group.measurement_time(Duration::from_secs(1));
    for operations in OPERATIONS {
        group.throughput(Throughput::Elements(operations));
        let request = SessionRequest { ops: (0..operations).map(acquire).collect() };
        let response = SessionResponse { events: (0..operations).map(granted).collect() };
        let (asked, answered) = (request.encode_to_vec(), response.encode_to_vec());
        group.bench_function(BenchmarkId::new("request_encode", operations), |bencher| {
            bencher.iter(|| black_box(&request).encode_to_vec());
        });
        group.bench_function(BenchmarkId::new("request_decode", operations), |bencher| {
            bencher.iter(|| SessionRequest::decode(black_box(&asked[..])).expect("encoded just now"));
        });
        group.bench_function(BenchmarkId::new("response_encode", operations), |bencher| {
            bencher.iter(|| black_box(&response).encode_to_vec());
        });
        group.bench_function(BenchmarkId::new("response_decode", operations), |bencher| {
            bencher.iter(|| SessionResponse::decode(black_box(&answered[..])).expect("encoded just now"));
        });
        group.bench_function(BenchmarkId::new("floor_copy", operations), |bencher| {
            bencher.iter(|| black_box(&asked).clone());
        });
    }
    group.finish();
}

fn acquire(number: u64) -> SessionOp {
    let op = Acquire {
        session: 300,
        ticket: 100_000 + number,
        names: vec![format!("payment:{number:08}")],
        wait: Some(acquire::Wait::WaitForever(true)),
        acked: 100_000,
        ..Acquire::default()
    };
    SessionOp { op: Some(session_op::Op::Acquire(op)) }
}

fn granted(number: u64) -> SessionEvent {
    let granted = Granted { token: (1 << 50) + number };
    let outcome = TicketOutcome {
        session: 300,
        ticket: 100_000 + number,
        outcome: Some(ticket_outcome::Outcome::Granted(granted)),
    };
    SessionEvent { event: Some(session_event::Event::Outcome(outcome)) }
}

criterion_group!(benches, session_codec);
criterion_main!(benches);
