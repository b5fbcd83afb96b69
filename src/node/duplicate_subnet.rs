//! The alarm: packets with a source in our own subnet came from another host. And, less loudly, who sends packets with sources
//! in no subnet of its own.
//!
//! Either somebody forges, or two hosts use one subnet: one of them was cut off from the store for longer than its lease
//! (flannel#1289). A datagram proves neither, and whoever can send one must not be able to stop a node. So the alarm names
//! both and makes the node ask its store whose the subnet is; only what the store answers can end the node.
//!
//! Invariant: what data-path workers count is read, never reset; one log line a minute at most.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::Account;
use crate::forward::{Counters, DropReason, LastSeen, Table};
use crate::route::Local;

/// Between log lines about one address, and between questions to the store.
const AGAIN: Duration = Duration::from_secs(60);
/// So long after the last such packet the alarm is over.
const OVER: Duration = Duration::from_secs(300);
/// Addresses that are remembered; a forger has as many as it likes.
const KNOWN: usize = 64;

/// What a look at the workers' accounts brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Nothing.
    Quiet,
    /// One sentence; whether it is due in the log, and whether the store should be asked.
    Raised { sentence: String, log: bool, ask: bool },
    /// It has been quiet for long enough.
    Over,
}

/// Drops for one reason that come with a witness, as counted at the last look.
#[derive(Debug, Default)]
struct Seen(Vec<u64>);

impl Seen {
    /// From where the last one came since the last look, if there was any, and how many there were since the start.
    fn look(
        &mut self,
        accounts: &[Arc<Account>],
        reason: DropReason,
        witness: impl Fn(&Counters) -> &LastSeen,
    ) -> Option<(IpAddr, u64)> {
        let counts: Vec<u64> =
            accounts.iter().map(|account| account.counters.ingress.dropped(reason)).collect();
        let before = |worker: usize| self.0.get(worker).copied().unwrap_or(0);
        let mut grown = counts.iter().enumerate().filter(|(worker, count)| **count > before(*worker));
        let from = grown.next().and_then(|(worker, _)| witness(&accounts[worker].counters).last());
        let total = counts.iter().sum();
        self.0 = counts;
        from.map(|from| (from, total))
    }
}

/// Whether something about an address is due in the log, which it is then taken to stand in. Whoever invents addresses gets no
/// more lines than there is room for.
fn may_log(logged: &mut BTreeMap<IpAddr, Instant>, from: IpAddr, now: Instant) -> bool {
    logged.retain(|_, then| now.duration_since(*then) < AGAIN);
    let may = !logged.contains_key(&from) && logged.len() < KNOWN;
    if may {
        logged.insert(from, now);
    }
    may
}

/// Who sends packets with sources in no subnet of its own. They are dropped one by one; this says whose they are.
#[derive(Debug, Default)]
pub(super) struct Forgers {
    seen: Seen,
    logged: BTreeMap<IpAddr, Instant>,
}

impl Forgers {
    /// Compares the accounts with those of the last look. Returns who is due in the log.
    pub(super) fn look(&mut self, accounts: &[Arc<Account>], now: Instant) -> Option<IpAddr> {
        let seen = self.seen.look(accounts, DropReason::SpoofedSource, |counters| &counters.spoofed_source);
        seen.map(|(from, _)| from).filter(|from| may_log(&mut self.logged, *from, now))
    }
}

#[derive(Debug, Default)]
pub(super) struct Alarm {
    seen: Seen,
    logged: BTreeMap<IpAddr, Instant>,
    asked: Option<Instant>,
    last: Option<Instant>,
}

impl Alarm {
    /// Compares the accounts with those of the last look. `name`: ours in the store.
    pub(super) fn look(
        &mut self,
        accounts: &[Arc<Account>],
        fib: &Table,
        (name, local): (&str, &Local),
        now: Instant,
    ) -> Look {
        let seen = self.seen.look(accounts, DropReason::OwnSource, |counters| &counters.own_source);
        let Some((from, total)) = seen else {
            if self.last.is_some_and(|last| now.duration_since(last) >= OVER) {
                *self = Self { seen: std::mem::take(&mut self.seen), ..Self::default() };
                return Look::Over;
            }
            return Look::Quiet;
        };
        self.last = Some(now);
        let log = may_log(&mut self.logged, from, now);
        let ask = self.asked.is_none_or(|then| now.duration_since(then) >= AGAIN);
        if ask {
            self.asked = Some(now);
        }
        Look::Raised { sentence: sentence(fib, name, local, from, total), log, ask }
    }
}

fn sentence(fib: &Table, name: &str, local: &Local, from: IpAddr, packets: u64) -> String {
    let subnets: Vec<String> = local.subnets.iter().map(ToString::to_string).collect();
    let sender = match fib.peer_by_address(from) {
        Some(peer) => format!("the host {:?} ({from})", peer.name),
        None => format!("{from}, which is in no lease,"),
    };
    format!(
        "{sender} sends packets with a source in {}, the subnet of this host {name:?} ({}): {packets} were dropped so far; \
         unless they are forged, two hosts use one subnet: compare `hopsack leases list` with FLANNEL_SUBNET in that \
         host's subnet.env, and restart the daemon of the one that does not hold the lease",
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
    use crate::route::{Abilities, Change, Dialect, Lease, Networks, Public, Rib};

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
        };
        let mut rib = Rib::default();
        rib.apply(Change::Snapshot { leases: vec![lease(1), lease(2)], revision: 1 });
        let public = [192, 0, 2, 1].into();
        let local = Local {
            subnets: lease(1).subnets,
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
    fn it_names_both_and_is_loud_once_a_minute() {
        let (fib, local) = cluster();
        let accounts: Vec<Arc<Account>> = vec![Arc::default(), Arc::default()];
        let (mut alarm, start, packet) = (Alarm::default(), Instant::now(), ours());
        let mut look = |from: Option<&str>, second: u64| {
            if let Some(from) = from {
                let (from, train) = (from.parse().expect("an address"), Train::single(&packet));
                let arrival = Arrival { from, ecn: Ecn::NotEct, train };
                let (verify, counters) = (VerifySource::Subnet, &accounts[1].counters);
                ingress(&fib, arrival, verify, &mut IngressState::default(), counters, &mut Nowhere);
            }
            alarm.look(&accounts, &fib, ("h1", &local), start + Duration::from_secs(second))
        };
        assert_eq!(look(None, 0), Look::Quiet);
        let Look::Raised { sentence, log: true, ask: true } = look(Some("192.0.2.2"), 1) else {
            panic!("not loud")
        };
        for part in ["\"h2\" (192.0.2.2)", "\"h1\" (192.0.2.1)", "10.1.1.0/24"] {
            assert!(sentence.contains(part), "{part}: {sentence}");
        }
        assert!(matches!(look(Some("192.0.2.2"), 2), Look::Raised { log: false, ask: false, .. }));
        let Look::Raised { sentence, log: true, ask: false } = look(Some("203.0.113.7"), 3) else {
            panic!("another one is another line")
        };
        assert!(sentence.contains("203.0.113.7, which is in no lease"), "{sentence}");
        assert_eq!(look(None, 4), Look::Quiet);
        assert!(matches!(look(Some("192.0.2.2"), 62), Look::Raised { log: true, ask: true, .. }));
        assert_eq!(look(None, 361), Look::Quiet);
        assert_eq!(look(None, 362), Look::Over);
        assert_eq!(look(None, 363), Look::Quiet);
    }

    #[test]
    fn who_speaks_for_others_is_told_once_a_minute() {
        let (accounts, start): (Vec<Arc<Account>>, _) =
            (vec![Arc::default(), Arc::default()], Instant::now());
        let (fib, _) = cluster();
        let mut packet = Vec::new();
        let builder = etherparse::PacketBuilder::ipv4([10, 1, 7, 9], [10, 1, 1, 2], 64).udp(1, 2);
        builder.write(&mut packet, &[0; 8]).expect("fits");
        let mut forgers = Forgers::default();
        let from: IpAddr = "192.0.2.2".parse().expect("an address");
        let mut look = |second: u64, comes: bool| {
            if comes {
                let arrival = Arrival { from, ecn: Ecn::NotEct, train: Train::single(&packet) };
                let (verify, counters) = (VerifySource::Subnet, &accounts[0].counters);
                ingress(&fib, arrival, verify, &mut IngressState::default(), counters, &mut Nowhere);
            }
            forgers.look(&accounts, start + Duration::from_secs(second))
        };
        assert_eq!([look(0, false), look(1, true), look(2, true)], [None, Some(from), None]);
        assert_eq!([look(61, false), look(62, true)], [None, Some(from)]);
    }
}
