//! rtnetlink, said once: links, addresses and routes in this program's words. The only module that names the crate.
//!
//! A [`Netlink`] belongs to the network namespace of the thread that made it. It asks and sets; what should be there is
//! decided by `node` and `backend`. [`Netlink::shape`] brings a device to a wanted shape by comparing it with a dump, so
//! that a device left by a killed daemon is mended rather than made again.
//!
//! Invariant: only routes of our own protocol number, and only addresses of our own device, are ever removed.

use std::net::IpAddr;
use std::pin::Pin;

use futures_util::{Stream, StreamExt, TryStreamExt};
use ipnet::IpNet;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope,
};
use rtnetlink::{Handle, LinkUnspec, MulticastGroup, RouteMessageBuilder};

use crate::packet::Family;

/// The mark of our routes (`ip route` shows "proto 182"); not taken in iproute2's rt_protos.
pub const ROUTE_PROTOCOL: u8 = 182;

/// What the kernel refused.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No netlink socket.
    #[error("cannot open a netlink socket: {0}")]
    Open(#[source] std::io::Error),
    /// A request failed.
    #[error("cannot {what}: {error}")]
    Request {
        /// What was asked for, as a verb with its object.
        what: String,
        /// The kernel's answer.
        error: rtnetlink::Error,
    },
}

/// A network interface.
#[derive(Debug, Clone, Default)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Alias: how we mark what is ours.
    pub alias: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// It is a TUN or TAP device.
    pub is_tun: bool,
    /// It is up (administratively).
    pub up: bool,
    /// Something is at its other end; for a TUN: a process has it open.
    pub carrier: bool,
    /// Packets that came in, which for a TUN means: were written by its owner.
    pub rx_packets: u64,
    /// Packets dropped on their way out, which for a TUN means: its queue was full, or nobody had it open.
    pub tx_dropped: u64,
}

/// An address on an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// The interface.
    pub index: u32,
    /// Address and prefix length.
    pub net: IpNet,
    message: AddressMessage,
}

impl Address {
    /// It can be sent from and will stay: not still being tried, not on its way out, not one of IPv6's passing ones
    /// (RFC 8981).
    #[must_use]
    pub fn is_lasting(&self) -> bool {
        let flags = self.message.header.flags;
        let unsettled = AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed;
        let passing = AddressHeaderFlags::Deprecated | AddressHeaderFlags::Secondary;
        let settled = !flags.intersects(unsettled) || flags.contains(AddressHeaderFlags::Optimistic);
        // Secondary means temporary in IPv6 (IFA_F_TEMPORARY), and nothing of the kind in IPv4.
        settled && (self.net.addr().is_ipv4() || !flags.intersects(passing))
    }
}

/// How a device should look.
#[derive(Debug, Clone)]
pub struct Shape {
    /// MTU in bytes.
    pub mtu: u16,
    /// Alias to mark it with.
    pub alias: String,
    /// Its addresses, each alone (/32 or /128).
    pub addresses: Vec<IpAddr>,
    /// Networks to route to it, from the address of their family.
    pub routes: Vec<IpNet>,
}

/// Tells that an interface or its addresses may have changed.
pub struct Monitor {
    messages: Pin<Box<dyn Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + Send>>,
}

impl std::fmt::Debug for Monitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Monitor")
    }
}

impl Monitor {
    /// Subscribes, in the namespace of the calling thread. Needs a tokio runtime.
    pub fn new() -> Result<Self, NetlinkError> {
        let groups = [MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];
        let (connection, _, messages) =
            rtnetlink::new_multicast_connection(&groups).map_err(NetlinkError::Open)?;
        tokio::spawn(connection);
        Ok(Self { messages: Box::pin(messages.map(|(message, _)| message)) })
    }

    /// Waits for news of the interface `name`; it says only that it is worth to look. Cancel safe.
    pub async fn changed(&mut self, name: &str, index: u32) {
        while let Some(message) = self.messages.next().await {
            if is_about(&message, name, index) {
                return;
            }
        }
        // The connection has ended; who looks now and then still sees.
        std::future::pending().await
    }
}

/// What was lost because the kernel's queue was full may have been about anything.
fn is_about(message: &NetlinkMessage<RouteNetlinkMessage>, name: &str, index: u32) -> bool {
    let NetlinkPayload::InnerMessage(message) = &message.payload else { return true };
    if let RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) = message {
        address.header.index == index
    } else if let RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) = message {
        let named = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::IfName(n) if n == name);
        link.header.index == index || link.attributes.iter().any(named)
    } else {
        false
    }
}

/// A netlink connection in one network namespace.
#[derive(Debug, Clone)]
pub struct Netlink {
    handle: Handle,
}

impl Netlink {
    /// Connects, in the namespace of the calling thread. Needs a tokio runtime, which then drives the connection.
    pub fn new() -> Result<Self, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Open)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// All interfaces.
    pub async fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let dump: Vec<LinkMessage> =
            self.handle.link().get().execute().try_collect().await.map_err(failed("list interfaces"))?;
        Ok(dump.into_iter().map(link).collect())
    }

    /// One interface by name.
    pub async fn link(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        Ok(self.links().await?.into_iter().find(|link| link.name == name))
    }

    /// All addresses.
    pub async fn addresses(&self) -> Result<Vec<Address>, NetlinkError> {
        let dump: Vec<AddressMessage> =
            self.handle.address().get().execute().try_collect().await.map_err(failed("list addresses"))?;
        Ok(dump.into_iter().filter_map(address).collect())
    }

    /// The interface of the default route of a family with the lowest metric.
    pub async fn default_interface(&self, family: Family) -> Result<Option<u32>, NetlinkError> {
        let mut best: Option<(u32, u32)> = None;
        for route in self.routes(family).await? {
            let is_default = route.header.destination_prefix_length == 0
                && u32::from(route.header.table) == u32::from(RouteHeader::RT_TABLE_MAIN);
            let (mut metric, mut index) = (0, None);
            for attribute in &route.attributes {
                if let RouteAttribute::Priority(value) = attribute {
                    metric = *value;
                } else if let RouteAttribute::Oif(value) = attribute {
                    index = Some(*value);
                }
            }
            if let (true, Some(index)) = (is_default, index) {
                best = Some(best.map_or((metric, index), |known| known.min((metric, index))));
            }
        }
        Ok(best.map(|(_, index)| index))
    }

    /// The name of the interface by which the kernel sends what this host has for `to` (`lo`: it is this host's own);
    /// `None`: it has no route.
    pub async fn way_to(&self, to: IpAddr) -> Result<Option<String>, NetlinkError> {
        let question = match to {
            IpAddr::V4(v4) => {
                RouteMessageBuilder::<std::net::Ipv4Addr>::new().destination_prefix(v4, 32).build()
            }
            IpAddr::V6(v6) => {
                RouteMessageBuilder::<std::net::Ipv6Addr>::new().destination_prefix(v6, 128).build()
            }
        };
        let answer: Vec<RouteMessage> = match self.handle.route().get(question).execute().try_collect().await
        {
            Ok(answer) => answer,
            // "Network is unreachable", or a route that says so.
            Err(rtnetlink::Error::NetlinkError(_)) => return Ok(None),
            Err(error) => return Err(failed(&format!("ask for the route to {to}"))(error)),
        };
        let out = answer.iter().flat_map(|route| &route.attributes).find_map(|attribute| {
            if let RouteAttribute::Oif(index) = attribute { Some(*index) } else { None }
        });
        let Some(index) = out else { return Ok(None) };
        Ok(self.links().await?.into_iter().find(|link| link.index == index).map(|link| link.name))
    }

    /// Removes an interface, and with it its addresses and routes.
    pub async fn delete(&self, index: u32) -> Result<(), NetlinkError> {
        self.handle.link().del(index).execute().await.map_err(failed("remove the device"))
    }

    /// Brings the interface to `shape`: what is missing is added, what is there stays, what is too much goes last.
    pub async fn shape(&self, index: u32, shape: &Shape) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index)
            .mtu(shape.mtu.into())
            .append_extra_attribute(LinkAttribute::IfAlias(shape.alias.clone()))
            .up()
            .build();
        let what = format!("set MTU {} and link up on the overlay device", shape.mtu);
        self.handle.link().set(message).execute().await.map_err(failed(&what))?;

        let (stale_addresses, missing) = self.compare_addresses(index, shape).await?;
        for address in missing {
            let length = if address.is_ipv4() { 32 } else { 128 };
            let what = format!("add the address {address}/{length} to the overlay device");
            let mut request = self.handle.address().add(index, address, length);
            // No neighbour can have it: duplicate address detection would only delay its use.
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
            request.execute().await.map_err(failed(&what))?;
        }
        let (stale_routes, missing) = self.compare_routes(index, shape).await?;
        for net in missing {
            let source = shape.addresses.iter().copied().find(|a| a.is_ipv4() == net.addr().is_ipv4());
            let what = format!("route {net} to the overlay device");
            self.handle
                .route()
                .add(route_message(index, net, source))
                .execute()
                .await
                .map_err(failed(&what))?;
        }
        for route in stale_routes {
            self.handle.route().del(route).execute().await.map_err(failed("remove an old route"))?;
        }
        for address in stale_addresses {
            self.handle.address().del(address).execute().await.map_err(failed("remove an old address"))?;
        }
        Ok(())
    }

    /// (on the device but not wanted, wanted but not on the device)
    async fn compare_addresses(
        &self,
        index: u32,
        shape: &Shape,
    ) -> Result<(Vec<AddressMessage>, Vec<IpAddr>), NetlinkError> {
        let present: Vec<Address> =
            self.addresses().await?.into_iter().filter(|address| address.index == index).collect();
        let missing = shape.addresses.iter().copied();
        let missing = missing.filter(|wanted| !present.iter().any(|address| address.net.addr() == *wanted));
        let missing = missing.collect();
        let stale = present.into_iter().filter(|address| !shape.addresses.contains(&address.net.addr()));
        Ok((stale.map(|address| address.message).collect(), missing))
    }

    /// (ours on the device but not wanted, wanted but not there)
    async fn compare_routes(
        &self,
        index: u32,
        shape: &Shape,
    ) -> Result<(Vec<RouteMessage>, Vec<IpNet>), NetlinkError> {
        let mut ours = Vec::new();
        for family in [Family::V4, Family::V6] {
            let dump = self.routes(family).await?.into_iter();
            ours.extend(dump.filter(|route| is_ours(route, index)));
        }
        let there = |net: &IpNet| ours.iter().any(|route| destination(route) == Some(*net));
        let missing = shape.routes.iter().copied().filter(|net| !there(net)).collect();
        let wanted = |route: &RouteMessage| destination(route).is_some_and(|net| shape.routes.contains(&net));
        let stale = ours.into_iter().filter(|route| !wanted(route)).collect();
        Ok((stale, missing))
    }

    async fn routes(&self, family: Family) -> Result<Vec<RouteMessage>, NetlinkError> {
        let question = match family {
            Family::V4 => RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
            Family::V6 => RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
        };
        self.handle.route().get(question).execute().try_collect().await.map_err(failed("list routes"))
    }
}

fn failed(what: &str) -> impl FnOnce(rtnetlink::Error) -> NetlinkError {
    let what = what.to_owned();
    move |error| NetlinkError::Request { what, error }
}

fn link(message: LinkMessage) -> Link {
    let up = message.header.flags.contains(LinkFlags::Up);
    let carrier = message.header.flags.contains(LinkFlags::LowerUp);
    let mut link = Link { index: message.header.index, up, carrier, ..Link::default() };
    for attribute in message.attributes {
        if let LinkAttribute::IfName(name) = attribute {
            link.name = name;
        } else if let LinkAttribute::IfAlias(alias) = attribute {
            link.alias = alias;
        } else if let LinkAttribute::Mtu(mtu) = attribute {
            link.mtu = mtu;
        } else if let LinkAttribute::LinkInfo(infos) = attribute {
            link.is_tun = infos.contains(&LinkInfo::Kind(InfoKind::Tun));
        } else if let LinkAttribute::Stats64(stats) = attribute {
            (link.rx_packets, link.tx_dropped) = (stats.rx_packets, stats.tx_dropped);
        }
    }
    link
}

fn address(message: AddressMessage) -> Option<Address> {
    let of = |attribute: &AddressAttribute| {
        if let AddressAttribute::Local(address) = attribute { Some(*address) } else { None }
    };
    let local = message.attributes.iter().find_map(of);
    // IPv6 has no Local attribute unless the address has a peer.
    let plain = message.attributes.iter().find_map(|attribute| {
        if let AddressAttribute::Address(address) = attribute { Some(*address) } else { None }
    });
    let net = IpNet::new(local.or(plain)?, message.header.prefix_len).ok()?;
    Some(Address { index: message.header.index, net, message })
}

fn route_message(index: u32, net: IpNet, source: Option<IpAddr>) -> RouteMessage {
    let protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    match (net, source) {
        (IpNet::V4(net), source) => {
            let mut builder = RouteMessageBuilder::<std::net::Ipv4Addr>::new()
                .destination_prefix(net.network(), net.prefix_len())
                .output_interface(index)
                .protocol(protocol)
                .scope(RouteScope::Link);
            if let Some(IpAddr::V4(source)) = source {
                builder = builder.pref_source(source);
            }
            builder.build()
        }
        (IpNet::V6(net), source) => {
            let mut builder = RouteMessageBuilder::<std::net::Ipv6Addr>::new()
                .destination_prefix(net.network(), net.prefix_len())
                .output_interface(index)
                .protocol(protocol);
            if let Some(IpAddr::V6(source)) = source {
                builder = builder.pref_source(source);
            }
            builder.build()
        }
    }
}

fn is_ours(route: &RouteMessage, index: u32) -> bool {
    let on_device = route.attributes.contains(&RouteAttribute::Oif(index));
    on_device && route.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL)
}

fn destination(route: &RouteMessage) -> Option<IpNet> {
    let address = route.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Destination(address) = attribute { Some(address) } else { None }
    })?;
    let length = route.header.destination_prefix_length;
    if let RouteAddress::Inet(v4) = address {
        IpNet::new(IpAddr::V4(*v4), length).ok()
    } else if let RouteAddress::Inet6(v6) = address {
        IpNet::new(IpAddr::V6(*v6), length).ok()
    } else {
        None
    }
}
