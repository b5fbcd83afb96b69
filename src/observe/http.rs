//! Metrics and health over HTTP: `/metrics` (OpenMetrics), `/healthz`, `/readyz`.
//!
//! hyper reads the requests. This is not a general web server: it answers one GET request a
//! connection and then closes the connection, so that no idle connection stays.
//!
//! `/readyz` fails only until the start is complete. It lists problems but does not fail because of
//! them: forwarding goes on, and a probe that fails would make an orchestrator restart a daemon
//! that works.
//!
//! Invariant: what clients send, or do not send, costs a bounded number of descriptors and bytes.

use std::convert::Infallible;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::registry::Registry;
use crate::control::{Answering, Connections};

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

/// Answers requests on `listener` until the future is dropped.
pub async fn serve(registry: Arc<Registry>, listener: TcpListener) {
    let mut connections = Connections::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let registry = registry.clone();
                connections.serve(|answering| exchange(registry, stream, answering)).await;
            }
            Err(_) => Connections::wait_for_descriptor().await,
        }
    }
}

/// Serves one connection: one request and its answer.
async fn exchange(registry: Arc<Registry>, stream: TcpStream, answering: Answering) {
    /// A client that sends its request more slowly is closed.
    const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
    /// A connection that takes longer, such as one of a client that reads nothing, is closed.
    const TIMEOUT: Duration = Duration::from_secs(10);
    /// Longest head of a request; hyper's smallest limit.
    const MAX_HEAD_BYTES: usize = 8192;
    let service = service_fn(|request: Request<_>| {
        answering.set(true);
        let registry = &registry;
        async move { Ok::<_, Infallible>(answer(registry, request.method(), request.uri().path()).await) }
    });
    let connection = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(MAX_HEAD_BYTES)
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service);
    // A malformed request has been answered, and a client that hangs up needs no answer.
    let _ = timeout(TIMEOUT, connection).await;
}

async fn answer(registry: &Registry, method: &Method, path: &str) -> Response<String> {
    let (status, kind, body) = match (method, path) {
        (&Method::GET, "/metrics") => (StatusCode::OK, OPENMETRICS, registry.metrics().await),
        (&Method::GET, "/healthz") => (StatusCode::OK, PLAIN, "hopsack is running\n".to_owned()),
        (&Method::GET, "/readyz") => match registry.waiting() {
            None => (StatusCode::OK, PLAIN, readiness(registry)),
            Some(reason) => {
                (StatusCode::SERVICE_UNAVAILABLE, PLAIN, format!("hopsack is not ready: {reason}\n"))
            }
        },
        (&Method::GET, _) => (StatusCode::NOT_FOUND, PLAIN, "try /metrics, /healthz or /readyz\n".to_owned()),
        _ => (StatusCode::METHOD_NOT_ALLOWED, PLAIN, "only GET is answered\n".to_owned()),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// The body of `/readyz` once the start is complete: one line, and one more for each problem.
fn readiness(registry: &Registry) -> String {
    let status = registry.summary();
    let mut text = format!("hopsack is ready; its map is {} s old\n", status.map_age_seconds);
    for problem in &status.problems {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "problem for {} s: {problem}", problem.since_seconds);
    }
    text
}
