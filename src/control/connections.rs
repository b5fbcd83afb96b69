//! The connections of one listening socket: a bounded number, each for a bounded time.
//!
//! This file knows no protocol. A connection is a future that says when it has a request. While all
//! places are taken, a new connection takes the place of the one that has waited longest for its
//! request, so that connections without requests do not keep a probe or an operator out.
//!
//! Invariant: at most [`MOST_CONNECTIONS`] connections of a socket are served at a time, and none
//! stays longer than its protocol's time limit.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::{AbortHandle, JoinSet, yield_now};

/// Number of connections that one socket serves at a time. Monitoring and operators need a few.
pub const MOST_CONNECTIONS: usize = 64;

/// The open connections of one socket, oldest first.
#[derive(Debug, Default)]
pub struct Connections {
    tasks: JoinSet<()>,
    open: VecDeque<(AbortHandle, Answering)>,
}

/// Whether a connection has a request that is being answered.
#[derive(Debug, Clone, Default)]
pub struct Answering(Arc<AtomicBool>);

impl Answering {
    /// Records that the connection has a request, or that it waits for one.
    pub fn set(&self, is_answering: bool) {
        self.0.store(is_answering, Ordering::Relaxed);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Connections {
    /// Serves a connection. Closes another one if all places are taken.
    pub async fn serve<F>(&mut self, connection: impl FnOnce(Answering) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        while self.tasks.try_join_next().is_some() {}
        self.open.retain(|(task, _)| !task.is_finished());
        if self.open.len() >= MOST_CONNECTIONS {
            let waiting = self.open.iter().position(|(_, answering)| !answering.get());
            if let Some((task, _)) = self.open.remove(waiting.unwrap_or(0)) {
                task.abort();
            }
        }
        let answering = Answering::default();
        self.open.push_back((self.tasks.spawn(connection(answering.clone())), answering));
        // The closed connection gives its descriptor back, and those with requests are answered,
        // before the next one is accepted.
        yield_now().await;
    }

    /// Waits after a failed `accept`. Most likely the process has no free descriptor.
    pub async fn wait_for_descriptor() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn longest_waiting_connection_makes_room() {
        let mut connections = Connections::default();
        let mut ends = Vec::new();
        for number in 0..MOST_CONNECTIONS + 2 {
            let (alive, ended) = oneshot::channel::<()>();
            ends.push(ended);
            let connection = |answering: Answering| async move {
                answering.set(number == 0);
                let _alive = alive;
                std::future::pending::<()>().await;
            };
            connections.serve(connection).await;
        }
        let closed =
            |end: &mut oneshot::Receiver<()>| end.try_recv() == Err(oneshot::error::TryRecvError::Closed);
        let closed: Vec<usize> = (0..ends.len()).filter(|number| closed(&mut ends[*number])).collect();
        assert_eq!(closed, [1, 2], "the first one is being answered, and the next two wait longest");
    }
}
