//! The search for the underlay interface and its addresses, by the configuration and what the
//! kernel has.
//!
//! It changes nothing.

use std::net::IpAddr;

use super::error::UnderlayError;
use crate::config::{InterfaceChoice, NodeConfig};
use crate::netlink::{Address, Link};
use crate::packet::Family;
use crate::reconcile::Reader;

/// The underlay interface.
#[derive(Debug, Clone)]
pub(in crate::node) struct Underlay {
    /// Interface name.
    pub(in crate::node) interface: String,
    /// Interface index. It changes when the interface is made again.
    pub(in crate::node) index: u32,
    /// MTU of the interface in bytes.
    pub(in crate::node) mtu: u32,
    /// Addresses that may be our public one, the preferred one first. Never empty.
    pub(in crate::node) addresses: Vec<IpAddr>,
}

/// Chooses by `node.interface` and `node.public_ip`.
pub(in crate::node) async fn find(kernel: &Reader, node: &NodeConfig) -> Result<Underlay, UnderlayError> {
    let links = kernel.links().await?;
    let addresses = kernel.addresses().await?;
    let index = match (&node.interface, node.public_ip) {
        (InterfaceChoice::Name(name), _) => by_name(&links, name)?,
        (InterfaceChoice::Address(address), _) => by_address(&addresses, *address, "node.interface")?,
        (InterfaceChoice::Auto, Some(address)) => by_address(&addresses, address, "node.public_ip")?,
        (InterfaceChoice::Auto, None) => by_default_route(kernel).await?,
    };
    if links.iter().any(|link| link.index == index && !link.up) {
        tracing::warn!("the underlay interface is down");
    }
    of_link(&links, &addresses, index, node.public_ip)
}

/// Searches again while the node runs on `interface` with the address `held`. While the interface
/// has the address, nothing else is considered. An interface that was chosen by an address or a
/// route that is gone stays the choice.
pub(super) async fn find_again(
    kernel: &Reader,
    node: &NodeConfig,
    (interface, held): (&str, IpAddr),
) -> Result<Underlay, UnderlayError> {
    let links = kernel.links().await?;
    let mut addresses = kernel.addresses().await?;
    addresses.retain(|address| address.is_lasting || address.net.addr() == held);
    let link = links.iter().find(|link| link.name == interface);
    if let Some(link) = link
        && addresses.iter().any(|address| address.index == link.index && address.net.addr() == held)
    {
        return of_link(&links, &addresses, link.index, node.public_ip);
    }
    let found = find(kernel, node).await;
    let is_indirect = !matches!(node.interface, InterfaceChoice::Name(_)) && node.public_ip.is_none();
    match (found, link) {
        (Err(_), Some(link)) if is_indirect => of_link(&links, &addresses, link.index, None),
        (found, _) => found,
    }
}

fn of_link(
    links: &[Link],
    addresses: &[Address],
    index: u32,
    public_ip: Option<IpAddr>,
) -> Result<Underlay, UnderlayError> {
    let link = links.iter().find(|link| link.index == index);
    let link = link.ok_or(UnderlayError::Gone)?;
    let mut own: Vec<&Address> = addresses.iter().filter(|address| address.index == index).collect();
    own.sort_by_key(|address| !address.is_lasting);
    let own: Vec<IpAddr> = own.into_iter().map(|address| address.net.addr()).collect();
    let addresses = match public_ip {
        Some(address) if own.contains(&address) => vec![address],
        Some(address) => return Err(not_ours(address, "node.public_ip", &own)),
        None => candidates(&own),
    };
    if addresses.is_empty() {
        return Err(UnderlayError::NoAddress(link.name.clone()));
    }
    Ok(Underlay { interface: link.name.clone(), index, mtu: link.mtu, addresses })
}

fn by_name(links: &[Link], name: &str) -> Result<u32, UnderlayError> {
    if let Some(link) = links.iter().find(|link| link.name == name) {
        return Ok(link.index);
    }
    let there = links.iter().map(|link| link.name.clone()).collect();
    Err(UnderlayError::NoInterface { name: name.to_owned(), there })
}

fn by_address(addresses: &[Address], wanted: IpAddr, key: &'static str) -> Result<u32, UnderlayError> {
    if let Some(address) = addresses.iter().find(|address| address.net.addr() == wanted) {
        return Ok(address.index);
    }
    let all: Vec<IpAddr> = addresses.iter().map(|address| address.net.addr()).collect();
    Err(not_ours(wanted, key, &all))
}

async fn by_default_route(kernel: &Reader) -> Result<u32, UnderlayError> {
    for family in [Family::V4, Family::V6] {
        if let Some(index) = kernel.default_interface(family).await? {
            return Ok(index);
        }
    }
    Err(UnderlayError::NoDefaultRoute)
}

fn not_ours(address: IpAddr, key: &'static str, own: &[IpAddr]) -> UnderlayError {
    UnderlayError::NotOurs { key, address, own: candidates(own) }
}

/// The addresses that another host could use (neither loopback nor link-local): IPv4 first, else in
/// the kernel's order.
fn candidates(own: &[IpAddr]) -> Vec<IpAddr> {
    let reachable = |address: &&IpAddr| match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    };
    let mut usable: Vec<IpAddr> = own.iter().filter(reachable).copied().collect();
    usable.sort_by_key(IpAddr::is_ipv6);
    usable
}
