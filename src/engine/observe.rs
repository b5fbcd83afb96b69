//! Reports of the engine: sums of packets, drop counters, metrics of the workers.
//!
//! The workers count in their own cache lines; this part sums the counters when it is asked.

use std::fmt;

use super::account::{Account, Op};
use super::view::EngineView;
use crate::api::{CounterRow, Explanation, Status};
use crate::forward::{Counter, Counters, Direction, DropReason};
use crate::observe::{Drops, Encoder, Part, Pending};

/// The engine as a part of the daemon's reports.
#[derive(Debug)]
pub struct EnginePart {
    view: EngineView,
    reason: String,
}

type PickDirection = fn(&Counters) -> &Direction;
const DIRECTIONS: [(&str, PickDirection); 2] =
    [("egress", |counters| &counters.egress), ("ingress", |counters| &counters.ingress)];

impl EnginePart {
    /// `reason` says why this engine runs, and with which offloads.
    #[must_use]
    pub fn new(view: EngineView, reason: String) -> Self {
        Self { view, reason }
    }

    /// Sums a counter over the workers.
    fn sum(&self, pick: PickDirection, count: impl Fn(&Direction) -> u64) -> u64 {
        self.view.accounts().iter().map(|account| count(pick(&account.counters))).sum()
    }

    fn counters(&self, egress: &[DropReason], ingress: &[DropReason]) -> Vec<CounterRow> {
        let mut rows = Vec::new();
        for ((name, pick), reasons) in DIRECTIONS.into_iter().zip([egress, ingress]) {
            let value = self.sum(pick, |direction| direction.packets.get());
            rows.push(CounterRow { name: format!("{name} packets"), value });
            rows.extend(reasons.iter().map(|reason| CounterRow {
                name: format!("{name} dropped as {}", reason.label()),
                value: self.sum(pick, |direction| direction.dropped(*reason)),
            }));
        }
        rows
    }
}

impl Part for EnginePart {
    fn status(&self, status: &mut Status) {
        let [(_, egress), (_, ingress)] = DIRECTIONS;
        status.engine = self.view.engine().to_owned();
        status.workers = self.view.workers();
        status.engine_reason.clone_from(&self.reason);
        status.threads = self.view.threads.rows();
        status.egress_packets = self.sum(egress, |direction| direction.packets.get());
        status.egress_bytes = self.sum(egress, |direction| direction.bytes.get());
        status.ingress_packets = self.sum(ingress, |direction| direction.packets.get());
        status.ingress_bytes = self.sum(ingress, |direction| direction.bytes.get());
    }

    fn drops<'a>(&'a self, drops: &'a mut Drops) -> Pending<'a> {
        for (name, pick) in DIRECTIONS {
            for reason in DropReason::ALL {
                let packets = self.sum(pick, |direction| direction.dropped(reason));
                drops.add(name, reason.label(), packets, reason.sentence());
            }
        }
        drops.add("ingress", "socket_queue_full", self.view.socket_drops(), SOCKET_QUEUE_FULL);
        Box::pin(std::future::ready(()))
    }

    /// Names the engine, and the counters that an operator would look at when packets to or from
    /// the peer are missing.
    fn explain<'a>(&'a self, explanation: &'a mut Explanation) -> Pending<'a> {
        use DropReason::{
            Cleartext, Congested, ForeignSource, NoKey, Replayed, SendFailed, SpoofedSource, TooBig,
            Unauthentic, Unconnected,
        };
        explanation.engine = format!("{}, {} workers", self.view.engine(), self.view.workers());
        let reasons: Option<(&[_], &[_])> = match explanation.transport.as_deref() {
            Some("udp") => Some((&[ForeignSource, TooBig, SendFailed], &[SpoofedSource])),
            Some("sealed") => Some((
                &[ForeignSource, TooBig, SendFailed, NoKey, Unconnected],
                &[NoKey, Replayed, Unauthentic, Cleartext, SpoofedSource],
            )),
            Some(_) => Some((&[ForeignSource, TooBig, Congested, Unconnected], &[Cleartext, SpoofedSource])),
            None => None,
        };
        if let Some((egress, ingress)) = reasons {
            explanation.counters = self.counters(egress, ingress);
        }
        Box::pin(std::future::ready(()))
    }

    fn metrics(&self, encoder: &mut Encoder<'_>) -> fmt::Result {
        let accounts = self.view.accounts();
        let facts = [("version", env!("CARGO_PKG_VERSION")), ("engine", self.view.engine())];
        encoder.info("build", "Version of the program, and the engine that runs", &facts)?;
        for (name, help, count) in PER_WORKER {
            let values = accounts.iter().enumerate();
            let value = |(worker, account): (usize, &std::sync::Arc<Account>)| {
                ([("worker", worker)], count(&account.counters).get())
            };
            encoder.counters(name, help, values.map(value))?;
        }
        let errors = accounts.iter().flat_map(|account| account.errors());
        let error = |(op, errno, count): (Op, i32, u64)| {
            ([("op", op.label().to_owned()), ("errno", errno_name(errno))], count)
        };
        encoder.counters("io_errors", "Failed system calls of the data path", errors.map(error))?;
        let kinds: [(&str, Count); 2] =
            [("unreachable", |c| &c.icmp_unreachable), ("too_big", |c| &c.icmp_too_big)];
        let sum = |(kind, count): (&'static str, Count)| {
            let sum = accounts.iter().map(|account| count(&account.counters).get()).sum();
            ([("type", kind)], sum)
        };
        encoder.counters("icmp_sent", "ICMP errors sent to pods", kinds.into_iter().map(sum))
    }
}

/// Meaning of the drop reason `socket_queue_full`.
pub(crate) const SOCKET_QUEUE_FULL: &str =
    "the receive queue of the UDP socket was full: datagrams came faster than its thread could read them";

type Count = fn(&Counters) -> &Counter;

/// Counters that each worker has, with their help.
const PER_WORKER: &[(&str, &str, Count)] = &[
    ("egress_packets", "Packets sent to peers", |c| &c.egress.packets),
    ("egress_bytes", "Bytes of inner packets sent to peers", |c| &c.egress.bytes),
    ("ingress_packets", "Packets from peers written to the overlay device", |c| &c.ingress.packets),
    ("ingress_bytes", "Bytes of inner packets written to the overlay device", |c| &c.ingress.bytes),
    ("tun_reads", "Reads of the overlay device", |c| &c.tun_reads),
    ("egress_sends", "Messages sent, each a datagram or a train of datagrams", |c| &c.egress_sends),
    ("udp_receives", "Messages received, each a datagram or a train of datagrams", |c| &c.udp_receives),
    ("udp_datagrams", "Datagrams received", |c| &c.udp_datagrams),
    ("sealed_datagrams", "Sealed datagrams sent", |c| &c.sealed),
    ("opened_datagrams", "Sealed datagrams received and opened successfully", |c| &c.opened),
    ("control_messages", "Control messages received from peers", |c| &c.control_messages),
    ("fast_missed", "Datagrams of a peer's kernel fast path that our own did not take", |c| &c.fast_missed),
    ("egress_bundles", "Datagrams sent that contained a bundle of small packets", |c| &c.egress_bundles),
    ("ingress_bundles", "Datagrams received that contained a bundle of small packets", |c| {
        &c.ingress_bundles
    }),
    ("ingress_writes", "Writes to the overlay device", |c| &c.ingress_writes),
    ("turns", "Times that a worker woke up", |c| &c.turns),
    ("system_calls", "System calls of the data path", |c| &c.system_calls),
    ("busy_polls", "Times that a worker polled without sleeping", |c| &c.busy_polls),
    ("send_fallbacks", "Trains that the kernel refused and that were sent as single datagrams", |c| {
        &c.send_fallbacks
    }),
    (
        "bundle_fallbacks",
        "Bundles that were too long for their path; their packets were sent one by one",
        |c| &c.bundle_fallbacks,
    ),
    (
        "write_fallbacks",
        "Merged packets that the overlay device refused; their packets were written one by one",
        |c| &c.write_fallbacks,
    ),
    (
        "queue_marks",
        "Packets of bulk transfers marked CE because a queue had not been empty for some time",
        |c| &c.queue_marks,
    ),
    ("icmp_suppressed", "ICMP errors that the rate limit suppressed", |c| &c.icmp_suppressed),
];

/// The symbolic name of the error numbers that occur on the data path, the number of others.
fn errno_name(errno: i32) -> String {
    let name = match errno {
        libc::EPERM => "EPERM",
        libc::EIO => "EIO",
        libc::EAGAIN => "EAGAIN",
        libc::EINVAL => "EINVAL",
        libc::EMSGSIZE => "EMSGSIZE",
        libc::ENETUNREACH => "ENETUNREACH",
        libc::EHOSTUNREACH => "EHOSTUNREACH",
        libc::ENETDOWN => "ENETDOWN",
        libc::ENOBUFS => "ENOBUFS",
        libc::ECONNREFUSED => "ECONNREFUSED",
        other => return other.to_string(),
    };
    name.to_owned()
}
