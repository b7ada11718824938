//! A process that stands still, as under SIGSTOP: what is spawned through [`Ice`] is not polled while it is frozen. Its
//! clock goes on, and so does what the kernel does for it: bytes that arrive wait in its sockets.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use super::lock;

/// The state of one process. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Ice(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    frozen: bool,
    /// Who wanted to be polled meanwhile.
    wakers: Vec<Waker>,
}

impl Ice {
    pub(crate) fn freeze(&self) {
        lock(&self.0).frozen = true;
    }

    pub(crate) fn thaw(&self) {
        let mut state = lock(&self.0);
        state.frozen = false;
        state.wakers.drain(..).for_each(Waker::wake);
    }

    /// The same future, which stands still with the process.
    pub(crate) fn around<F: Future>(&self, inner: F) -> Freezable<F> {
        Freezable { ice: self.clone(), inner: Box::pin(inner) }
    }
}

pub(crate) struct Freezable<F> {
    ice: Ice,
    inner: Pin<Box<F>>,
}

impl<F: Future> Future for Freezable<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        {
            let mut state = lock(&self.ice.0);
            if state.frozen {
                state.wakers.push(context.waker().clone());
                return Poll::Pending;
            }
        }
        self.inner.as_mut().poll(context)
    }
}
