//! Metrics and health over HTTP: `/metrics` (OpenMetrics), `/healthz`, `/readyz`.
//!
//! Workers count in their own cache lines; a collector sums them at scrape time, so that a packet pays for no metric.
//! Names follow the Prometheus conventions: base units, `_total`, few labels. This is no web server: it answers GET, one
//! request a connection.
//!
//! Invariant: a scrape changes nothing.

use std::fmt::{Error, Write as _};
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::control::{Drop, State, Watch};
use crate::forward::{Counter, Counters};
use crate::quic::Counts;
use crate::store::etcd::Health;

/// Everything that is scraped.
#[derive(Debug)]
pub struct Metrics {
    watch: Arc<Watch>,
    /// Seconds from when the store told of a change to the new table in force.
    pub publish_seconds: Histogram,
}

impl Metrics {
    /// Of a node.
    #[must_use]
    pub fn new(watch: Arc<Watch>) -> Self {
        // From a table of ten leases to one of ten thousand on a busy machine; 5 ms is what is promised.
        let buckets = [
            2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 1.5e-3, 2e-3, 2.5e-3, 3e-3, 4e-3, 5e-3, 7.5e-3, 0.01,
            0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
        ];
        Self { watch, publish_seconds: Histogram::new(buckets) }
    }

    /// Answers on `listener` until dropped.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        /// Longer than any scraper needs for a request line.
        const PATIENCE: Duration = Duration::from_secs(5);
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let metrics = self.clone();
                    tokio::spawn(tokio::time::timeout(PATIENCE, async move { metrics.answer(stream).await }));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    async fn answer(&self, mut stream: TcpStream) -> io::Result<()> {
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
            (Some("GET"), Some("/metrics")) => ("200 OK", OPENMETRICS, self.text().await),
            (Some("GET"), Some("/healthz")) => ("200 OK", PLAIN, "hopsack is running\n".to_owned()),
            (Some("GET"), Some("/readyz")) => match self.watch.ready() {
                Ok(state) => ("200 OK", PLAIN, readiness(state)),
                Err(reason) => {
                    ("503 Service Unavailable", PLAIN, format!("hopsack is not ready: {reason}\n"))
                }
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

    /// The exposition.
    pub async fn text(&self) -> String {
        let mut registry = Registry::with_prefix("hopsack");
        // A node that does not stand yet has counted nothing.
        if let Ok(state) = self.watch.ready() {
            let snapshot = Snapshot { state: state.clone(), drops: state.drops().await };
            registry.register_collector(Box::new(snapshot));
        }
        let help = "Seconds from when the store told of a change to the new table in force";
        registry.register("fib_publish_seconds", help, self.publish_seconds.clone());
        let mut text = String::new();
        match prometheus_client::encoding::text::encode(&mut text, &registry) {
            Ok(()) => text,
            // Writing to a String cannot fail; if it did, a scraper must not take half a page for a whole one.
            Err(Error) => String::new(),
        }
    }
}

/// Ready, with a word about what is not in order: forwarding goes on, so a probe must not fail.
fn readiness(state: &State) -> String {
    let facts = state.facts();
    let mut text = format!("hopsack is ready, by a map that is {} s old", facts.map_age().as_secs());
    for problem in [&facts.trouble, &facts.underlay_trouble, &facts.alarm].into_iter().flatten() {
        text += &format!("; {problem}");
    }
    text + "\n"
}

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

/// One scrape.
#[derive(Debug)]
struct Snapshot {
    state: Arc<State>,
    drops: Vec<Drop>,
}

type Count = fn(&Counters) -> &Counter;

/// Counters that each worker has, with their help.
const PER_WORKER: &[(&str, &str, Count)] = &[
    ("egress_packets", "Packets sent to peers", |c| &c.egress.packets),
    ("egress_bytes", "Bytes of inner packets sent to peers", |c| &c.egress.bytes),
    ("ingress_packets", "Packets from peers written to the overlay device", |c| &c.ingress.packets),
    ("ingress_bytes", "Bytes of inner packets written to the overlay device", |c| &c.ingress.bytes),
    ("tun_reads", "Reads of the overlay device", |c| &c.tun_reads),
    ("egress_sends", "Messages sent, each a datagram or a train of them", |c| &c.egress_sends),
    ("udp_receives", "Messages received, each a datagram or a train of them", |c| &c.udp_receives),
    ("udp_datagrams", "Datagrams received", |c| &c.udp_datagrams),
    ("sealed_datagrams", "Datagrams sent that were sealed", |c| &c.sealed),
    ("opened_datagrams", "Sealed datagrams received and found whole", |c| &c.opened),
    ("egress_bundles", "Bundles of small packets among the datagrams sent", |c| &c.egress_bundles),
    ("ingress_bundles", "Bundles of small packets among the datagrams received", |c| &c.ingress_bundles),
    ("ingress_writes", "Writes to the overlay device", |c| &c.ingress_writes),
    ("turns", "Times that a worker woke up", |c| &c.turns),
    ("system_calls", "System calls of the data path", |c| &c.system_calls),
    ("busy_polls", "Times that a worker spun before it slept, or rather than sleep", |c| &c.busy_polls),
    ("send_fallbacks", "Trains that the kernel refused and that left as single datagrams", |c| {
        &c.send_fallbacks
    }),
    ("bundle_fallbacks", "Bundles that were too long for their path and whose packets left bare", |c| {
        &c.bundle_fallbacks
    }),
    ("write_fallbacks", "Merged packets that the device refused and that went in singly", |c| {
        &c.write_fallbacks
    }),
    ("queue_marks", "Packets of bulk marked CE because a queue of ours stood", |c| &c.queue_marks),
    ("icmp_suppressed", "ICMP errors not sent for the rate limit", |c| &c.icmp_suppressed),
];

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), Error> {
        let accounts = self.state.view.accounts();
        let mut family = encoder.encode_descriptor("build", "The program", None, MetricType::Info)?;
        family
            .encode_info(&[("version", env!("CARGO_PKG_VERSION")), ("engine", self.state.view.engine())])?;

        for (name, help, count) in PER_WORKER {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (worker, account) in accounts.iter().enumerate() {
                let counter = ConstCounter::new(count(&account.counters).get());
                counter.encode(family.encode_family(&[("worker", worker)])?)?;
            }
        }
        let help = "Packets that went nowhere";
        let mut family = encoder.encode_descriptor("dropped_packets", help, None, MetricType::Counter)?;
        for drop in &self.drops {
            let labels = [("direction", drop.direction.as_str()), ("reason", drop.reason.as_str())];
            ConstCounter::new(drop.packets).encode(family.encode_family(&labels)?)?;
        }
        let help = "System calls on the data path that failed";
        let mut family = encoder.encode_descriptor("io_errors", help, None, MetricType::Counter)?;
        for (op, errno, count) in accounts.iter().flat_map(|account| account.errors()) {
            let labels = [("op", op.label().to_owned()), ("errno", errno_name(errno))];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
        let mut family =
            encoder.encode_descriptor("icmp_sent", "ICMP errors sent to pods", None, MetricType::Counter)?;
        let kinds: [(&str, Count); 2] =
            [("unreachable", |c| &c.icmp_unreachable), ("too_big", |c| &c.icmp_too_big)];
        for (kind, count) in kinds {
            let sum = accounts.iter().map(|account| count(&account.counters).get()).sum::<u64>();
            ConstCounter::new(sum).encode(family.encode_family(&[("type", kind)])?)?;
        }
        self.gauges(encoder)
    }
}

impl Snapshot {
    fn gauges(&self, mut encoder: DescriptorEncoder) -> Result<(), Error> {
        let fib = self.state.view.fib();
        let routes: usize = fib.peers().iter().map(|peer| peer.subnets.len()).sum();
        let facts = self.state.facts();
        let gauge = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        for (name, help, value) in [
            ("routes", "Subnets of peers that packets are sent to", gauge(routes)),
            ("peers", "Hosts that packets are sent to", gauge(fib.peers().len())),
            (
                "unreachable_hosts",
                "Hosts in the store without a usable address",
                gauge(fib.unreachable().len()),
            ),
            ("fib_generation", "Tables published since the start", fib.generation().cast_signed()),
            ("store_connected", "1 if the store is in order", i64::from(facts.trouble.is_none())),
            (
                "underlay_in_order",
                "0 if our public address is gone",
                i64::from(facts.underlay_trouble.is_none()),
            ),
            ("own_subnet_alarm", "1 if another host uses our subnet", i64::from(facts.alarm.is_some())),
        ] {
            let family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(family)?;
        }
        if let Some(board) = &self.state.identity.board {
            encryption(&mut encoder, board.counts())?;
        }
        match &facts.health {
            Some(health) => store(health, encoder),
            None => Ok(()),
        }
    }
}

/// What etcd's keeper says of itself.
fn store(health: &Health, mut encoder: DescriptorEncoder) -> Result<(), Error> {
    let seconds =
        |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |t| t.as_secs_f64());
    for (name, help, value) in [
        ("store_revision", "Revision of the store that the map is at", Some(health.revision as f64)),
        (
            "store_bad_keys",
            "Keys that stand where leases do and are none",
            Some(health.bad_keys.len() as f64),
        ),
        ("lease_expires_timestamp_seconds", "When our lease runs out", health.lease_expires.map(seconds)),
    ] {
        if let Some(value) = value {
            let family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(family)?;
        }
    }
    let resyncs = &health.resyncs;
    let mut family = encoder.encode_descriptor(
        "store_resyncs",
        "Whole lists read, by cause",
        None,
        MetricType::Counter,
    )?;
    for (cause, count) in [
        ("start", resyncs.start),
        ("compacted", resyncs.compacted),
        ("rewound", resyncs.rewound),
        ("periodic", resyncs.periodic),
        ("asked", resyncs.asked),
    ] {
        ConstCounter::new(count).encode(family.encode_family(&[("cause", cause)])?)?;
    }
    let help = "Leases that a periodic list found different from what the watch had told";
    let family = encoder.encode_descriptor("store_drift", help, None, MetricType::Counter)?;
    ConstCounter::new(health.drift).encode(family)?;
    let renewals = &health.renewals;
    let help = "Renewals of our lease, by result";
    let mut family = encoder.encode_descriptor("lease_renewals", help, None, MetricType::Counter)?;
    for (result, count) in [
        ("renewed", renewals.renewed),
        ("failed", renewals.failed),
        ("recreated", renewals.recreated),
        ("rewritten", renewals.rewritten),
    ] {
        ConstCounter::new(count).encode(family.encode_family(&[("result", result)])?)?;
    }
    Ok(())
}

fn encryption(encoder: &mut DescriptorEncoder<'_>, counts: Counts) -> Result<(), Error> {
    let help = "Handshakes with other hosts, by result";
    let mut family = encoder.encode_descriptor("quic_handshakes", help, None, MetricType::Counter)?;
    for (result, count) in
        [("authenticated", counts.handshakes), ("failed", counts.failures), ("refused", counts.refused)]
    {
        ConstCounter::new(count).encode(family.encode_family(&[("result", result)])?)?;
    }
    let help = "Times that sealed packets got new keys";
    let family = encoder.encode_descriptor("seal_rekeys", help, None, MetricType::Counter)?;
    ConstCounter::new(counts.rekeys).encode(family)?;
    let help = "Hosts to which there is an encrypted connection";
    let family = encoder.encode_descriptor("quic_connections", help, None, MetricType::Gauge)?;
    ConstGauge::new(i64::try_from(counts.connected).unwrap_or(i64::MAX)).encode(family)
}

/// `ENOBUFS` reads better than `105`.
fn errno_name(errno: i32) -> String {
    match errno {
        libc::EPERM => "EPERM".into(),
        libc::EIO => "EIO".into(),
        libc::EAGAIN => "EAGAIN".into(),
        libc::EINVAL => "EINVAL".into(),
        libc::EMSGSIZE => "EMSGSIZE".into(),
        libc::ENETUNREACH => "ENETUNREACH".into(),
        libc::EHOSTUNREACH => "EHOSTUNREACH".into(),
        libc::ENETDOWN => "ENETDOWN".into(),
        libc::ENOBUFS => "ENOBUFS".into(),
        libc::ECONNREFUSED => "ECONNREFUSED".into(),
        other => {
            let mut text = String::new();
            let _ = write!(text, "{other}");
            text
        }
    }
}
