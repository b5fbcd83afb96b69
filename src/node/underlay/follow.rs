//! What a running node does when addresses or MTU of its underlay change.
//!
//! When the address changes, the backend opens sockets on the new one first; then the lease is
//! written again under its key. Peers follow by the lease. Nothing here ends the node, except
//! workers that cannot be started.
//!
//! Invariant: a change that cannot be followed changes nothing. It is a problem in `status`, and
//! tried again every second. If only the kernel refuses a step of a change, the change counts as
//! followed: the refusal is a problem of the reconciler, which tries again until the step succeeds.

use std::net::IpAddr;

use tokio::time::Instant;

use super::error::UnderlayError;
use super::find::{Underlay, find_again, follow_routes};
use super::link::report_link;
use super::public_address::Decision;
use crate::api::ProblemCode;
use crate::backend::BackendError;
use crate::node::error::NodeError;
use crate::node::{Node, join, subnet_env};
use crate::route::{Local, unfit_in};

impl Node {
    /// Acts on a change of the interface, its addresses, or what the store says about them.
    pub(in crate::node) async fn follow_underlay(&mut self) -> Result<(), NodeError> {
        let held = (self.public_address.interface.as_str(), self.public_address.public());
        let found = match self.find_underlay(held).await {
            Ok(found) => found,
            Err(error) => {
                let _ = self.public_address.check(&[], Instant::now());
                self.reports.problems().end_all(ProblemCode::UnderlayLink);
                let public = self.public_address.public();
                self.address_problem(format!(
                    "{error}; forwarding goes on from {public}, which others may not reach"
                ));
                return Ok(());
            }
        };
        report_link(self.reports.problems(), &found);
        let admitted: Vec<IpAddr> =
            found.addresses.iter().copied().filter(|address| self.is_usable(*address)).collect();
        match self.public_address.check(&admitted, Instant::now()) {
            Decision::Keep => self.keep_address(found).await,
            Decision::Wait => self.address_problem(self.missing_address(&found)),
            Decision::Move(public) => self.relocate(public, found).await?,
        }
        Ok(())
    }

    /// Searches the interface with our address, and that by which our peers are reached.
    async fn find_underlay(&self, held: (&str, IpAddr)) -> Result<Underlay, UnderlayError> {
        let kernel = &self.reports.host.kernel;
        let store = self.config.store.addresses();
        let mut found = find_again(kernel, (&self.config.node, &store), held).await?;
        let peers = self.map.peer_addresses(self.public_address.public());
        follow_routes(kernel, &mut found, peers, &self.config.overlay.device).await?;
        Ok(found)
    }

    /// Whether this host may use an address on the underlay.
    fn is_usable(&self, address: IpAddr) -> bool {
        self.store.admits(address) && unfit_in(&self.networks, address).is_none()
    }

    /// Tries again what could not be followed. To be called every second.
    pub(in crate::node) async fn retry_underlay(&mut self) -> Result<(), NodeError> {
        if self.public_address.unpublished {
            self.public_address.unpublished = !self.store.readdress(&[self.public_address.held]);
        }
        let problems = self.reports.problems();
        let in_order = !self.public_address.is_missing()
            && !problems.has(ProblemCode::UnderlayAddress)
            && !problems.has(ProblemCode::UnderlayMtu);
        if in_order { Ok(()) } else { self.follow_underlay().await }
    }

    /// One sentence about an address that the interface lacks, or that the store does not admit.
    fn missing_address(&self, found: &Underlay) -> String {
        let (public, interface) = (self.public_address.public(), &found.interface);
        if found.addresses.contains(&public) {
            return format!(
                "the cluster file does not name {public}, the address of {interface}, for this host: write it \
                 there; forwarding goes on as before"
            );
        }
        let there: Vec<String> = found.addresses.iter().map(ToString::to_string).collect();
        let there = there.join(", ");
        let fix = match found.addresses.iter().any(|address| !self.store.admits(*address)) {
            true => format!(
                "the cluster file names none of its addresses ({there}) for this host: write it there"
            ),
            false => format!("it has {there} only: waiting for it, or for another"),
        };
        format!("{public} is not on {interface} any more: {fix}; forwarding goes on as before")
    }

    /// The address is the same; the MTU may have changed.
    async fn keep_address(&mut self, found: Underlay) {
        self.public_address.interface.clone_from(&found.interface);
        (self.public_address.index, self.public_address.egress) = (found.index, found.egress);
        if found.own != self.local.nets {
            let local = Local { nets: found.own.clone(), ..self.local.clone() };
            if self.backend.relocate(&local).is_ok() {
                self.local = local;
                self.publish();
            }
        }
        self.reports.host.moved(self.local.clone(), found.interface.clone());
        self.address_in_order(&found).await;
    }

    /// Takes another address into use.
    async fn relocate(&mut self, public: IpAddr, found: Underlay) -> Result<(), NodeError> {
        let before = self.public_address.public();
        let local = Local { public, nets: found.own.clone(), ..self.local.clone() };
        match self.backend.relocate(&local) {
            Ok(()) => {}
            Err(BackendError::Sockets(error)) => {
                self.address_problem(format!(
                    "{before} is gone, and {public} cannot be used: {error}; forwarding goes on as before"
                ));
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        }
        self.local = local;
        tracing::warn!(old = %before, new = %public, "address of this host changed, and its lease with it");
        self.public_address.set(public, found.clone());
        self.relocated();
        self.public_address.unpublished = !self.store.readdress(&[self.public_address.held]);
        if self.public_address.is_missing() {
            self.address_problem(self.missing_address(&found));
        } else {
            self.address_in_order(&found).await;
        }
        Ok(())
    }

    /// Follows the MTU of the underlay.
    async fn resize(&mut self, found: &Underlay) -> Result<(), NodeError> {
        let mtu = join::overlay_mtu(&self.config, found, self.local.public, &self.networks)?;
        if mtu == self.local.mtu {
            return Ok(());
        }
        tracing::warn!(
            old = self.local.mtu,
            new = mtu,
            "MTU of the underlay changed, and the overlay's with it"
        );
        let local = Local { mtu, ..self.local.clone() };
        self.backend.relocate(&local)?;
        self.local = local;
        self.change_desired().await;
        self.relocated();
        Ok(())
    }

    /// Brings the kernel to what is desired from now on. Until all is in place, the reconciler's
    /// own problems say what is not.
    pub(in crate::node) async fn change_desired(&mut self) {
        let files = subnet_env::desired(&self.config.node, &self.networks, &self.local);
        let desired = self.map.desired(&self.backend).merge(files);
        let _ = self.reconciler.change(desired).await;
    }

    /// Puts a new address or MTU into effect.
    fn relocated(&mut self) {
        self.publish();
        self.reports.host.moved(self.local.clone(), self.public_address.interface.clone());
    }

    /// Records that the address of this host cannot be used. Whether the MTU fits is not known
    /// then.
    fn address_problem(&mut self, cause: String) {
        let problems = self.reports.problems();
        problems.end_all(ProblemCode::UnderlayMtu);
        problems.raise(ProblemCode::UnderlayAddress, &self.public_address.interface, cause);
        self.report(false);
    }

    /// Records that the address of this host can be used, and follows the MTU of the underlay.
    async fn address_in_order(&mut self, found: &Underlay) {
        self.announcement.link_mtu(found.mtu, &mut self.store);
        let resized = self.resize(found).await;
        let problems = self.reports.problems();
        problems.end_all(ProblemCode::UnderlayAddress);
        match resized {
            Ok(()) => problems.end_all(ProblemCode::UnderlayMtu),
            Err(error) => problems.raise(ProblemCode::UnderlayMtu, &found.interface, error.to_string()),
        }
        self.report(false);
    }
}
