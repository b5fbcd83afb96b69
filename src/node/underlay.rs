//! The underlay: by which interface and address other hosts reach this one.
//!
//! It asks the kernel what there is and chooses by the configuration. It changes nothing.

use std::net::IpAddr;

use super::NodeError;
use crate::config::{self, Interface};
use crate::netlink::{Address, Link, Netlink};
use crate::packet::Family;

/// What was chosen.
#[derive(Debug, Clone)]
pub(super) struct Underlay {
    /// The interface's name.
    pub(super) interface: String,
    /// Its index; another one after it was made anew.
    pub(super) index: u32,
    /// Its MTU in bytes.
    pub(super) mtu: u32,
    /// Addresses that may be our public one, the preferred first. Never empty.
    pub(super) addresses: Vec<IpAddr>,
}

/// Chooses by `node.interface` and `node.public_ip`.
pub(super) async fn find(netlink: &Netlink, node: &config::Node) -> Result<Underlay, NodeError> {
    let links = netlink.links().await?;
    let addresses = netlink.addresses().await?;
    let index = match (&node.interface, node.public_ip) {
        (Interface::Name(name), _) => by_name(&links, name)?,
        (Interface::Address(address), _) => by_address(&addresses, *address, "node.interface")?,
        (Interface::Auto, Some(address)) => by_address(&addresses, address, "node.public_ip")?,
        (Interface::Auto, None) => by_default_route(netlink).await?,
    };
    if links.iter().any(|link| link.index == index && !link.up) {
        tracing::warn!("the underlay interface is down");
    }
    of_link(&links, &addresses, index, node.public_ip)
}

/// Looks again, while a node runs whose interface was `interface` and whose address was `held`: as long as it is there
/// nothing else is looked at. An interface that was chosen by what is gone is still the one.
pub(super) async fn again(
    netlink: &Netlink,
    node: &config::Node,
    (interface, held): (&str, IpAddr),
) -> Result<Underlay, NodeError> {
    let links = netlink.links().await?;
    let mut addresses = netlink.addresses().await?;
    addresses.retain(|address| address.is_lasting() || address.net.addr() == held);
    let link = links.iter().find(|link| link.name == interface);
    if let Some(link) = link
        && addresses.iter().any(|address| address.index == link.index && address.net.addr() == held)
    {
        return of_link(&links, &addresses, link.index, node.public_ip);
    }
    let found = find(netlink, node).await;
    let by_what_is_gone = !matches!(node.interface, Interface::Name(_)) && node.public_ip.is_none();
    match (found, link) {
        (Err(_), Some(link)) if by_what_is_gone => of_link(&links, &addresses, link.index, None),
        (found, _) => found,
    }
}

fn of_link(
    links: &[Link],
    addresses: &[Address],
    index: u32,
    public_ip: Option<IpAddr>,
) -> Result<Underlay, NodeError> {
    let link = links.iter().find(|link| link.index == index);
    let link = link.ok_or_else(|| NodeError::Environment("the underlay interface went away".into()))?;
    let mut own: Vec<&Address> = addresses.iter().filter(|address| address.index == index).collect();
    own.sort_by_key(|address| !address.is_lasting());
    let own: Vec<IpAddr> = own.into_iter().map(|address| address.net.addr()).collect();
    let addresses = match public_ip {
        Some(address) if own.contains(&address) => vec![address],
        Some(address) => return Err(not_ours(address, "node.public_ip", &own)),
        None => candidates(&own),
    };
    if addresses.is_empty() {
        let text = format!("{} has no address by which other hosts could reach it: give it one", link.name);
        return Err(NodeError::Environment(text));
    }
    Ok(Underlay { interface: link.name.clone(), index, mtu: link.mtu, addresses })
}

fn by_name(links: &[Link], name: &str) -> Result<u32, NodeError> {
    if let Some(link) = links.iter().find(|link| link.name == name) {
        return Ok(link.index);
    }
    let there: Vec<_> = links.iter().map(|link| link.name.as_str()).collect();
    let there = there.join(", ");
    Err(NodeError::Invalid(format!("node.interface = {name:?}: no such interface; there are {there}")))
}

fn by_address(addresses: &[Address], wanted: IpAddr, key: &str) -> Result<u32, NodeError> {
    if let Some(address) = addresses.iter().find(|address| address.net.addr() == wanted) {
        return Ok(address.index);
    }
    let all: Vec<IpAddr> = addresses.iter().map(|address| address.net.addr()).collect();
    Err(not_ours(wanted, key, &all))
}

async fn by_default_route(netlink: &Netlink) -> Result<u32, NodeError> {
    for family in [Family::V4, Family::V6] {
        if let Some(index) = netlink.default_interface(family).await? {
            return Ok(index);
        }
    }
    let text =
        "this host has no default route to choose an interface by: set node.interface or node.public_ip";
    Err(NodeError::Environment(text.into()))
}

fn not_ours(wanted: IpAddr, key: &str, own: &[IpAddr]) -> NodeError {
    let own: Vec<_> = candidates(own).iter().map(ToString::to_string).collect();
    let own = if own.is_empty() { "none".to_owned() } else { own.join(", ") };
    NodeError::Invalid(format!("{key} = {wanted} is on no interface of this host; its addresses are: {own}"))
}

/// Addresses that another host could use: no loopback, no link-local; IPv4 first, else in the kernel's order.
fn candidates(own: &[IpAddr]) -> Vec<IpAddr> {
    let reachable = |address: &&IpAddr| match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    };
    let mut usable: Vec<IpAddr> = own.iter().filter(reachable).copied().collect();
    usable.sort_by_key(IpAddr::is_ipv6);
    usable
}
