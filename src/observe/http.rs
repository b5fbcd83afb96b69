//! Metrics and health over HTTP: `/metrics` (OpenMetrics), `/healthz`, `/readyz`.
//!
//! This is not a general web server: it answers one GET request a connection and then closes the
//! connection.
//!
//! `/readyz` fails only until the start is complete. It lists problems but does not fail because of
//! them: forwarding goes on, and a probe that fails would make an orchestrator restart a daemon
//! that works.

use std::fmt::Write as _;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::registry::Registry;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

/// Answers requests on `listener` until the future is dropped.
pub async fn serve(registry: Arc<Registry>, listener: TcpListener) {
    /// A connection that takes longer than this is closed.
    const TIMEOUT: Duration = Duration::from_secs(5);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let registry = registry.clone();
                tokio::spawn(tokio::time::timeout(TIMEOUT, async move { answer(&registry, stream).await }));
            }
            // Most likely the process has no free descriptor: wait until some are closed.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn answer(registry: &Registry, mut stream: TcpStream) -> io::Result<()> {
    let mut request = [0; 1024];
    let mut length = 0;
    while length < request.len() && !request[..length].windows(2).any(|end| end == b"\r\n") {
        match stream.read(&mut request[length..]).await? {
            0 => break,
            n => length += n,
        }
    }
    let line = String::from_utf8_lossy(&request[..length]);
    let mut words = line.split_ascii_whitespace();
    let (status, kind, body) = match (words.next(), words.next()) {
        (Some("GET"), Some("/metrics")) => ("200 OK", OPENMETRICS, registry.metrics().await),
        (Some("GET"), Some("/healthz")) => ("200 OK", PLAIN, "hopsack is running\n".to_owned()),
        (Some("GET"), Some("/readyz")) => match registry.waiting() {
            None => ("200 OK", PLAIN, readiness(registry)),
            Some(reason) => ("503 Service Unavailable", PLAIN, format!("hopsack is not ready: {reason}\n")),
        },
        (Some("GET"), _) => ("404 Not Found", PLAIN, "try /metrics, /healthz or /readyz\n".to_owned()),
        _ => ("405 Method Not Allowed", PLAIN, "only GET is answered\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
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
