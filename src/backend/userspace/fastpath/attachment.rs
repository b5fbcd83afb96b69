//! Where the program is attached: to the overlay device, to the devices that lead to peers, and to
//! the veth pair that merges segments; and the settings that name these devices.
//!
//! It decides nothing about peers. Invariant: settings that name a device are in force only while
//! the device is there, as far as a look each second can tell.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use tokio::time::Instant;

use super::merging::Action;
use super::{FastPathDriver, Start, VALID_FOR, check_underlay};
use crate::fastpath::{Interfaces, Role, Settings};
use crate::forward::VerifySource;
use crate::sys::bpf::interface_index;
use crate::sys::ethtool::is_running;

impl FastPathDriver {
    /// Looks at the devices that the maps name: packets to a device that is gone or
    /// down are lost. Returns whether the routes change.
    pub(super) fn follow_devices(&mut self) -> bool {
        let used = self.settings.as_ref().map(|settings| settings.overlay);
        let overlay = interface_index(&self.start.overlay);
        if used.is_some() && used != overlay.ok() {
            self.turn_off(format!("the overlay device {} is gone", self.start.overlay));
            return false;
        }
        let devices = self.shared.peers().devices();
        let is_down = |(name, index): &(&String, &u32)| {
            !is_there(name, **index) || !is_running(name).is_ok_and(|runs| runs)
        };
        let down: BTreeSet<u32> = devices.iter().filter(is_down).map(|(_, index)| *index).collect();
        let has_changed = self.shared.peers().set_down(&down);
        if has_changed {
            tracing::info!(
                down = down.len(),
                "underlay devices of the kernel fast path went down or came up"
            );
        }
        // A device that is made again has another index, and needs a link of its own.
        let is_lost = self.attached.iter().any(|(name, index)| !is_there(name, *index));
        if is_lost {
            self.attach();
        }
        has_changed
    }

    /// Keeps the program working and attached.
    pub(super) fn look(&mut self) {
        let mut others = Vec::new();
        let (mut is_whole, mut is_merging) = (true, false);
        let looked = self.with(|fast| {
            fast.renew(VALID_FOR)?;
            for hook in fast.hooks()? {
                match hook.role {
                    Role::Gro => is_merging = hook.is_attached,
                    Role::Overlay | Role::Underlay => is_whole &= hook.is_attached,
                }
                let numbers = hook.others.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                if !hook.others.is_empty() {
                    others.push(format!("{}: programs {numbers} of others", hook.interface));
                }
            }
            Ok(())
        });
        if looked {
            if self.merging.tick(is_merging, self.merging.found()) {
                tracing::warn!("the kernel fast path was detached from the veth pair: attached again");
                self.shared.count_repair();
            }
            self.follow_pair();
        }
        if looked && !is_whole {
            tracing::warn!("the kernel fast path was detached: it is attached again");
            self.shared.count_repair();
            let attached = std::mem::take(&mut self.attached);
            self.attach_to(attached);
        }
        self.shared.set_others(others);
    }

    /// Attaches the program to the devices that lead to peers. If no device does for a while, it
    /// stays where it is.
    pub(super) fn attach(&mut self) {
        let mut underlays = self.shared.peers().devices();
        if underlays.is_empty() {
            underlays.clone_from(&self.attached);
        }
        underlays.retain(|name, index| is_there(name, *index));
        if underlays != self.attached {
            self.attach_to(underlays);
        }
    }

    fn attach_to(&mut self, underlays: BTreeMap<String, u32>) {
        if !self.configure() || !self.link(&underlays) {
            return;
        }
        let devices: Vec<String> = underlays.keys().cloned().collect();
        tracing::info!(devices = devices.join(" "), "kernel fast path attached");
        self.shared.set_devices(devices);
        self.health.set_fast(!underlays.is_empty());
        self.attached = underlays;
    }

    /// Makes the links to these devices, and to the far end of the veth pair.
    fn link(&mut self, underlays: &BTreeMap<String, u32>) -> bool {
        let mut interfaces = Interfaces {
            overlay: self.start.overlay.clone(),
            underlays: underlays.keys().cloned().collect(),
            gro: self.merging.far(),
        };
        let has_pair = interfaces.gro.is_some();
        let is_linked = self.with(|fast| match fast.attach(&interfaces) {
            // The pair may have gone just now.
            Err(error) if interfaces.gro.take().is_some() => {
                tracing::debug!(%error, "the veth pair cannot be used");
                fast.attach(&interfaces)
            }
            result => result,
        });
        if has_pair && interfaces.gro.is_none() {
            self.merging.failed();
        }
        is_linked
    }

    /// Decides whether single segments go through the veth pair.
    pub(super) fn choose(&mut self) {
        let counters = self.shared.fast().as_ref().and_then(|fast| fast.counters().ok());
        let Some(counters) = counters else { return };
        let (ingress, now) = (&counters.ingress, Instant::now());
        self.shared.losses().counted(ingress.segments.to_pair, ingress.segments.from_pair, now);
        let choice = &mut self.merging.choice;
        if choice.look(ingress, now) {
            let pair = if choice.is_pair() { "chosen" } else { "left" };
            tracing::info!(reason = choice.reason(), "veth pair that merges segments: {pair}");
            self.follow_pair();
        }
        let wait = if self.merging.is_waiting() { "; the pair is not ready yet" } else { "" };
        self.shared.set_gro(self.merging.near(), format!("{}{wait}", self.merging.choice.reason()));
    }

    /// A device has changed, come or gone.
    pub(in crate::backend::userspace) fn link_changed(&mut self, name: &str) {
        if self.merging.pair.has(name) {
            self.follow_pair();
        }
    }

    /// Takes the veth pair into use, or leaves it, as far as that is possible now.
    fn follow_pair(&mut self) {
        if self.attached.is_empty() {
            return;
        }
        let found = self.merging.found();
        while let Some(action) = self.merging.next(found) {
            let is_done = match action {
                Action::Configure => self.configure(),
                Action::Link => self.link(&self.attached.clone()),
            };
            if !is_done {
                return;
            }
        }
    }

    /// Puts the settings into force.
    pub(super) fn configure(&mut self) -> bool {
        let Start { overlay, local, verify, ports, .. } = &self.start;
        let IpAddr::V4(address) = local.public else {
            let reason = check_underlay(local.public).err().unwrap_or_default();
            self.turn_off(reason);
            return false;
        };
        let public = self.view.table().own_public();
        let (port, verify_source) = (local.port, *verify == VerifySource::Subnet);
        let ports = Settings::spread(ports);
        let overlay = match interface_index(overlay) {
            Ok(index) => index,
            Err(error) => {
                self.turn_off(format!("the overlay device {overlay} is gone: {error}"));
                return false;
            }
        };
        let settings = Settings {
            address,
            port,
            verify_source,
            overlay,
            gro: self.merging.near(),
            ports,
            public_v4: public.v4,
            public_v6: public.v6,
        };
        if self.settings.as_ref() == Some(&settings) {
            return true;
        }
        let is_set = self.with(|fast| {
            fast.set(&settings)?;
            fast.renew(VALID_FOR)
        });
        self.settings = is_set.then_some(settings);
        is_set
    }
}

/// Whether the interface of this name has this index.
fn is_there(name: &str, index: u32) -> bool {
    interface_index(name).is_ok_and(|found| found == index)
}
