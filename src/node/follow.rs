//! What a running node does about what happens around it: its underlay's addresses and MTU change, or another host uses its
//! subnet.
//!
//! When the address changes, sockets on the new one are opened first, then the workers are started anew between them and
//! the device's queues, and the lease is written anew in its key; packets wait in queues meanwhile, peers follow by the
//! lease. Nothing here ends the node but a worker that cannot be started.
//!
//! Invariant: what cannot be followed changes nothing, is said once in the log and all the time in `status`, and is tried
//! again every second.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use super::duplicate_subnet::Look;
use super::public_address::Decision;
use super::underlay::{self, Underlay};
use super::{Node, NodeError, dataplane, join, no_worker, subnet_env};
use crate::api::ProblemCode;

impl Node {
    /// The interface or its addresses may have changed, or what the store says of them.
    pub(super) async fn look_around(&mut self) -> Result<(), NodeError> {
        let held = (self.place.interface.as_str(), self.place.public());
        let found = match underlay::again(&self.netlink, &self.config.node, held).await {
            Ok(found) => found,
            Err(error) => {
                let _ = self.place.look(&[], Instant::now());
                self.address_problem(format!(
                    "{error}; forwarding goes on from {}, which others may not reach",
                    self.place.public()
                ));
                return Ok(());
            }
        };
        let admitted: Vec<IpAddr> =
            found.addresses.iter().copied().filter(|address| self.store.admits(*address)).collect();
        match self.place.look(&admitted, Instant::now()) {
            Decision::Stay => self.stay(found).await,
            Decision::Wait => self.address_problem(self.why_nowhere(&found)),
            Decision::Move(held) => self.relocate(held, found).await?,
        }
        Ok(())
    }

    /// What was not in order is looked at again.
    pub(super) async fn look_again(&mut self) -> Result<(), NodeError> {
        if self.unpublished {
            self.unpublished = !self.store.readdress(&self.place.held);
        }
        let problems = self.reports.problems();
        let in_order = !self.place.is_missing()
            && !problems.has(ProblemCode::UnderlayAddress)
            && !problems.has(ProblemCode::UnderlayMtu);
        if in_order { Ok(()) } else { self.look_around().await }
    }

    fn why_nowhere(&self, found: &Underlay) -> String {
        let (public, interface) = (self.place.public(), &found.interface);
        let there: Vec<String> = found.addresses.iter().map(ToString::to_string).collect();
        let there = there.join(", ");
        let mend = match found.addresses.iter().any(|address| !self.store.admits(*address)) {
            true => format!(
                "the cluster file names none of its addresses ({there}) for this host: write it there"
            ),
            false => format!("it has {there} only: waiting for it, or for another"),
        };
        format!("{public} is not on {interface} any more: {mend}; forwarding goes on as before")
    }

    /// Same address; the MTU may be another.
    async fn stay(&mut self, found: Underlay) {
        self.address_in_order(&found).await;
        (self.place.interface, self.place.index) = (found.interface, found.index);
    }

    /// Other addresses: those of the other family are published only, ours is what the sockets are bound to.
    async fn relocate(&mut self, held: Vec<IpAddr>, found: Underlay) -> Result<(), NodeError> {
        let (before, public) = (self.place.public(), held[0]);
        if public != before {
            let address = SocketAddr::new(public, self.local.port);
            let sockets = match dataplane::sockets(&self.choice, address, self.config.overlay.spread_ports)
                .await
            {
                Ok(sockets) => sockets,
                Err(error) => {
                    self.address_problem(format!(
                        "{before} is gone, and {public} cannot be taken: {error}; forwarding goes on as before"
                    ));
                    return Ok(());
                }
            };
            let tun = self.tun.try_clone().map_err(|error| no_worker(&error))?;
            let io = tun.between(&mut self.choice, sockets);
            self.engine.replace(io).map_err(|error| no_worker(&error))?;
            self.local.public = public;
            self.encryption.iter().for_each(|encryption| encryption.relocate(public));
            self.put_in_force();
            tracing::warn!(old = %before, new = %public, "the address of this host changed: published in its lease");
        }
        self.unpublished = !self.store.readdress(&held);
        self.place.moved(held, found.clone());
        if self.place.is_missing() {
            self.address_problem(self.why_nowhere(&found));
        } else {
            self.address_in_order(&found).await;
        }
        Ok(())
    }

    /// Follows the underlay's MTU.
    async fn resize(&mut self, found: &Underlay) -> Result<(), NodeError> {
        let mtu = join::overlay_mtu(&self.config, found, self.local.public, &self.networks)?;
        if mtu == self.local.mtu {
            return Ok(());
        }
        tracing::warn!(
            old = self.local.mtu,
            new = mtu,
            "the MTU of the underlay changed, and with it the overlay's"
        );
        let local = crate::route::Local { mtu, ..self.local.clone() };
        self.device.shape(&local, &self.networks).await?;
        self.local = local;
        self.put_in_force();
        subnet_env::write(&self.config.node, &self.networks, &self.local)
    }

    /// Our own part has changed.
    fn put_in_force(&mut self) {
        self.backend.relocate(self.local.clone());
        self.publish();
        self.reports.host.moved(self.local.clone(), self.place.interface.clone());
    }

    /// The address of this host cannot be used. Whether the MTU fits is not known then.
    fn address_problem(&mut self, cause: String) {
        let problems = self.reports.problems();
        problems.end_all(ProblemCode::UnderlayMtu);
        problems.raise(ProblemCode::UnderlayAddress, &self.place.interface, cause);
        self.tell(false);
    }

    /// The address of this host can be used: follows the underlay's MTU.
    async fn address_in_order(&mut self, found: &Underlay) {
        let resized = self.resize(found).await;
        let problems = self.reports.problems();
        problems.end_all(ProblemCode::UnderlayAddress);
        match resized {
            Ok(()) => problems.end_all(ProblemCode::UnderlayMtu),
            Err(error) => problems.raise(ProblemCode::UnderlayMtu, &found.interface, error.to_string()),
        }
        self.tell(false);
    }

    /// Looks whether another host has used our subnet since the last look, or one that is not its own.
    pub(super) fn look_for_doubles(&mut self) {
        let view = self.engine.view();
        if let Some(from) = self.forgers.look(view.accounts(), Instant::now()) {
            let fib = view.fib();
            let name = fib.peer_by_address(from).map_or("?", |peer| peer.name.as_str());
            tracing::warn!(
                host = name, peer = %from,
                "it sends packets from a subnet that is not its own; they are dropped (spoofed_source)"
            );
        }
        let us = (self.reports.host.name.as_str(), &self.local);
        let subnets: Vec<String> = self.local.subnets.iter().map(ToString::to_string).collect();
        let (subnets, problems) = (subnets.join(" "), self.reports.problems());
        match self.alarm.look(view.accounts(), &view.fib(), us, Instant::now()) {
            Look::Quiet => return,
            Look::Over => problems.end(ProblemCode::DuplicateSubnet, &subnets),
            Look::Raised { sentence, log, ask } => {
                if log {
                    problems.raise(ProblemCode::DuplicateSubnet, &subnets, sentence);
                } else {
                    problems.refresh(ProblemCode::DuplicateSubnet, &subnets, sentence);
                }
                if ask {
                    self.store.verify();
                }
            }
        }
        self.tell(false);
    }
}
