//! Compares the actual state with the desired state, and lists the steps from one to the other.
//!
//! The steps have this order:
//!
//! - A missing veth pair is made first. The other rows of its ends are in the next diff.
//! - Settings and offloads follow, because a device reads them when it comes up.
//! - Then come links, addresses and routes. An address needs its link, and a route needs an
//!   address.
//! - Then come files. They tell other programs that the rest is in place.
//! - Removals come last, so that traffic always has the old row or the new one.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fmt;

use ipnet::IpNet;

use super::rows::{Address, File, Link, LinkKind, Offload, ROUTE_PROTOCOL, Route, Sysctl};
use super::state::{Actual, Desired};

/// The kind of a row, as label of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Object {
    /// Network device.
    Link,
    /// Offload of a device.
    Offload,
    /// Address of a device.
    Address,
    /// Route.
    Route,
    /// Kernel setting.
    Sysctl,
    /// File.
    File,
}

impl Object {
    /// Every kind.
    pub const ALL: [Self; 6] =
        [Self::Link, Self::Offload, Self::Address, Self::Route, Self::Sysctl, Self::File];

    /// The word for metrics and logs.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Link => "link",
            Self::Offload => "offload",
            Self::Address => "address",
            Self::Route => "route",
            Self::Sysctl => "sysctl",
            Self::File => "file",
        }
    }
}

/// One change of one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Writes a kernel setting.
    SetSysctl(Sysctl),
    /// Makes the veth pair of this end, with both ends down. What is left of an earlier pair is
    /// removed before.
    AddVeth(Link),
    /// Turns an offload of a device of ours on or off.
    SetOffload(Offload),
    /// Gives a device of ours its MTU and its state (up or down).
    SetLink(Link),
    /// Adds an address.
    AddAddress(Address),
    /// Adds a route. It fails where another program has the same one.
    AddRoute(Route),
    /// Puts a route in the place of our route for the same destination and device.
    ReplaceRoute(Route),
    /// Writes a file.
    WriteFile(File),
    /// Removes a route of ours.
    RemoveRoute(Route),
    /// Removes an address from a device of ours.
    RemoveAddress(Address),
    /// Removes a veth pair of ours. This is one end of it.
    RemoveLink(Link),
}

impl Step {
    /// The kind of row that changes.
    #[must_use]
    pub fn object(&self) -> Object {
        match self {
            Self::SetSysctl(_) => Object::Sysctl,
            Self::AddVeth(_) | Self::SetLink(_) | Self::RemoveLink(_) => Object::Link,
            Self::SetOffload(_) => Object::Offload,
            Self::AddAddress(_) | Self::RemoveAddress(_) => Object::Address,
            Self::AddRoute(_) | Self::ReplaceRoute(_) | Self::RemoveRoute(_) => Object::Route,
            Self::WriteFile(_) => Object::File,
        }
    }

    /// The name of the row that changes: of the device, address, route, setting or file.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::SetSysctl(sysctl) => sysctl.name(),
            Self::AddVeth(link) | Self::SetLink(link) | Self::RemoveLink(link) => link.name.clone(),
            Self::SetOffload(offload) => format!("{} {}", offload.link, offload.feature.word()),
            Self::AddAddress(address) | Self::RemoveAddress(address) => address.net.to_string(),
            Self::AddRoute(route) | Self::ReplaceRoute(route) | Self::RemoveRoute(route) => {
                route.destination.to_string()
            }
            Self::WriteFile(file) => file.path.display().to_string(),
        }
    }

    /// Whether the row belongs to IPv6.
    #[must_use]
    pub fn is_ipv6(&self) -> bool {
        match self {
            Self::SetSysctl(sysctl) => sysctl.key.starts_with("net/ipv6/"),
            Self::AddAddress(address) | Self::RemoveAddress(address) => address.net.addr().is_ipv6(),
            Self::AddRoute(route) | Self::ReplaceRoute(route) | Self::RemoveRoute(route) => {
                route.destination.addr().is_ipv6()
            }
            Self::AddVeth(_)
            | Self::SetLink(_)
            | Self::RemoveLink(_)
            | Self::SetOffload(_)
            | Self::WriteFile(_) => false,
        }
    }

    /// The device that changes, if the step is about a device itself.
    #[must_use]
    pub fn link(&self) -> Option<&str> {
        match self {
            Self::AddVeth(link) | Self::SetLink(link) | Self::RemoveLink(link) => Some(&link.name),
            Self::SetOffload(offload) => Some(&offload.link),
            Self::SetSysctl(_)
            | Self::AddAddress(_)
            | Self::AddRoute(_)
            | Self::ReplaceRoute(_)
            | Self::WriteFile(_)
            | Self::RemoveRoute(_)
            | Self::RemoveAddress(_) => None,
        }
    }

    /// Whether a row goes away.
    #[cfg(test)]
    pub(super) fn is_removal(&self) -> bool {
        matches!(self, Self::RemoveRoute(_) | Self::RemoveAddress(_) | Self::RemoveLink(_))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetSysctl(sysctl) => write!(f, "set {} = {}", sysctl.name(), sysctl.value),
            Self::SetLink(link) => {
                let state = if link.up { "up" } else { "down" };
                write!(f, "set {} {state} with an MTU of {} bytes", link.name, link.mtu)
            }
            Self::AddVeth(link) => write!(f, "make the veth pair {} and {}", link.name, link.peer),
            Self::RemoveLink(link) => write!(f, "remove the veth pair {} and {}", link.name, link.peer),
            Self::SetOffload(offload) => {
                let state = if offload.on { "on" } else { "off" };
                write!(f, "turn {} of {} {state}", offload.feature.word(), offload.link)
            }
            Self::AddAddress(address) => write!(f, "add the address {} to {}", address.net, address.link),
            Self::AddRoute(route) => write!(f, "add the route {} by {}", route.destination, route.link),
            Self::ReplaceRoute(route) => {
                write!(f, "replace the route {} by {}", route.destination, route.link)
            }
            Self::WriteFile(file) => write!(f, "write {}", file.path.display()),
            Self::RemoveRoute(route) => write!(f, "remove the route {} by {}", route.destination, route.link),
            Self::RemoveAddress(address) => {
                write!(f, "remove the address {} from {}", address.net, address.link)
            }
        }
    }
}

/// Why a device cannot be brought to its desired state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Obstacle {
    /// There is no device of this name.
    Missing,
    /// The device of this name was made by another program.
    Foreign,
}

/// A device that steps cannot bring to its desired state. Its addresses, routes and
/// settings are left as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmet {
    /// Name of the device.
    pub link: String,
    /// Why no step can do it.
    pub obstacle: Obstacle,
}

/// What leads from actual to desired.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Diff {
    /// Steps, to be taken in this order.
    pub steps: Vec<Step>,
    /// What no step can reach.
    pub unmet: Vec<Unmet>,
}

impl Diff {
    /// Everything is as it should be.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.unmet.is_empty()
    }
}

/// Compares what is there with what should be.
#[must_use]
pub fn diff(actual: &Actual, desired: &Desired) -> Diff {
    let unmet = unmet(actual, desired);
    let mut blocked: BTreeSet<&str> = unmet.iter().map(|unmet| unmet.link.as_str()).collect();
    let mut steps = Vec::new();
    for link in incomplete_pairs(actual, desired) {
        let ends = [link.name.as_str(), link.peer.as_str()];
        if !ends.iter().any(|end| blocked.contains(end)) {
            steps.push(Step::AddVeth(link.clone()));
        }
        blocked.extend(ends);
    }
    steps.extend(sysctls(actual, desired, &blocked));
    let offloads = desired.offloads.difference(&actual.offloads);
    steps.extend(offloads.filter(|row| !blocked.contains(row.link.as_str())).cloned().map(Step::SetOffload));
    steps.extend(links(actual, desired, &blocked));
    let wanted = desired.addresses.difference(&actual.addresses);
    steps.extend(wanted.filter(|row| !blocked.contains(row.link.as_str())).cloned().map(Step::AddAddress));
    steps.extend(routes(actual, desired, &blocked));
    let files = desired.files.iter().filter(|file| actual.files.get(&file.path) != Some(*file));
    steps.extend(files.cloned().map(Step::WriteFile));
    steps.extend(removals(actual, desired, &blocked));
    Diff { steps, unmet }
}

fn unmet(actual: &Actual, desired: &Desired) -> Vec<Unmet> {
    let obstacle = |link: &Link| match actual.links.get(&link.name) {
        None if link.kind == LinkKind::Veth => None,
        None => Some(Obstacle::Missing),
        Some(there) if !there.is_ours() || there.kind != link.kind => Some(Obstacle::Foreign),
        Some(_) => None,
    };
    let unmet = |link: &Link| {
        let obstacle = obstacle(link)?;
        Some(Unmet { link: link.name.clone(), obstacle })
    };
    desired.links.values().filter_map(unmet).collect()
}

/// One end of each veth pair that is not there, or is there with another end.
fn incomplete_pairs<'a>(actual: &'a Actual, desired: &'a Desired) -> impl Iterator<Item = &'a Link> {
    let is_whole = move |link: &Link| {
        let has = |name: &str, peer: &str| actual.links.get(name).is_some_and(|there| there.peer == peer);
        has(&link.name, &link.peer) && has(&link.peer, &link.name)
    };
    let pairs = desired.links.values().filter(|link| link.kind == LinkKind::Veth && link.name < link.peer);
    pairs.filter(move |link| !is_whole(link))
}

fn sysctls<'a>(
    actual: &'a Actual,
    desired: &'a Desired,
    blocked: &'a BTreeSet<&str>,
) -> impl Iterator<Item = Step> + 'a {
    let is_blocked = |sysctl: &Sysctl| sysctl.link().is_some_and(|link| blocked.contains(link));
    let differs = move |sysctl: &&Sysctl| match actual.sysctls.get(&sysctl.key) {
        _ if is_blocked(sysctl) => false,
        Some(value) => *value != sysctl.value,
        None => sysctl.required,
    };
    desired.sysctls.iter().filter(differs).cloned().map(Step::SetSysctl)
}

fn links<'a>(
    actual: &'a Actual,
    desired: &'a Desired,
    blocked: &'a BTreeSet<&str>,
) -> impl Iterator<Item = Step> + 'a {
    let differs =
        |link: &&Link| !blocked.contains(link.name.as_str()) && actual.links.get(&link.name) != Some(*link);
    desired.links.values().filter(differs).cloned().map(Step::SetLink)
}

fn routes<'a>(
    actual: &'a Actual,
    desired: &'a Desired,
    blocked: &'a BTreeSet<&str>,
) -> impl Iterator<Item = Step> + 'a {
    let missing = desired.routes.difference(&actual.routes);
    let missing = missing.filter(|row| !blocked.contains(row.link.as_str()));
    missing.cloned().map(|row| {
        let mut there = actual.routes.iter().filter(|route| route.protocol == ROUTE_PROTOCOL);
        match there.any(|route| key(route) == key(&row)) {
            true => Step::ReplaceRoute(row),
            false => Step::AddRoute(row),
        }
    })
}

/// What makes two routes one for the kernel.
fn key(route: &Route) -> (IpNet, &str) {
    (route.destination, &route.link)
}

/// Routes before addresses: a route may name an address as its source.
fn removals(actual: &Actual, desired: &Desired, blocked: &BTreeSet<&str>) -> Vec<Step> {
    let managed = |link: &str| desired.links.contains_key(link) && !blocked.contains(link);
    // `ReplaceRoute` puts the wanted route in the place of this one.
    let is_replaced = |route: &Route| {
        let same = |wanted: &&Route| key(wanted) == key(route);
        desired.routes.iter().find(same).is_some_and(|wanted| !actual.routes.contains(wanted))
    };
    let is_wanted = |route: &Route| desired.routes.contains(route) || is_replaced(route);
    let routes = actual
        .routes
        .iter()
        .filter(|route| route.protocol == ROUTE_PROTOCOL && managed(&route.link) && !is_wanted(route));
    let addresses = actual.addresses.difference(&desired.addresses).filter(|row| managed(&row.link));
    let routes = routes.cloned().map(Step::RemoveRoute);
    let rows = routes.chain(addresses.cloned().map(Step::RemoveAddress));
    rows.chain(unwanted(actual, desired).cloned().map(Step::RemoveLink)).collect()
}

/// One end of each veth pair of ours that must not exist. The other end goes with it.
fn unwanted<'a>(actual: &'a Actual, desired: &'a Desired) -> impl Iterator<Item = &'a Link> {
    let is_ours = |link: &&Link| link.kind == LinkKind::Veth && link.is_ours();
    let there = desired.unwanted.iter().filter_map(|name| actual.links.get(name)).filter(is_ours);
    there.filter(|link| link.name < link.peer || !desired.unwanted.contains(&link.peer))
}
