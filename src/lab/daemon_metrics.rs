//! Metrics of a daemon, read over HTTP from inside its namespace.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use crate::sys::netns::in_netns;

/// Text of a daemon's `/metrics`; empty if it does not answer.
pub(super) fn scrape(netns: &str) -> String {
    let exchange = || {
        let mut stream = TcpStream::connect("127.0.0.1:9285")?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: lab\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    in_netns(netns, exchange).and_then(|answer| answer).unwrap_or_default()
}

/// Counters that exist once for each worker, summed over the workers. The keys are the metric names
/// without `hopsack_` and `_total`.
pub(super) fn worker_counters(text: &str) -> BTreeMap<String, f64> {
    let mut sums = BTreeMap::new();
    for line in text.lines() {
        let counter = line.strip_prefix("hopsack_").and_then(|line| line.split_once("_total{worker="));
        let value = line.rsplit_once(' ').and_then(|(_, value)| value.parse::<f64>().ok());
        if let (Some((name, _)), Some(value)) = (counter, value) {
            *sums.entry(name.to_owned()).or_default() += value;
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worker_counters_are_summed() {
        let metrics =
            "hopsack_turns_total{worker=\"0\"} 3\nhopsack_turns_total{worker=\"1\"} 4\nhopsack_ready 1\n";
        assert_eq!(worker_counters(metrics), BTreeMap::from([("turns".to_owned(), 7.0)]));
    }
}
