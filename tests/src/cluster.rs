//! The cluster of `raftlock_server::testing`, with the raw clients that only our own tests want.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::time::Duration;

use raftlock_proto::v1::raft_lock_client::RaftLockClient;
use raftlock_server::config::Config;
use raftlock_server::node::Seams;
use raftlock_server::testing::Cluster;
pub use raftlock_server::testing::PATIENCE;
use tonic::transport::Channel;

/// Three nodes, or however many a test wants.
pub struct TestCluster(Cluster);

impl TestCluster {
    /// Starts `count` nodes that found one cluster, and waits until all of them serve.
    pub async fn start(count: usize) -> TestCluster {
        TestCluster(Cluster::start(count).await)
    }

    /// The same, with `change` made to each node's configuration.
    pub async fn start_with(count: usize, change: impl Fn(&mut Config)) -> TestCluster {
        TestCluster(Cluster::start_with(count, change).await)
    }

    /// The same, each node with seams of its own: its clock, its disk's space.
    pub async fn start_on(
        count: usize,
        change: impl Fn(&mut Config),
        seams: impl Fn(usize, Seams) -> Seams + Send + Sync + 'static,
    ) -> TestCluster {
        TestCluster(Cluster::start_on(count, change, seams).await)
    }

    /// A raw client of one node.
    pub async fn client(&self, at: usize) -> RaftLockClient<Channel> {
        RaftLockClient::connect(format!("http://{}", self.address(at))).await.expect("the node listens")
    }

    /// Stops every node that is up.
    pub async fn end(self) {
        self.0.end().await;
    }
}

impl Deref for TestCluster {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.0
    }
}

impl DerefMut for TestCluster {
    fn deref_mut(&mut self) -> &mut Cluster {
        &mut self.0
    }
}

/// Asks again until the answer is there, or the test's patience is over.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let asked = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| panic!("never: {what}"))
}

/// Copies the files of one folder into another, as a backup of a data directory does.
pub fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a folder");
    for entry in std::fs::read_dir(from).expect("a folder") {
        let file = entry.expect("an entry").path();
        std::fs::copy(&file, to.join(file.file_name().expect("a name"))).expect("it can be copied");
    }
}
