//! The search for the underlay interface and its addresses, by the configuration and what the
//! kernel has.
//!
//! It changes nothing.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::error::UnderlayError;
use crate::config::{InterfaceChoice, NodeConfig};
use crate::netlink::{Address, Detection, Link};
use crate::packet::Family;
use crate::reconcile::Reader;
use crate::route::unfit;

/// The underlay interface.
#[derive(Debug, Clone)]
pub(in crate::node) struct Underlay {
    /// Interface name.
    pub(in crate::node) interface: String,
    /// Interface index. It changes when the interface is made again.
    pub(in crate::node) index: u32,
    /// Index of the interface by which datagrams to peers leave. It differs from `index` if our
    /// address is on another one (for example on `lo`, where a routing daemon announces it).
    pub(in crate::node) egress: u32,
    /// MTU of the interface by which datagrams leave, in bytes.
    pub(in crate::node) mtu: u32,
    /// Whether packets can leave by that interface.
    pub(in crate::node) link_state: LinkState,
    /// Addresses that may be our public one, the preferred one first. Never empty.
    pub(in crate::node) addresses: Vec<IpAddr>,
    /// All addresses of this host, each with the prefix of its link.
    pub(in crate::node) own: Vec<IpNet>,
}

/// State of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::node) enum LinkState {
    /// It is up and has a carrier.
    Working,
    /// It is up, but has no carrier.
    NoCarrier,
    /// It is administratively down.
    Down,
}

impl LinkState {
    fn of(link: &Link) -> Self {
        match (link.up, link.carrier) {
            (false, _) => Self::Down,
            (true, false) => Self::NoCarrier,
            (true, true) => Self::Working,
        }
    }
}

/// Takes MTU and state from the interface by which the kernel reaches `peers`, if that is another
/// one than the interface with our address. Of several, the one with the smallest MTU counts.
pub(in crate::node) async fn follow_routes(
    kernel: &Reader,
    underlay: &mut Underlay,
    peers: impl Iterator<Item = IpAddr>,
    overlay_device: &str,
) -> Result<(), UnderlayError> {
    /// Each peer costs two messages to the kernel.
    const PEERS: usize = 16;
    let mut indexes = BTreeSet::new();
    for peer in peers.take(PEERS) {
        indexes.extend(kernel.interface_to(peer).await?);
    }
    if indexes.is_empty() || indexes.contains(&underlay.index) {
        return Ok(());
    }
    let links = kernel.links().await?;
    let is_way_out =
        |link: &&Link| indexes.contains(&link.index) && link.name != "lo" && link.name != overlay_device;
    if let Some(link) = links.iter().filter(is_way_out).min_by_key(|link| link.mtu) {
        (underlay.egress, underlay.mtu, underlay.link_state) = (link.index, link.mtu, LinkState::of(link));
    }
    Ok(())
}

/// Chooses by `node.interface` and `node.public_ip`, else by the kernel's route to the store, else
/// by the default route. `store`: addresses of the store.
pub(in crate::node) async fn find(
    kernel: &Reader,
    node: &NodeConfig,
    store: &[IpAddr],
) -> Result<Underlay, UnderlayError> {
    let links = kernel.links().await?;
    let addresses = kernel.addresses().await?;
    let index = match (&node.interface, node.public_ip) {
        (InterfaceChoice::Name(name), _) => by_name(&links, name)?,
        (InterfaceChoice::Address(address), _) => by_address(&addresses, *address, "node.interface")?,
        (InterfaceChoice::Auto, Some(address)) => by_address(&addresses, address, "node.public_ip")?,
        (InterfaceChoice::Auto, None) => by_route(kernel, store).await?,
    };
    let is_wanted = |address: IpAddr| node.public_ip.is_none_or(|public| public == address);
    let is_tentative = |address: &&Address| {
        address.index == index && address.detection == Detection::Running && is_wanted(address.net.addr())
    };
    let own = addresses.iter().filter(is_tentative).map(|address| address.net.addr());
    if !candidates(&own.collect::<Vec<_>>()).is_empty() {
        let name = links.iter().find(|link| link.index == index).map(|link| link.name.clone());
        return Err(UnderlayError::Tentative(name.unwrap_or_default()));
    }
    of_link(&links, &addresses, index, node.public_ip)
}

/// Searches again while the node runs on `interface` with the address `held`. While the interface
/// has the address, nothing else is considered. An interface that was chosen by an address or a
/// route that is gone stays the choice.
pub(super) async fn find_again(
    kernel: &Reader,
    (node, store): (&NodeConfig, &[IpAddr]),
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
    let found = find(kernel, node, store).await;
    let is_indirect = !matches!(node.interface, InterfaceChoice::Name(_)) && node.public_ip.is_none();
    match (found, link) {
        (Err(_), Some(link)) if is_indirect => of_link(&links, &addresses, link.index, None),
        (found, _) => found,
    }
}

fn of_link(
    links: &[Link],
    all: &[Address],
    index: u32,
    public_ip: Option<IpAddr>,
) -> Result<Underlay, UnderlayError> {
    let link = links.iter().find(|link| link.index == index);
    let link = link.ok_or(UnderlayError::Gone)?;
    let is_usable = |address: &&Address| address.index == index && address.detection == Detection::Done;
    let mut own: Vec<&Address> = all.iter().filter(is_usable).collect();
    own.sort_by_key(|address| !address.is_lasting);
    let own: Vec<IpAddr> = own.into_iter().map(|address| address.net.addr()).collect();
    let addresses = match public_ip {
        Some(address) if own.contains(&address) => match unfit(address) {
            Some(why) => return Err(UnderlayError::Unfit { address, why }),
            None => vec![address],
        },
        Some(address) => return Err(not_ours(address, "node.public_ip", &own)),
        None => candidates(&own),
    };
    if addresses.is_empty() {
        return Err(UnderlayError::NoAddress(link.name.clone()));
    }
    let (interface, mtu, link_state) = (link.name.clone(), link.mtu, LinkState::of(link));
    let own = all.iter().map(|address| address.net).filter(|net| unfit(net.addr()).is_none()).collect();
    Ok(Underlay { interface, index, egress: index, mtu, link_state, addresses, own })
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

async fn by_route(kernel: &Reader, store: &[IpAddr]) -> Result<u32, UnderlayError> {
    for address in store.iter().filter(|address| !address.is_loopback()) {
        if let Some(index) = kernel.interface_to(*address).await? {
            return Ok(index);
        }
    }
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
        IpAddr::V4(v4) => !v4.is_link_local() && unfit(**address).is_none(),
        IpAddr::V6(_) => unfit(**address).is_none(),
    };
    let mut usable: Vec<IpAddr> = own.iter().filter(reachable).copied().collect();
    usable.sort_by_key(IpAddr::is_ipv6);
    usable
}
