//! What the kernel does with a step, as a table: the model for property tests and for the kernel in
//! memory.

use super::diff::Step;
use super::rows::{ALIAS, Link, LinkKind, Route};
use super::state::Actual;

impl Actual {
    /// Takes one step.
    pub(crate) fn take(&mut self, step: &Step) {
        let same = |a: &Route, b: &Route| {
            (a.destination, &a.link, a.protocol) == (b.destination, &b.link, b.protocol)
        };
        match step {
            Step::SetSysctl(sysctl) => {
                self.sysctls.insert(sysctl.key.clone(), sysctl.value.clone());
            }
            Step::AddVeth(near) => {
                self.remove_link(&near.name);
                self.remove_link(&near.peer);
                for (name, peer) in [(&near.name, &near.peer), (&near.peer, &near.name)] {
                    let (name, peer) = (name.clone(), peer.clone());
                    let (kind, alias) = (LinkKind::Veth, ALIAS.to_owned());
                    let link = Link { name: name.clone(), kind, alias, up: false, mtu: near.mtu, peer };
                    self.links.insert(name, link);
                }
            }
            Step::RemoveLink(link) => {
                self.remove_link(&link.name);
                self.remove_link(&link.peer);
            }
            Step::SetLink(link) => {
                self.links.insert(link.name.clone(), link.clone());
            }
            Step::SetOffload(offload) => {
                self.offloads.retain(|row| (&row.link, row.feature) != (&offload.link, offload.feature));
                self.offloads.insert(offload.clone());
            }
            Step::AddAddress(address) => {
                self.addresses.insert(address.clone());
            }
            Step::AddRoute(route) => {
                self.routes.insert(route.clone());
            }
            Step::ReplaceRoute(route) => {
                self.routes.retain(|there| !same(there, route));
                self.routes.insert(route.clone());
            }
            Step::WriteFile(file) => {
                self.files.insert(file.path.clone(), file.clone());
            }
            Step::RemoveRoute(route) => {
                self.routes.remove(route);
            }
            Step::RemoveAddress(address) => {
                self.addresses.remove(address);
            }
        }
    }

    /// A device takes its rows along.
    fn remove_link(&mut self, name: &str) {
        self.links.remove(name);
        self.offloads.retain(|row| row.link != name);
        self.addresses.retain(|row| row.link != name);
        self.routes.retain(|row| row.link != name);
        let is_of_link = |key: &str| key.split('/').any(|part| part == name);
        self.sysctls.retain(|key, _| !is_of_link(key));
    }
}
