//! What the kernel does with a step, as a table: the model for property tests and for the kernel in
//! memory.

use super::diff::Step;
use super::rows::Route;
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
            Step::SetLink(link) => {
                self.links.insert(link.name.clone(), link.clone());
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
}
