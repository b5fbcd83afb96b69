//! Packets with a forbidden source: in this host's own subnet, or in no subnet of the sender.
//!
//! A source in our own subnet means that a sender forges, or that two hosts use one subnet because
//! one of them was cut off from the store for longer than its lease (flannel#1289). A datagram
//! proves neither, and a sender of datagrams must not be able to stop a node. So the problem names
//! both hosts, and the node asks its store which host holds the subnet; only the store's answer can
//! end the node. All these packets are dropped one by one where they come in.
//!
//! Only packets of peers count: anybody can send datagrams from an address that no lease has, and
//! where encryption is required, a peer is authenticated.
//!
//! Invariant: the workers' counters are read, never reset; the log has at most one line a minute in
//! all, and one for each alarm that begins.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::backend::event::DuplicateSubnet;
use crate::engine::Account;
use crate::forward::{Counters, LastSeen, Table};
use crate::route::Local;

/// Time between two log lines, and between two questions to the store.
const LOG_INTERVAL: Duration = Duration::from_secs(60);
/// The problem is over when no such packet has come for this long.
const QUIET_TIME: Duration = Duration::from_secs(300);

/// Packets of peers that were dropped for their source, as counted at the last check.
#[derive(Debug, Default)]
struct DropCounts(Vec<u64>);

impl DropCounts {
    /// The source of the last such packet since the last check, if there was any, and the number of
    /// packets since the start.
    fn check(
        &mut self,
        accounts: &[Arc<Account>],
        last_seen: impl Fn(&Counters) -> &LastSeen,
    ) -> Option<(IpAddr, u64)> {
        let counts: Vec<u64> = accounts.iter().map(|account| last_seen(&account.counters).times()).collect();
        let before = |worker: usize| self.0.get(worker).copied().unwrap_or(0);
        let mut grown = counts.iter().enumerate().filter(|(worker, count)| **count > before(*worker));
        let from = grown.next().and_then(|(worker, _)| last_seen(&accounts[worker].counters).last());
        let total = counts.iter().sum();
        self.0 = counts;
        from.map(|from| (from, total))
    }
}

/// Limits the log to one line a minute, whatever it is about: in clear, a forger has as many
/// addresses as there are peers.
#[derive(Debug, Default)]
pub(super) struct LogLimit(Option<Instant>);

impl LogLimit {
    /// Whether a line may be logged; if so, it counts as logged.
    fn admits(&mut self, now: Instant) -> bool {
        let admits = self.0.is_none_or(|then| now.duration_since(then) >= LOG_INTERVAL);
        if admits {
            self.0 = Some(now);
        }
        admits
    }
}

/// Finds hosts that send packets with sources in no subnet of their own.
#[derive(Debug, Default)]
pub(super) struct SpoofingMonitor {
    drops: DropCounts,
}

impl SpoofingMonitor {
    /// Compares the counters with those of the last check. Returns the address of a sender that
    /// should be logged.
    pub(super) fn check(
        &mut self,
        accounts: &[Arc<Account>],
        log: &mut LogLimit,
        now: Instant,
    ) -> Option<IpAddr> {
        let seen = self.drops.check(accounts, |counters| &counters.spoofed_source);
        seen.map(|(from, _)| from).filter(|_| log.admits(now))
    }
}

/// Finds hosts that use this host's subnet.
#[derive(Debug, Default)]
pub(super) struct DuplicateSubnetMonitor {
    drops: DropCounts,
    asked: Option<Instant>,
    last: Option<Instant>,
}

impl DuplicateSubnetMonitor {
    /// Compares the counters with those of the last check.
    pub(super) fn check(
        &mut self,
        accounts: &[Arc<Account>],
        table: &Table,
        (name, local): (&str, &Local),
        log: &mut LogLimit,
        now: Instant,
    ) -> DuplicateSubnet {
        let seen = self.drops.check(accounts, |counters| &counters.own_source);
        let Some((from, packets)) = seen else {
            if self.last.is_some_and(|last| now.duration_since(last) >= QUIET_TIME) {
                *self = Self { drops: std::mem::take(&mut self.drops), ..Self::default() };
                return DuplicateSubnet::Over;
            }
            return DuplicateSubnet::Unchanged;
        };
        self.last = Some(now);
        let log = log.admits(now);
        let verify = self.asked.is_none_or(|then| now.duration_since(then) >= LOG_INTERVAL);
        if verify {
            self.asked = Some(now);
        }
        let host = table.peer_by_address(from).map(|peer| peer.name.clone());
        let cause = cause(host.as_deref(), (name, local), from, packets);
        DuplicateSubnet::Seen { host, cause, log, verify }
    }
}

fn cause(host: Option<&str>, (name, local): (&str, &Local), from: IpAddr, packets: u64) -> String {
    let subnets: Vec<String> = local.subnets.iter().map(ToString::to_string).collect();
    let sender = match host {
        Some(host) => format!("the host {host:?} ({from})"),
        None => format!("{from}, which was in a lease,"),
    };
    format!(
        "{sender} sends packets with a source in {}, the subnet of this host {name:?} ({}): {packets} were dropped \
         so far; unless they are forged, two hosts use one subnet: compare `hopsack leases list` with FLANNEL_SUBNET \
         in that host's subnet.env, and restart the daemon of the one that does not hold the lease",
        subnets.join(" and "),
        local.public,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::{Arrival, IngressState, ToTun, Train, VerifySource, ingress};
    use crate::packet::IpPacket;
    use crate::packet::ecn::Ecn;
    use crate::route::{Abilities, Change, Dialect, Lease, Networks, Origin, Public, Rib};

    /// Drops everything.
    struct Nowhere;
    impl ToTun for Nowhere {
        fn push(&mut self, _packet: IpPacket<'_>) {}
        fn reply(&mut self, _error: &[u8]) {}
    }

    fn cluster() -> (Table, Local) {
        let lease = |host: u8| Lease {
            name: format!("h{host}"),
            subnets: vec![format!("10.1.{host}.0/24").parse().expect("a prefix")],
            public: Public { v4: Some([192, 0, 2, host].into()), v6: None },
            dialect: Dialect::Hopsack(Abilities::OURS),
            revision: 1,
            origin: Origin::default(),
        };
        let mut rib = Rib::default();
        rib.apply(Change::Snapshot { leases: vec![lease(1), lease(2), lease(3)], revision: 1 });
        let public = [192, 0, 2, 1].into();
        let local = Local {
            subnets: lease(1).subnets,
            nets: Vec::new(),
            public,
            port: 8285,
            mtu: 1472,
            policy: crate::route::Policy::default(),
        };
        let networks = Networks { v4: Some(("10.1.0.0/16".parse().expect("a prefix"), 24)), v6: None };
        (Table::compile(1, &rib, &networks, &local), local)
    }

    /// A packet from 10.1.1.9 to 10.1.1.2.
    fn ours() -> Vec<u8> {
        let mut out = Vec::new();
        let builder = etherparse::PacketBuilder::ipv4([10, 1, 1, 9], [10, 1, 1, 2], 64).udp(1, 2);
        builder.write(&mut out, &[0; 8]).expect("fits");
        out
    }

    #[test]
    fn duplicate_names_the_sender_once_a_minute() {
        let (table, local) = cluster();
        let accounts: Vec<Arc<Account>> = vec![Arc::default(), Arc::default()];
        let (mut monitor, mut log) = (DuplicateSubnetMonitor::default(), LogLimit::default());
        let (start, packet) = (Instant::now(), ours());
        let mut check = |from: Option<&str>, second: u64| {
            if let Some(from) = from {
                let (from, train) = (from.parse().expect("an address"), Train::single(&packet));
                let arrival = Arrival { from, ecn: Ecn::NotEct, train };
                let (verify, counters) = (VerifySource::Subnet, &accounts[1].counters);
                ingress(&table, arrival, verify, &mut IngressState::default(), counters, &mut Nowhere);
            }
            monitor.check(&accounts, &table, ("h1", &local), &mut log, start + Duration::from_secs(second))
        };
        /// Host, and whether to log and to ask the store.
        fn seen(result: DuplicateSubnet) -> Option<(Option<String>, bool, bool)> {
            match result {
                DuplicateSubnet::Seen { host, log, verify, .. } => Some((host, log, verify)),
                DuplicateSubnet::Unchanged | DuplicateSubnet::Over => None,
            }
        }
        assert_eq!(check(None, 0), DuplicateSubnet::Unchanged);
        let h2 = || Some("h2".to_owned());
        assert_eq!(seen(check(Some("192.0.2.2"), 1)), Some((h2(), true, true)));
        assert_eq!(seen(check(Some("192.0.2.2"), 2)), Some((h2(), false, false)));
        assert_eq!(check(Some("203.0.113.7"), 3), DuplicateSubnet::Unchanged, "a stranger only counts");
        assert_eq!(seen(check(Some("192.0.2.3"), 3)), Some((Some("h3".to_owned()), false, false)));
        assert_eq!(check(None, 4), DuplicateSubnet::Unchanged);
        assert_eq!(seen(check(Some("192.0.2.2"), 62)), Some((h2(), true, true)));
        assert_eq!(check(None, 361), DuplicateSubnet::Unchanged);
        assert_eq!(check(None, 362), DuplicateSubnet::Over);
        assert_eq!(check(None, 363), DuplicateSubnet::Unchanged);
    }

    #[test]
    fn spoofing_host_is_logged_once_a_minute() {
        let (accounts, start): (Vec<Arc<Account>>, _) =
            (vec![Arc::default(), Arc::default()], Instant::now());
        let (table, _) = cluster();
        let mut packet = Vec::new();
        let builder = etherparse::PacketBuilder::ipv4([10, 1, 7, 9], [10, 1, 1, 2], 64).udp(1, 2);
        builder.write(&mut packet, &[0; 8]).expect("fits");
        let (mut monitor, mut log) = (SpoofingMonitor::default(), LogLimit::default());
        let from: IpAddr = "192.0.2.2".parse().expect("an address");
        let mut check = |second: u64, comes: bool| {
            if comes {
                let arrival = Arrival { from, ecn: Ecn::NotEct, train: Train::single(&packet) };
                let (verify, counters) = (VerifySource::Subnet, &accounts[0].counters);
                ingress(&table, arrival, verify, &mut IngressState::default(), counters, &mut Nowhere);
            }
            monitor.check(&accounts, &mut log, start + Duration::from_secs(second))
        };
        assert_eq!([check(0, false), check(1, true), check(2, true)], [None, Some(from), None]);
        assert_eq!([check(61, false), check(62, true)], [None, Some(from)]);
    }
}
