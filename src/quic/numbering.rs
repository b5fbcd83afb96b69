//! The number of a connection, which the leader tells the other host on a stream of its own.
//!
//! A stream is opened by the host that sends the number. It carries 8 bytes, big endian.
#![forbid(unsafe_code)]

use std::time::SystemTime;

use quinn::{Connection, ConnectionError};

/// Number of a connection that the leader has not numbered yet. It is lower than every other
/// number.
pub(super) const UNNUMBERED: u64 = 0;

/// A number above `last`, and above those of an earlier process, unless the clock was set back.
pub(super) fn next(last: u64) -> u64 {
    let since_1970 = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let now_us = u64::try_from(since_1970.as_micros()).unwrap_or(u64::MAX);
    now_us.max(last.saturating_add(1))
}

/// Sends the number of a connection. If the peer has dialled, this also tells it that this host
/// accepts its certificate.
pub(super) fn send(connection: &Connection, number: u64) {
    let connection = connection.clone();
    tokio::task::spawn_local(async move {
        // If the connection ends before, the tasks that read from it see that.
        if let Ok(mut stream) = connection.open_uni().await {
            let _ = stream.write_all(&number.to_be_bytes()).await;
        }
    });
}

/// Waits for the number of a connection.
pub(super) async fn receive(connection: &Connection) -> Result<u64, ConnectionError> {
    let mut number = [0; 8];
    // A stream that ends early counts as the lowest number.
    let _ = connection.accept_uni().await?.read_exact(&mut number).await;
    Ok(u64::from_be_bytes(number))
}
