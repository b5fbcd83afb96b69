//! Reports of the userspace backend: the route table in use, its peers, and the route step of
//! `explain`.

use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;
use prometheus_client::metrics::histogram::Histogram;

use super::paths::Health;
use super::peer_problems;
use crate::api::{Explanation, KeyState, Outcome, PeerRow, RouteRow, Status, StepCode};
use crate::engine::EngineView;
use crate::forward::{DropReason, Hop, PathSource, Peer, Table, VerifySource};
use crate::observe::{Encoder, Part, Pending};
use crate::packet::{Family, outer_overhead};
use crate::route::{Mode, Networks, Policy, Protection};
use crate::seal;
use crate::sys::now;

/// The route table as a part of the daemon's reports.
#[derive(Debug)]
pub(super) struct FibPart {
    view: EngineView,
    networks: Vec<IpNet>,
    policy: Policy,
    verify: VerifySource,
    health: Arc<Health>,
    publish_seconds: Histogram,
}

impl FibPart {
    /// Reports the table that `view`'s engine uses.
    #[must_use]
    pub(super) fn new(
        view: EngineView,
        networks: &Networks,
        (policy, verify): (Policy, VerifySource),
        health: Arc<Health>,
    ) -> Self {
        // From a table of ten leases to one of ten thousand on a busy machine; the promise is 5 ms.
        let buckets = [
            2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 1.5e-3, 2e-3, 2.5e-3, 3e-3, 4e-3, 5e-3, 7.5e-3, 0.01,
            0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
        ];
        let publish_seconds = Histogram::new(buckets);
        Self { view, networks: networks.iter().collect(), policy, verify, health, publish_seconds }
    }

    /// Records the time from when the store reported a change until the new table was in use.
    pub(super) fn published(&self, seconds: f64) {
        self.publish_seconds.observe(seconds);
    }

    /// The address is in the subnet of `peer`.
    fn to_peer(&self, explanation: &mut Explanation, peer: &Peer) {
        let name = &peer.name;
        explanation.subnet = longest_match(&peer.subnets, explanation);
        explanation.step(StepCode::RouteToPeer, format!("its address is in a subnet of {name}"));
        explanation.host = Some(name.clone());
        explanation.announced = Some(announced(peer));
        explanation.next_hop = Some(peer.endpoint.to_string());
        explanation.mtu = Some(peer.longest(Family::of(explanation.address)));
        explanation.mtu_source = Some(self.mtu_source(peer).to_owned());
        explanation.transport = Some(transport(peer).to_owned());
        explanation.encryption = match (peer.protection, self.policy.mode, peer.abilities.secure) {
            (Protection::Clear, Mode::None, _) => {
                Some("none: this host does not encrypt (security.mode)".to_owned())
            }
            (Protection::Clear, _, None) => Some(format!("none: {name} announces no encryption")),
            (Protection::Clear, ..) => Some("none".to_owned()),
            _ => keys(peer).as_ref().map(encryption),
        };
        explanation.keys = keys(peer);
        if peer.protection != Protection::Quic {
            explanation.frame = Some(self.frame(peer));
        }
        if !explanation.has(StepCode::KernelToOverlay) {
            return;
        }
        let trouble = self.trouble(peer);
        if peer.is_too_narrow(Family::of(explanation.address)) {
            let why = peer_problems::narrow_path(peer).unwrap_or_default();
            explanation.drop = Some(DropReason::NarrowPath.label().to_owned());
            explanation.sentence = format!("it is dropped: {why}");
            explanation.step(StepCode::RouteUnreachable, why);
            return;
        }
        let endpoint = peer.endpoint;
        if peer.protection == Protection::Clear {
            explanation.outcome = Outcome::Sent;
            explanation.sentence = format!("it is sent in clear to {name} at {endpoint}");
            explanation.step(StepCode::SendClear, explanation.sentence.clone());
        } else if peer.can_seal() {
            explanation.outcome = Outcome::Sent;
            explanation.sentence = format!("it is sealed and sent to {name} at {endpoint}");
            explanation.step(StepCode::SendSealed, explanation.sentence.clone());
        }
        Self::add_trouble(explanation, trouble);
    }

    /// How the MTU to a peer was learned. No table is made only because a probe has confirmed it.
    fn mtu_source(&self, peer: &Peer) -> &'static str {
        let is_probed = self.health.of(peer.endpoint.ip()).is_some_and(|path| path.is_probed);
        if is_probed { PathSource::Probe.word() } else { peer.mtu_source.word() }
    }

    /// Adds what is wrong with the path to the sentence about a packet that is sent.
    fn add_trouble(explanation: &mut Explanation, trouble: Option<String>) {
        if let Some(trouble) = trouble {
            explanation.sentence = format!("{}; but {trouble}", explanation.sentence);
            explanation.trouble = Some(trouble);
        }
    }

    /// What is wrong with the path to a peer.
    fn trouble(&self, peer: &Peer) -> Option<String> {
        let path = self.health.of(peer.endpoint.ip());
        let of_path = path.and_then(|path| {
            peer_problems::refused(peer, path).or_else(|| peer_problems::silent_since(peer, path))
        });
        of_path.or_else(|| peer_problems::narrow_path(peer))
    }

    fn frame(&self, peer: &Peer) -> String {
        // The simple engine makes no bundles.
        let bundles = peer.abilities.bundles && self.view.engine() != "simple";
        let frame = if bundles { "small packets may share a datagram" } else { "one packet a datagram" };
        let overhead = usize::from(outer_overhead(Family::of(peer.endpoint.ip()))) + peer.overhead();
        let seal = if peer.overhead() == seal::OVERHEAD { ", sealed" } else { "" };
        format!("{frame}{seal}: {overhead} bytes more a datagram")
    }

    /// The address is in no subnet that packets can be sent to.
    fn to_nowhere(&self, explanation: &mut Explanation, table: &Table) {
        let to = explanation.address;
        let lost =
            table.unreachable().iter().find(|lost| lost.subnets.iter().any(|subnet| subnet.contains(&to)));
        if let Some(lost) = lost {
            explanation.subnet = longest_match(&lost.subnets, explanation);
            explanation.host = Some(lost.name.clone());
        }
        let is_inside = self.networks.iter().any(|network| network.contains(&to));
        let (code, why) = match lost {
            _ if to.is_multicast() => (
                StepCode::RouteMulticast,
                "it is a multicast packet, which the overlay does not carry".to_owned(),
            ),
            Some(lost) => {
                (StepCode::RouteUnreachable, format!("it belongs to {}, but {}", lost.name, lost.reason))
            }
            None if is_inside => (
                StepCode::RouteNoLease,
                "no lease holds its address: see `hopsack routes`, and `hopsack leases list` for etcd"
                    .to_owned(),
            ),
            None => {
                let networks: Vec<_> = self.networks.iter().map(ToString::to_string).collect();
                let text =
                    format!("its address lies outside the overlay's networks ({})", networks.join(", "));
                (StepCode::RouteOutside, text)
            }
        };
        if explanation.has(StepCode::KernelToOverlay) {
            let reason = if to.is_multicast() { DropReason::Multicast } else { DropReason::NoRoute };
            explanation.outcome = Outcome::Dropped;
            explanation.drop = Some(reason.label().to_owned());
            explanation.sentence = format!("{why}; it is dropped");
        } else {
            explanation.sentence = format!("{why}; {}", explanation.sentence);
        }
        explanation.step(code, why);
    }
}

impl Part for FibPart {
    fn status(&self, status: &mut Status) {
        let table = self.view.table();
        status.peers = table.peers().len();
        let unreachable = table.unreachable().iter();
        status.unreachable = unreachable.map(|lost| format!("{}: {}", lost.name, lost.reason)).collect();
    }

    /// Leaves the encryption of peers without keys empty: the part of the encrypted connections
    /// knows it.
    fn peers(&self, rows: &mut Vec<PeerRow>) {
        rows.extend(self.view.table().peers().iter().map(|peer| {
            let keys = keys(peer);
            let path = self.health.of(peer.endpoint.ip());
            let encryption = match peer.protection {
                Protection::Clear => "none".to_owned(),
                Protection::Sealed | Protection::Quic => keys.as_ref().map(encryption).unwrap_or_default(),
            };
            PeerRow {
                name: peer.name.clone(),
                endpoint: peer.endpoint.to_string(),
                subnets: peer.subnets.iter().map(ToString::to_string).collect(),
                mtu: peer.mtu,
                mtu_source: self.mtu_source(peer).to_owned(),
                trouble: self.trouble(peer),
                rtt_ms: path.and_then(|path| path.rtt).map(|rtt| rtt.as_secs_f64() * 1000.0),
                loss_percent: path
                    .filter(|_| peer.protection != Protection::Quic)
                    .map(|path| path.loss_percent),
                silent_seconds: path.and_then(|path| path.silent_for).map(|silent| silent.as_secs()),
                path: String::new(),
                path_reason: None,
                transport: transport(peer).to_owned(),
                encryption,
                key_age_seconds: keys.map(|keys| keys.age_seconds),
            }
        }));
    }

    fn routes(&self, rows: &mut Vec<RouteRow>) {
        for peer in self.view.table().peers() {
            rows.extend(peer.subnets.iter().map(|subnet| RouteRow {
                subnet: subnet.to_string(),
                host: peer.name.clone(),
                next_hop: peer.endpoint.to_string(),
                mtu: peer.mtu,
            }));
        }
    }

    fn explain<'a>(&'a self, explanation: &'a mut Explanation) -> Pending<'a> {
        let table = self.view.table();
        if explanation.has(StepCode::KernelToOverlay)
            && self.verify == VerifySource::Subnet
            && !explanation.address.is_multicast()
        {
            let sentence = "its source must be in a subnet of this host, or be a public address of its lease; \
                            otherwise it is dropped (foreign_source)";
            explanation.step(StepCode::SourceVerified, sentence);
        }
        match table.lookup(explanation.address) {
            Some(Hop::Peer(peer)) => self.to_peer(explanation, peer),
            Some(Hop::Local) => to_own_subnet(explanation),
            None => self.to_nowhere(explanation, &table),
        }
        Box::pin(std::future::ready(()))
    }

    fn metrics(&self, encoder: &mut Encoder<'_>) -> fmt::Result {
        let table = self.view.table();
        let routes: usize = table.peers().iter().map(|peer| peer.subnets.len()).sum();
        let gauge = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        encoder.gauge("routes", "Subnets of peers to which packets can be sent", gauge(routes))?;
        encoder.gauge("peers", "Hosts to which packets can be sent", gauge(table.peers().len()))?;
        let help = "Hosts in the store to which no packet can be sent";
        encoder.gauge("unreachable_hosts", help, gauge(table.unreachable().len()))?;
        let paths = self.health.all();
        let silent = paths.values().filter(|path| path.silent_for.is_some()).count();
        encoder.gauge("silent_peers", "Hosts that have not answered three keep-alives", gauge(silent))?;
        let rtt = paths.values().filter_map(|path| path.rtt).max().unwrap_or_default();
        let help = "Longest smoothed round-trip time to a host, in microseconds";
        encoder.gauge(
            "peer_rtt_max_microseconds",
            help,
            i64::try_from(rtt.as_micros()).unwrap_or(i64::MAX),
        )?;
        let help = "Number of route tables published since the start";
        encoder.gauge("fib_generation", help, table.generation().cast_signed())?;
        let help = "Seconds from when the store reported a change until the new route table was in use";
        encoder.histogram("fib_publish_seconds", help, &self.publish_seconds)
    }
}

/// The address is in this host's own subnet. `subnet` and `host` are filled in by the part of this
/// host.
fn to_own_subnet(explanation: &mut Explanation) {
    if explanation.has(StepCode::KernelToThisHost) {
        return;
    }
    let code = if explanation.has(StepCode::KernelToOtherDevice) {
        let device = explanation.device.as_deref().unwrap_or_default();
        explanation.outcome = Outcome::Local;
        explanation.sentence = format!("it is in this host's own subnet: the kernel delivers it by {device}");
        StepCode::RouteOwnSubnet
    } else {
        explanation.outcome = Outcome::Dropped;
        explanation.drop = Some(DropReason::OwnSubnet.label().to_owned());
        explanation.sentence =
            "it is in this host's own subnet, but no interface here carries it: the sender \
                                receives \"destination net unreachable\""
                .to_owned();
        StepCode::RouteOwnSubnetMissing
    };
    explanation.step(code, explanation.sentence.clone());
}

/// The longest of `subnets` that contains the address in question.
fn longest_match(subnets: &[IpNet], explanation: &Explanation) -> Option<String> {
    let matching = subnets.iter().filter(|subnet| subnet.contains(&explanation.address));
    matching.max_by_key(|subnet| subnet.prefix_len()).map(ToString::to_string)
}

fn transport(peer: &Peer) -> &'static str {
    match peer.protection {
        Protection::Clear => "udp",
        Protection::Sealed => "sealed",
        Protection::Quic => "quic",
    }
}

fn keys(peer: &Peer) -> Option<KeyState> {
    let status = peer.session.as_ref()?.status(now())?;
    Some(KeyState {
        suite: status.suite.name().to_owned(),
        epoch: status.epoch,
        age_seconds: status.age.as_secs(),
        packets: status.packets,
        rekeys: status.rekeys,
        name: status.name,
    })
}

fn encryption(keys: &KeyState) -> String {
    format!("sealed by {}, epoch {}", keys.suite, keys.epoch)
}

/// The abilities that the peer's lease announces.
fn announced(peer: &Peer) -> String {
    let abilities = peer.abilities;
    let words = [
        (abilities.ipv6, "IPv6"),
        (abilities.bundles, "bundles"),
        (abilities.ecn, "ECN"),
        (abilities.control, "control messages"),
        (abilities.fast, "a kernel fast path"),
    ];
    let mut words: Vec<String> =
        words.iter().filter(|(is, _)| *is).map(|(_, word)| (*word).to_owned()).collect();
    if let Some(mtu) = abilities.link_mtu {
        words.push(format!("a link of MTU {mtu}"));
    }
    if let Some(secure) = abilities.secure {
        let (mode, port, fingerprint) = (secure.mode.word(), secure.port, secure.fingerprint);
        words.push(format!("{mode} with QUIC at port {port} and the certificate sha256:{fingerprint}"));
    }
    if words.is_empty() { "nothing: a plain flanneld".to_owned() } else { words.join(", ") }
}
