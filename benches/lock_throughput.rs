//! Acquire and awaited release through the SDK, with so many in flight at once, each on a lock of its own.
//!
//! Every such pair is two round trips, and a log entry each that is flushed before it is answered. With more in flight
//! more share a flush.

use criterion::{BenchmarkId, Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use futures_util::future::join_all;
use raftlock::Client;
use raftlock_benches::folder_on_disk;
use raftlock_examples::cluster::LocalCluster;
use std::time::Duration;
use tokio::runtime::Runtime;

const IN_FLIGHT: [usize; 4] = [1, 16, 64, 256];

fn lock_throughput(c: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    for (title, nodes) in [("one_node", 1), ("three_nodes", 3)] {
        let dir = folder_on_disk(env!("CARGO_TARGET_TMPDIR"));
        let cluster = runtime.block_on(LocalCluster::start(nodes, dir.path())).expect("a cluster");
        let client = runtime.block_on(Client::connect(cluster.endpoints())).expect("a leader");
        let mut group = c.benchmark_group(format!("lock_throughput/{title}"));
        group.sampling_mode(SamplingMode::Flat).sample_size(10);
        group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
        for in_flight in IN_FLIGHT {
            group.throughput(Throughput::Elements(in_flight as u64));
            group.bench_function(BenchmarkId::from_parameter(in_flight), |bencher| {
                bencher
                    .to_async(&runtime)
                    .iter(|| join_all((0..in_flight).map(|number| acquire_and_release(&client, number))));
            });
        }
        group.finish();
        runtime.block_on(client.close());
        runtime.block_on(cluster.stop());
    }
}

async fn acquire_and_release(client: &Client, number: usize) {
    let guard = client.lock(format!("bench:{number}")).await.expect("granted");
    guard.release().await.expect("released");
}

criterion_group!(benches, lock_throughput);
criterion_main!(benches);
