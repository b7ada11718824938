//! A runtime of a node's own, inside an application.
//!
//! A node must answer its leader within an election timeout. On the application's runtime, one call there that blocks
//! would cost the cluster its leader, and the application its locks.

use std::future::Future;
use std::sync::Arc;

use tokio::runtime::{Builder, Runtime};

use super::{Node, NodeError, Seams, panic_text};
use crate::config::Config;

/// Enough for a node: one thread may be in the middle of an apply while the other answers the leader.
const THREADS: usize = 2;

/// The runtime; what runs on it ends with it.
pub struct Apart(Option<Runtime>);

impl Apart {
    fn new() -> std::io::Result<Apart> {
        let mut builder = Builder::new_multi_thread();
        let runtime = builder.worker_threads(THREADS).thread_name("raftlock-node").enable_all().build()?;
        Ok(Apart(Some(runtime)))
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, NodeError> {
        let runtime = self.0.as_ref().expect("it is taken out only when this is dropped");
        let ended = runtime.spawn(work).await;
        ended.map_err(|error| match error.try_into_panic() {
            Ok(panic) => NodeError::Panicked(panic_text(&*panic)),
            Err(error) => NodeError::Panicked(error.to_string()),
        })
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            // A drop may happen on any runtime's thread, and must not wait.
            runtime.shutdown_background();
        }
    }
}

impl Node {
    /// As [`Node::start`], on a runtime of its own and with its client ready: for a node inside an application.
    ///
    /// # Errors
    /// As [`Node::start`], and [`NodeError::System`].
    ///
    /// # Cancel safety
    /// Dropping the future ends what was started.
    pub(crate) async fn start_apart(config: Config, seams: Seams) -> Result<Node, NodeError> {
        let apart = Apart::new().map_err(|error| NodeError::System(Arc::new(error)))?;
        let mut node = apart.run(Node::start(config, seams)).await??;
        node.apart = Some(apart);
        match node.inside.client() {
            Ok(_) => Ok(node),
            Err(error) => {
                node.shutdown().await;
                Err(NodeError::System(Arc::new(std::io::Error::other(error))))
            }
        }
    }
}
