//! What this host does with a packet for one address, and why: the answer to `hopsack explain`.
//!
//! It asks the kernel, the table in force, the keys and the connections, in the order in which a packet meets them. It sends
//! nothing: whether the other host is alive it knows only as far as encryption tells.
//!
//! Invariant: an [`Explanation`] whose outcome is [`Outcome::Dropped`] says for which reason, in the word of `hopsack drops`,
//! if it is the daemon that drops.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{DIRECTIONS, State};
use crate::forward::DropReason;
use crate::packet::{Family, outer_overhead};
use crate::quic;
use crate::route::{Fib, Hop, Mode, Peer, Protection};
use crate::seal;
use crate::sys::now;

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It leaves for the host that owns the address.
    Sent,
    /// It waits a moment for an encrypted connection, and is dropped if none comes about.
    Waits,
    /// It does not leave this host.
    Local,
    /// It goes another way than by the overlay.
    Elsewhere,
    /// It goes nowhere.
    Dropped,
}

/// What this host does with a packet for an address. What does not apply is `None`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Explanation {
    /// The address that was asked about.
    pub address: IpAddr,
    /// What becomes of it.
    pub outcome: Outcome,
    /// The same in a sentence, with the reason.
    pub sentence: String,
    /// The reason of the drop, as `hopsack drops` and the metrics call it.
    pub drop: Option<String>,
    /// The interface by which the kernel sends it; `None`: it has no route.
    pub device: Option<String>,
    /// The subnet that it lies in.
    pub subnet: Option<String>,
    /// The host that owns the subnet, by its name in the store.
    pub host: Option<String>,
    /// What that host has announced in its lease, in words.
    pub announced: Option<String>,
    /// Where the map comes from.
    pub store: String,
    /// Since the map in force was last known to be right.
    pub map_age_seconds: u64,
    /// Address and port that the datagrams go to.
    pub next_hop: Option<String>,
    /// What moves packets.
    pub engine: String,
    /// The longest packet that is sent there, in bytes.
    pub mtu: Option<u16>,
    /// How packets travel: `udp`, `sealed` or `quic`.
    pub transport: Option<String>,
    /// With what they are encrypted, or why they are not, in words.
    pub encryption: Option<String>,
    /// The keys in force, where packets are sealed.
    pub keys: Option<Keys>,
    /// The encrypted connection, in words: since when, or what is wrong.
    pub connection: Option<String>,
    /// How packets stand in datagrams, and what that adds to them, in words.
    pub frame: Option<String>,
    /// This host's counters that tell whether it goes well, sums over all peers.
    pub counters: Vec<Count>,
}

/// Keys in force.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Keys {
    /// The algorithm.
    pub suite: String,
    /// Which handshake's they are.
    pub epoch: u8,
    /// How old they are.
    pub age_seconds: u64,
    /// Datagrams sealed by them.
    pub packets: u64,
    /// Changes of keys since the first.
    pub rekeys: u64,
    /// Both hosts show the same if they have the same keys.
    pub name: String,
}

/// A counter.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Count {
    /// Direction and drop reason, or what else is counted.
    pub name: String,
    /// Its value.
    pub value: u64,
}

impl State {
    /// Looks up what happens to packets for `to`.
    pub(super) async fn explain(&self, to: IpAddr) -> Explanation {
        let device = self.netlink.way_to(to).await.ok().flatten();
        let fib = self.view.fib();
        let facts = self.facts();
        let mut said = Explanation {
            address: to,
            outcome: Outcome::Dropped,
            sentence: String::new(),
            drop: None,
            device,
            subnet: None,
            host: None,
            announced: None,
            store: self.identity.store.clone(),
            map_age_seconds: facts.map_age().as_secs(),
            next_hop: None,
            engine: format!("{}, {} workers", self.view.engine(), self.view.workers()),
            mtu: None,
            transport: None,
            encryption: None,
            keys: None,
            connection: None,
            frame: None,
            counters: Vec::new(),
        };
        match fib.lookup(to) {
            Some(Hop::Peer(peer)) => self.to_peer(&mut said, peer),
            Some(Hop::Local) => {
                said.subnet = holder(&facts.local.subnets, to);
                said.host = Some(self.identity.name.clone());
                self.to_ourselves(&mut said);
            }
            None => self.to_nobody(&mut said, &fib),
        }
        said
    }

    fn is_overlay(&self, said: &Explanation) -> bool {
        said.device.as_deref() == Some(&self.identity.device)
    }

    fn to_peer(&self, said: &mut Explanation, peer: &Peer) {
        let (transport, encryption, _) = self.protection(peer);
        let policy = self.identity.policy;
        said.subnet = holder(&peer.subnets, said.address);
        said.host = Some(peer.name.clone());
        said.announced = Some(announced(peer));
        said.next_hop = Some(peer.endpoint.to_string());
        said.mtu = Some(peer.mtu);
        said.transport = Some(transport.into());
        said.encryption = Some(match (peer.protection, policy.mode, peer.abilities.secure) {
            (Protection::Clear, Mode::None, _) => "none: this host does not encrypt (security.mode)".into(),
            (Protection::Clear, _, None) => format!("none: {} announces no encryption", peer.name),
            _ => encryption,
        });
        let keys = peer.session.as_ref().and_then(|session| session.status(now()));
        said.keys = keys.map(|keys| Keys {
            suite: keys.suite.name().into(),
            epoch: keys.epoch,
            age_seconds: keys.age / 1_000_000_000,
            packets: keys.packets,
            rekeys: keys.rekeys,
            name: keys.name,
        });
        let (carried, is_connected) = self.connection(said, peer);
        said.frame = Some(self.frame(peer));
        said.counters = self.counts(peer);

        let Peer { name, endpoint, .. } = peer;
        (said.outcome, said.sentence) = if !self.is_overlay(said) {
            self.astray(said)
        } else if peer.protection == Protection::Clear {
            (Outcome::Sent, format!("it is sent in clear to {name} at {endpoint}"))
        } else if peer.can_seal() {
            (Outcome::Sent, format!("it is sealed and sent to {name} at {endpoint}"))
        } else if is_connected {
            let why =
                if peer.protection == Protection::Sealed { ", until there is a key to seal it" } else { "" };
            (Outcome::Sent, format!("it is sent to {name} by QUIC{why}"))
        } else {
            let wait =
                format!("it waits up to 2 s for an encrypted connection to {name}, and is dropped then");
            (Outcome::Waits, wait + &carried)
        };
    }

    /// Tells the state of the connection. Returns why it cannot be had, and whether it stands.
    fn connection(&self, said: &mut Explanation, peer: &Peer) -> (String, bool) {
        if peer.protection == Protection::Clear {
            return (String::new(), false);
        }
        let board = self.identity.board.as_ref();
        let status = board.map(|board| board.peer(peer.endpoint.ip())).unwrap_or_default();
        let text = match (&status.since, &status.trouble) {
            (Some(since), None) => format!("QUIC, for {} s", since.elapsed().as_secs()),
            (Some(since), Some(trouble)) => {
                format!("QUIC, for {} s; the last handshake failed: {trouble}", since.elapsed().as_secs())
            }
            (None, Some(trouble)) => format!("none: {trouble}"),
            (None, None) => "none: the next packet brings it".into(),
        };
        said.connection = Some(text);
        let why = status.trouble.map_or(String::new(), |trouble| format!(": {trouble}"));
        (why, status.since.is_some())
    }

    fn frame(&self, peer: &Peer) -> String {
        let outer = outer_overhead(Family::of(peer.endpoint.ip()));
        match peer.protection {
            Protection::Quic => {
                format!("one QUIC datagram a packet: at most {} bytes more", outer + quic::OVERHEAD)
            }
            Protection::Clear | Protection::Sealed => {
                // The simple engine sends each packet by itself.
                let bundles = peer.abilities.bundles && self.view.engine() != "simple";
                let frame =
                    if bundles { "small packets that come together share a datagram" } else { "bare" };
                let more = usize::from(outer) + peer.overhead();
                let seal = if peer.overhead() == seal::OVERHEAD { ", sealed" } else { "" };
                format!("{frame}{seal}: {more} bytes more a datagram")
            }
        }
    }

    /// What an operator would look at when packets to or from such a peer are missing.
    fn counts(&self, peer: &Peer) -> Vec<Count> {
        use DropReason::{
            Cleartext, Congested, NoKey, Replayed, SendFailed, SpoofedSource, TooBig, Unauthentic,
            Unconnected,
        };
        let (egress, ingress): (&[_], &[_]) = match peer.protection {
            Protection::Clear => (&[TooBig, SendFailed], &[SpoofedSource]),
            Protection::Sealed => (
                &[TooBig, SendFailed, NoKey, Unconnected],
                &[NoKey, Replayed, Unauthentic, Cleartext, SpoofedSource],
            ),
            Protection::Quic => (&[TooBig, Congested, Unconnected], &[Cleartext, SpoofedSource]),
        };
        let [(out, egress_of), (into, ingress_of)] = DIRECTIONS;
        let mut counts = Vec::new();
        for (direction, pick, reasons) in [(out, egress_of, egress), (into, ingress_of, ingress)] {
            let packets = self.sum(|direction| direction.packets.get(), pick);
            counts.push(Count { name: format!("{direction} packets"), value: packets });
            counts.extend(reasons.iter().map(|reason| Count {
                name: format!("{direction} dropped as {}", reason.label()),
                value: self.sum(|direction| direction.dropped(*reason), pick),
            }));
        }
        counts
    }

    fn to_ourselves(&self, said: &mut Explanation) {
        (said.outcome, said.sentence) = match said.device.as_deref() {
            Some("lo") => (Outcome::Local, "it is an address of this host itself".into()),
            Some(device) if device != self.identity.device => (
                Outcome::Local,
                format!("it lies in this host's own subnet: the kernel delivers it by {device}"),
            ),
            _ => {
                said.drop = Some(DropReason::OwnSubnet.label().into());
                let text = "it lies in this host's own subnet, but no interface here carries it: its sender is told \
                            \"destination net unreachable\"";
                (Outcome::Dropped, text.into())
            }
        };
    }

    fn to_nobody(&self, said: &mut Explanation, fib: &Fib) {
        let to = said.address;
        let lost = fib.unreachable().iter().find(|lost| holder(&lost.subnets, to).is_some());
        if let Some(lost) = lost {
            said.subnet = holder(&lost.subnets, to);
            said.host = Some(lost.name.clone());
        }
        let networks = &self.identity.networks;
        let inside = networks.iter().any(|net| net.parse().is_ok_and(|net: IpNet| net.contains(&to)));
        let reason = if to.is_multicast() { DropReason::Multicast } else { DropReason::NoRoute };
        let why = match lost {
            _ if to.is_multicast() => "it is multicast, which the overlay does not carry".into(),
            Some(lost) => format!("it belongs to {}, but {}", lost.name, lost.reason),
            None if inside => {
                "no lease holds it: see `hopsack routes`, and `hopsack leases list` for etcd".into()
            }
            None => format!("it lies outside the overlay's networks ({})", networks.join(", ")),
        };
        if self.is_overlay(said) {
            said.drop = Some(reason.label().into());
            said.sentence = why + "; it is dropped";
            return;
        }
        let (outcome, way) = self.astray(said);
        (said.outcome, said.sentence) = (outcome, format!("{why}; {way}"));
    }

    /// The kernel does not bring it to the daemon.
    fn astray(&self, said: &Explanation) -> (Outcome, String) {
        let ours = &self.identity.device;
        match said.device.as_deref() {
            Some("lo") => (Outcome::Local, "it is an address of this host itself".into()),
            Some(device) => {
                let text = format!(
                    "the kernel sends it by {device}, not by {ours}: `ip route get {}`",
                    said.address
                );
                (Outcome::Elsewhere, text)
            }
            None => (Outcome::Dropped, format!("the kernel has no route for it, not even to {ours}")),
        }
    }
}

/// The longest of `subnets` that holds an address.
fn holder(subnets: &[IpNet], address: IpAddr) -> Option<String> {
    let holds = subnets.iter().filter(|subnet| subnet.contains(&address));
    holds.max_by_key(|subnet| subnet.prefix_len()).map(ToString::to_string)
}

/// What a lease says of its host.
fn announced(peer: &Peer) -> String {
    let abilities = peer.abilities;
    let words = [
        (abilities.ipv6, "IPv6"),
        (abilities.bundles, "bundles"),
        (abilities.ecn, "ECN"),
        (abilities.control, "control messages"),
    ];
    let mut words: Vec<String> =
        words.iter().filter(|(is, _)| *is).map(|(_, word)| (*word).to_owned()).collect();
    if let Some(secure) = abilities.secure {
        let (mode, port, fingerprint) = (secure.mode.word(), secure.port, secure.fingerprint);
        words.push(format!("{mode} with QUIC at port {port} and the certificate sha256:{fingerprint}"));
    }
    if words.is_empty() { "nothing: a plain flanneld".into() } else { words.join(", ") }
}
