//! The thread on which handshakes are made, and the way of a connection from there to the
//! endpoint's thread.
//!
//! The cryptography of a handshake takes about as long as that of a thousand packets. So a
//! connection is driven on the thread `hopsack-handshake` until its handshake is complete, and on
//! the endpoint's thread from then on. quinn answers the first datagram of an attempt while it
//! holds the endpoint's lock; packets wait that long, which [`super::admission`] bounds.
//!
//! It does not decide which attempts are answered. Invariant: a connection that fails before its
//! handshake is complete is never driven on the endpoint's thread.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use quinn::{
    AsyncTimer, AsyncUdpSocket, ClientConfig, Connecting, Connection, Endpoint, Incoming, Runtime,
    TokioRuntime,
};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::error::QuicError;
use super::handshake_error::{HandshakeError, TIMEOUT};

thread_local! {
    /// Tells when the handshake is complete of the connection that is being made on this thread.
    static COMPLETE: RefCell<Option<Arc<Notify>>> = const { RefCell::new(None) };
}

/// The thread on which handshakes are made.
#[derive(Debug)]
pub(super) struct HandshakeThread {
    handle: Handle,
    stop: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

impl HandshakeThread {
    pub(super) fn start() -> Result<Self, QuicError> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(QuicError::Runtime)?;
        let (handle, stop) = (runtime.handle().clone(), Arc::new(Notify::new()));
        let stopped = stop.clone();
        let body = move || runtime.block_on(stopped.notified());
        let thread = std::thread::Builder::new().name("hopsack-handshake".into()).spawn(body);
        Ok(Self { handle, stop, thread: Some(thread.map_err(QuicError::Thread)?) })
    }

    /// quinn's view of the two threads. It must be called on the endpoint's thread.
    pub(super) fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(TwoThreads { endpoint: Handle::current(), handshakes: self.handle.clone() })
    }

    /// Dials a host.
    pub(super) async fn dial(
        &self,
        endpoint: &Endpoint,
        config: ClientConfig,
        (remote, server_name): (SocketAddr, String),
    ) -> Result<Connection, HandshakeError> {
        let endpoint = endpoint.clone();
        self.complete(move || Ok(endpoint.connect_with(config, remote, &server_name)?)).await
    }

    /// Answers a host that dials.
    pub(super) async fn answer(&self, incoming: Incoming) -> Result<Connection, HandshakeError> {
        self.complete(move || Ok(incoming.accept()?)).await
    }

    async fn complete(
        &self,
        begin: impl FnOnce() -> Result<Connecting, HandshakeError> + Send + 'static,
    ) -> Result<Connection, HandshakeError> {
        let handshake = self.handle.spawn(async move {
            let complete = Arc::new(Notify::new());
            COMPLETE.set(Some(complete.clone()));
            let connecting = begin();
            COMPLETE.set(None);
            let connection = timeout(TIMEOUT, connecting?).await.map_err(|_| HandshakeError::Timeout)??;
            complete.notify_one();
            Ok(connection)
        });
        handshake.await.unwrap_or(Err(HandshakeError::Stopped))
    }
}

impl Drop for HandshakeThread {
    fn drop(&mut self) {
        self.stop.notify_one();
        if let Some(thread) = self.thread.take() {
            // A panic was logged when it happened.
            let _ = thread.join();
        }
    }
}

/// Lets quinn drive connections on two threads.
#[derive(Debug)]
struct TwoThreads {
    endpoint: Handle,
    handshakes: Handle,
}

impl Runtime for TwoThreads {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        // The timer of a connection stays where it was made, so it is made where the connection
        // will be for most of its life.
        let _guard = self.endpoint.enter();
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        match COMPLETE.take() {
            Some(complete) => {
                self.handshakes.spawn(drive(future, complete, self.endpoint.clone()));
            }
            None => {
                self.endpoint.spawn(future);
            }
        }
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket)
    }
}

/// Drives a connection here until its handshake is complete, and then on the endpoint's thread.
async fn drive(
    mut connection: Pin<Box<dyn Future<Output = ()> + Send>>,
    complete: Arc<Notify>,
    endpoint: Handle,
) {
    tokio::select! {
        () = &mut connection => {}
        () = complete.notified() => {
            endpoint.spawn(connection);
        }
    }
}
