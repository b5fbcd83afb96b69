//! The routes to peers: by which device packets leave, and the MTU, as the administrator of this
//! host has set them. A route may have an MTU of its own, or leave by an interface with a smaller
//! MTU than the one of our address.
//!
//! A task asks the kernel for a few routes each second, and reports those that have changed. It
//! never learns what ICMP messages have told the kernel.
//!
//! Invariant: a round costs at most [`MOST_NEW`] + [`MOST_AGAIN`] questions, however many peers
//! there are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use crate::engine::EngineView;
use crate::netlink::{Link, Netlink, NetlinkError};

/// Time between two rounds.
const ROUND: Duration = Duration::from_secs(1);
/// Questions about new peers in a round. Each takes about 20 us.
const MOST_NEW: usize = 500;
/// Questions about known peers in a round: a cluster of 500 hosts is asked for within 10 s.
const MOST_AGAIN: usize = 50;

/// The route to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PeerRoute {
    /// Address of the peer.
    pub(super) peer: IpAddr,
    /// MTU of the route: bytes of underlay packet. `None`: there is no route.
    pub(super) mtu: Option<u32>,
    /// The device by which packets leave.
    pub(super) device: Option<UnderlayDevice>,
}

/// A device that leads to peers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UnderlayDevice {
    /// Interface index.
    pub(super) index: u32,
    /// Interface name.
    pub(super) name: String,
    /// Whether it has Ethernet headers.
    pub(super) is_ethernet: bool,
}

/// The running task.
#[derive(Debug)]
pub(super) struct PeerRoutes {
    reports: mpsc::UnboundedReceiver<PeerRoute>,
    task: JoinHandle<()>,
}

impl PeerRoutes {
    /// Starts the task, for the peers of `view`'s engine.
    pub(super) fn start(view: EngineView, netlink: Netlink) -> Self {
        let (sender, reports) = mpsc::unbounded_channel();
        let rounds = Rounds { view, netlink, known: BTreeMap::new(), last: None };
        Self { reports, task: tokio::spawn(rounds.run(sender)) }
    }

    /// Waits for the next change. Cancel safe.
    pub(super) async fn next(&mut self) -> PeerRoute {
        match self.reports.recv().await {
            Some(report) => report,
            None => std::future::pending().await,
        }
    }
}

impl Drop for PeerRoutes {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the task knows.
struct Rounds {
    view: EngineView,
    netlink: Netlink,
    known: BTreeMap<IpAddr, PeerRoute>,
    /// The known peer that was asked for last.
    last: Option<IpAddr>,
}

impl Rounds {
    async fn run(mut self, sender: mpsc::UnboundedSender<PeerRoute>) {
        let mut interval = tokio::time::interval(ROUND);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !sender.is_closed() {
            interval.tick().await;
            // On an error the next round asks again.
            let _ = self.round(&sender).await;
        }
    }

    async fn round(&mut self, sender: &mpsc::UnboundedSender<PeerRoute>) -> Result<(), NetlinkError> {
        let peers: BTreeSet<IpAddr> =
            self.view.table().peers().iter().map(|peer| peer.endpoint.ip()).collect();
        self.known.retain(|address, _| peers.contains(address));
        let new = peers.iter().filter(|peer| !self.known.contains_key(peer)).take(MOST_NEW);
        let mut asked: Vec<IpAddr> = new.copied().collect();
        asked.extend(next_of(&self.known, self.last, MOST_AGAIN));
        if asked.is_empty() {
            return Ok(());
        }
        let links: BTreeMap<u32, Link> =
            self.netlink.links().await?.into_iter().map(|link| (link.index, link)).collect();
        for peer in asked {
            let hop = self.netlink.next_hop(peer).await?;
            let found = hop.and_then(|hop| Some((hop, links.get(&hop.index)?)));
            let mtu = found.and_then(|(hop, link)| [Some(link.mtu), hop.mtu].into_iter().flatten().min());
            let device = found.map(|(_, link)| UnderlayDevice {
                index: link.index,
                name: link.name.clone(),
                is_ethernet: link.is_ethernet,
            });
            let route = PeerRoute { peer, mtu, device };
            if self.known.insert(peer, route.clone()).as_ref() != Some(&route) {
                // The receiver is gone only if the backend has stopped.
                let _ = sender.send(route);
            }
            self.last = Some(peer);
        }
        Ok(())
    }
}

/// The `count` known addresses that follow `last`, in a circle.
fn next_of<T>(
    known: &BTreeMap<IpAddr, T>,
    last: Option<IpAddr>,
    count: usize,
) -> impl Iterator<Item = IpAddr> {
    let is_after = move |address: &&IpAddr| last.is_none_or(|last| **address > last);
    let after = known.keys().filter(is_after);
    let before = known.keys().filter(move |address| !is_after(address));
    after.chain(before).take(count).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_peers_are_asked_in_a_circle() {
        let address = |n: u8| IpAddr::from([192, 0, 2, n]);
        let known = (1..=5).map(|n| (address(n), ())).collect();
        let next = |last, count| next_of(&known, last, count).collect::<Vec<_>>();
        assert_eq!(next(None, 2), [1, 2].map(address));
        assert_eq!(next(Some(address(4)), 3), [5, 1, 2].map(address));
        assert_eq!(next(Some(address(9)), 9).len(), 5, "no peer is asked for twice");
    }
}
