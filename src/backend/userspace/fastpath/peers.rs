//! What is known of each peer: whether it receives by the fast path, by which device packets leave
//! to it, and whether its canary has arrived.
//!
//! It sends nothing and knows no map. Invariant: a peer is sent packets by the fast path only if
//! [`FastPeer::hindrance`] finds nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use tokio::time::Instant;

use super::super::peer_routes::UnderlayDevice;
use crate::fastpath::{Reach, Route, RouteKind, Routes};
use crate::forward::{Peer, Table};
use crate::packet::Family;
use crate::route::{Local, Protection};

/// Canaries that are begun in a tick at most.
const CANARIES: usize = 8;
/// Time after which a canary that was lost is tried again: at first, and at most. A peer that has
/// just started, or moved, may not know this host yet.
const RETRY: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(60)];

/// What is known of one peer.
#[derive(Debug, Clone, Default)]
struct FastPeer {
    /// Whether the peer receives by the fast path, by its last answer.
    is_fast: bool,
    /// The device by which packets leave to the peer.
    device: Option<UnderlayDevice>,
    /// Whether this device is down or gone.
    is_down: bool,
    canary: CanaryState,
    /// Canaries in a row that were lost.
    lost: u32,
}

/// The trial transfer to a peer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum CanaryState {
    #[default]
    Due,
    Running,
    Arrived,
    Lost {
        retry_at: Instant,
        why: String,
    },
}

impl FastPeer {
    /// Whether the trial transfer may use the fast path.
    fn may_try(&self) -> bool {
        let has_device = self.device.as_ref().is_some_and(|device| device.is_ethernet);
        self.is_fast && has_device && !self.is_down
    }

    /// Why no packets leave to the peer by the fast path; `None` if they do.
    fn hindrance(&self) -> Option<String> {
        if !self.is_fast {
            return Some("it does not receive by a kernel fast path".to_owned());
        }
        match &self.device {
            None => return Some("the route to it is not known yet".to_owned()),
            Some(device) if !device.is_ethernet => {
                return Some(format!("packets to it leave by {}, which is no Ethernet device", device.name));
            }
            Some(device) if self.is_down => {
                return Some(format!("packets to it leave by {}, which is down", device.name));
            }
            Some(_) => {}
        }
        match &self.canary {
            CanaryState::Arrived => None,
            CanaryState::Due | CanaryState::Running => Some("the way is being tried".to_owned()),
            CanaryState::Lost { why, .. } => Some(why.clone()),
        }
    }
}

/// What is known of all peers.
#[derive(Debug, Default)]
pub(super) struct FastPeers(BTreeMap<IpAddr, FastPeer>);

impl FastPeers {
    /// Takes over what an earlier daemon knew: by which device packets leave to each peer, and
    /// whether they leave by the fast path. `underlays`: the devices to which its program is
    /// attached.
    pub(super) fn adopt(&mut self, routes: &Routes, underlays: &BTreeMap<u32, String>) {
        for route in routes.values().filter(|route| route.kind == RouteKind::Peer) {
            let Some(name) = underlays.get(&route.underlay) else { continue };
            let device = UnderlayDevice { index: route.underlay, name: name.clone(), is_ethernet: true };
            let peer = self.0.entry(route.peer.into()).or_default();
            peer.device = Some(device);
            if route.may_send {
                (peer.is_fast, peer.canary) = (true, CanaryState::Arrived);
            }
        }
    }

    /// Forgets peers that have left the table.
    pub(super) fn retain(&mut self, table: &Table) {
        self.0.retain(|address, _| table.peer_by_address(*address).is_some());
    }

    /// The last answer of a peer. Returns whether it says anything new.
    pub(super) fn answered(&mut self, peer: IpAddr, is_fast: bool) -> bool {
        let peer = self.0.entry(peer).or_default();
        let is_new = peer.is_fast != is_fast;
        if is_new {
            (peer.is_fast, peer.canary, peer.lost) = (is_fast, CanaryState::Due, 0);
        }
        is_new
    }

    /// Packets to a peer leave by this device. Returns whether it is another one.
    pub(super) fn leaves_by(&mut self, peer: IpAddr, device: Option<UnderlayDevice>) -> bool {
        let peer = self.0.entry(peer).or_default();
        if peer.device == device {
            return false;
        }
        let index = |device: &Option<UnderlayDevice>| device.as_ref().map(|device| device.index);
        peer.is_down = false;
        if index(&peer.device) != index(&device) {
            peer.canary = CanaryState::Due;
        }
        peer.device = device;
        true
    }

    /// A trial transfer has ended. Returns whether that changes the routes.
    pub(super) fn canary_ended(&mut self, peer: IpAddr, result: Result<(), String>) -> bool {
        let Some(peer) = self.0.get_mut(&peer).filter(|peer| peer.canary == CanaryState::Running) else {
            return false;
        };
        let is_ok = result.is_ok();
        peer.canary = match result {
            Ok(()) => {
                peer.lost = 0;
                CanaryState::Arrived
            }
            Err(why) => {
                let [first, most] = RETRY;
                let pause = first.saturating_mul(1 << peer.lost.min(10)).min(most);
                peer.lost = peer.lost.saturating_add(1);
                CanaryState::Lost { retry_at: Instant::now() + pause, why }
            }
        };
        is_ok
    }

    /// The Ethernet devices that lead to peers: names and indices.
    pub(super) fn devices(&self) -> BTreeMap<String, u32> {
        let devices = self.0.values().filter_map(|peer| peer.device.as_ref());
        let usable = devices.filter(|device| device.is_ethernet);
        usable.map(|device| (device.name.clone(), device.index)).collect()
    }

    /// These devices are down or gone, all others are not. Returns whether that is new.
    pub(super) fn set_down(&mut self, down: &BTreeSet<u32>) -> bool {
        let mut has_changed = false;
        for peer in self.0.values_mut() {
            let is_down = peer.device.as_ref().is_some_and(|device| down.contains(&device.index));
            has_changed |= std::mem::replace(&mut peer.is_down, is_down) != is_down;
        }
        has_changed
    }

    /// The results of running trial transfers will never come.
    pub(super) fn forget_canaries(&mut self) {
        let running = self.0.values_mut().filter(|peer| peer.canary == CanaryState::Running);
        running.for_each(|peer| peer.canary = CanaryState::Due);
    }

    /// How packets to a peer can leave.
    pub(super) fn reach(&self, peer: &Peer) -> Reach {
        let Some(found) = self.0.get(&peer.endpoint.ip()) else { return Reach::default() };
        let underlay = found.device.as_ref().map_or(0, |device| device.index);
        Reach { underlay, may_send: found.hindrance().is_none() }
    }

    /// A route for the trial transfer to a peer, and for nothing else.
    pub(super) fn canary_route(&self, peer: &Peer, routes: &Routes) -> Option<(IpNet, Route)> {
        let found = self.0.get(&peer.endpoint.ip()).filter(|found| found.may_try())?;
        let subnet = canary_subnet(peer)?;
        let route = routes.get(&subnet).filter(|route| {
            let is_its_own = Some(route.peer) == Some(peer.endpoint.ip()).and_then(v4);
            route.kind == RouteKind::Peer && is_its_own && route.is_clear
        })?;
        let is_needed = found.canary != CanaryState::Arrived;
        is_needed.then(|| (IpNet::from(subnet.network()), Route { may_send: true, ..*route }))
    }

    /// The trial transfers that are to begin now: peer, our address, its address. They count as
    /// running from now on.
    pub(super) fn due_canaries(
        &mut self,
        table: &Table,
        local: &Local,
    ) -> Vec<(IpAddr, SocketAddr, SocketAddr)> {
        let now = Instant::now();
        let is_due = |found: &FastPeer| match &found.canary {
            CanaryState::Due => found.may_try(),
            CanaryState::Lost { retry_at, .. } => found.may_try() && *retry_at <= now,
            CanaryState::Running | CanaryState::Arrived => false,
        };
        let due = self.0.iter_mut().filter(|(_, found)| is_due(found)).take(CANARIES);
        let begin = |(address, found): (&IpAddr, &mut FastPeer)| {
            let peer = table.peer_by_address(*address)?;
            let to = canary_subnet(peer)?.network();
            let from = local.device_address(Family::of(to))?;
            if peer.protection != Protection::Clear {
                return None;
            }
            found.canary = CanaryState::Running;
            Some((*address, SocketAddr::new(from, 0), SocketAddr::new(to, local.port)))
        };
        due.filter_map(begin).collect()
    }

    /// Why no packets leave to a peer by the fast path; `None` if they do.
    pub(super) fn hindrance(&self, peer: &Peer) -> Option<String> {
        if peer.protection != Protection::Clear {
            return Some("its packets are encrypted".to_owned());
        }
        self.0.get(&peer.endpoint.ip()).map_or_else(|| FastPeer::default().hindrance(), FastPeer::hindrance)
    }
}

/// The trial transfer goes to the first address of this subnet: that of the peer's overlay device.
fn canary_subnet(peer: &Peer) -> Option<IpNet> {
    peer.subnets.first().copied()
}

fn v4(address: IpAddr) -> Option<std::net::Ipv4Addr> {
    match address {
        IpAddr::V4(v4) => Some(v4),
        IpAddr::V6(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    fn device(index: u32, is_ethernet: bool) -> Option<UnderlayDevice> {
        Some(UnderlayDevice { index, name: format!("eth{index}"), is_ethernet })
    }

    fn hindrance(peers: &FastPeers) -> Option<String> {
        peers.0[&PEER].hindrance()
    }

    #[test]
    fn peer_needs_an_answer_a_device_and_a_canary() {
        let mut peers = FastPeers::default();
        assert!(peers.leaves_by(PEER, device(3, false)));
        assert!(hindrance(&peers).is_some());
        assert!(peers.answered(PEER, true));
        assert!(hindrance(&peers).is_some_and(|why| why.contains("eth3")));
        assert!(peers.leaves_by(PEER, device(4, true)));
        assert!(hindrance(&peers).is_some_and(|why| why.contains("tried")));
        peers.0.get_mut(&PEER).expect("known").canary = CanaryState::Running;
        assert!(peers.canary_ended(PEER, Ok(())));
        assert_eq!(hindrance(&peers), None);
        assert!(!peers.answered(PEER, true), "nothing new");
        assert_eq!(peers.devices(), [("eth4".to_owned(), 4)].into());
        // While the device is down, the engine sends.
        assert!(peers.set_down(&[4].into()) && !peers.set_down(&[4].into()));
        assert!(hindrance(&peers).is_some_and(|why| why.contains("down")));
        assert!(peers.set_down(&BTreeSet::new()));
        assert_eq!(hindrance(&peers), None);
        // Another device, or an answer to the contrary, ends it.
        assert!(peers.leaves_by(PEER, device(5, true)));
        assert!(hindrance(&peers).is_some());
        assert!(peers.answered(PEER, false));
        assert!(hindrance(&peers).is_some());
    }

    #[test]
    fn peers_of_an_earlier_daemon_are_adopted() {
        let route = Route {
            kind: RouteKind::Peer,
            may_send: true,
            underlay: 7,
            peer: [192, 0, 2, 2].into(),
            ..Route::DAEMON
        };
        let other = Route { may_send: false, peer: [192, 0, 2, 3].into(), ..route };
        let net = |text: &str| text.parse::<IpNet>().expect("a prefix");
        let gone = Route { underlay: 8, peer: [192, 0, 2, 4].into(), ..route };
        let routes = Routes::from([
            (net("10.1.2.0/24"), route),
            (net("10.1.3.0/24"), other),
            (net("10.1.4.0/24"), gone),
        ]);
        let mut peers = FastPeers::default();
        peers.adopt(&routes, &[(7, "eth7".to_owned())].into());
        assert_eq!(hindrance(&peers), None);
        assert!(peers.0[&IpAddr::from([192, 0, 2, 3])].hindrance().is_some());
        assert_eq!(peers.0.len(), 2, "the device of the third peer is gone");
        assert_eq!(peers.devices(), [("eth7".to_owned(), 7)].into());
        assert!(!peers.leaves_by(PEER, device(7, true)), "it is the same device");
        assert_eq!(hindrance(&peers), None);
    }
}
