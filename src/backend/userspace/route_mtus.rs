//! MTUs of the routes to peers, as the administrator of this host has set them: a route may have an
//! MTU of its own, or leave by an interface with a smaller MTU than the one of our address.
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
use crate::netlink::{Netlink, NetlinkError};

/// Time between two rounds.
const ROUND: Duration = Duration::from_secs(1);
/// Questions about new peers in a round. Each takes about 20 us.
const MOST_NEW: usize = 500;
/// Questions about known peers in a round: a cluster of 500 hosts is asked for within 10 s.
const MOST_AGAIN: usize = 50;

/// MTU of the route to a peer: bytes of underlay packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RouteMtu {
    /// Address of the peer.
    pub(super) peer: IpAddr,
    /// `None`: there is no route.
    pub(super) mtu: Option<u32>,
}

/// The running task.
#[derive(Debug)]
pub(super) struct RouteMtus {
    reports: mpsc::UnboundedReceiver<RouteMtu>,
    task: JoinHandle<()>,
}

impl RouteMtus {
    /// Starts the task, for the peers of `view`'s engine.
    pub(super) fn start(view: EngineView, netlink: Netlink) -> Self {
        let (sender, reports) = mpsc::unbounded_channel();
        let rounds = Rounds { view, netlink, known: BTreeMap::new(), last: None };
        Self { reports, task: tokio::spawn(rounds.run(sender)) }
    }

    /// Waits for the next change. Cancel safe.
    pub(super) async fn next(&mut self) -> RouteMtu {
        match self.reports.recv().await {
            Some(report) => report,
            None => std::future::pending().await,
        }
    }
}

impl Drop for RouteMtus {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What the task knows.
struct Rounds {
    view: EngineView,
    netlink: Netlink,
    known: BTreeMap<IpAddr, Option<u32>>,
    /// The known peer that was asked for last.
    last: Option<IpAddr>,
}

impl Rounds {
    async fn run(mut self, sender: mpsc::UnboundedSender<RouteMtu>) {
        let mut interval = tokio::time::interval(ROUND);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !sender.is_closed() {
            interval.tick().await;
            // On an error the next round asks again.
            let _ = self.round(&sender).await;
        }
    }

    async fn round(&mut self, sender: &mpsc::UnboundedSender<RouteMtu>) -> Result<(), NetlinkError> {
        let peers: BTreeSet<IpAddr> =
            self.view.table().peers().iter().map(|peer| peer.endpoint.ip()).collect();
        self.known.retain(|address, _| peers.contains(address));
        let new = peers.iter().filter(|peer| !self.known.contains_key(peer)).take(MOST_NEW);
        let mut asked: Vec<IpAddr> = new.copied().collect();
        asked.extend(next_of(&self.known, self.last, MOST_AGAIN));
        if asked.is_empty() {
            return Ok(());
        }
        let links: BTreeMap<u32, u32> =
            self.netlink.links().await?.into_iter().map(|link| (link.index, link.mtu)).collect();
        for peer in asked {
            let hop = self.netlink.next_hop(peer).await?;
            let mtu = hop.and_then(|hop| links.get(&hop.index).copied().into_iter().chain(hop.mtu).min());
            if self.known.insert(peer, mtu) != Some(mtu) {
                // The receiver is gone only if the backend has stopped.
                let _ = sender.send(RouteMtu { peer, mtu });
            }
            self.last = Some(peer);
        }
        Ok(())
    }
}

/// The `count` known addresses that follow `last`, in a circle.
fn next_of(
    known: &BTreeMap<IpAddr, Option<u32>>,
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
        let known = (1..=5).map(|n| (address(n), None)).collect();
        let next = |last, count| next_of(&known, last, count).collect::<Vec<_>>();
        assert_eq!(next(None, 2), [1, 2].map(address));
        assert_eq!(next(Some(address(4)), 3), [5, 1, 2].map(address));
        assert_eq!(next(Some(address(9)), 9).len(), 5, "no peer is asked for twice");
    }
}
