//! Routes of the kernel: dumps of one protocol, changes, and the questions that are asked of the
//! table.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol,
    RouteScope,
};

use super::connection::Netlink;
use super::error::{NetlinkError, failed};
use crate::packet::Family;

/// A route to a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Destination prefix.
    pub destination: IpNet,
    /// Index of the device that packets leave by.
    pub index: u32,
    /// Source address that the kernel prefers for packets of this host.
    pub source: Option<IpAddr>,
    /// Protocol number: which program made the route.
    pub protocol: u8,
}

/// How the kernel sends packets to an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NextHop {
    /// Index of the device that packets leave by.
    pub index: u32,
    /// MTU that the administrator has given to the route.
    pub mtu: Option<u32>,
}

/// What the kernel does with packets for an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// It sends them by the device with this name (`lo`: the address is this host's own).
    Device(String),
    /// It has no route for them.
    NoRoute,
    /// A route of the type `unreachable` or `prohibit` refuses them.
    Unreachable,
    /// A route of the type `blackhole` drops them silently.
    Blackhole,
}

impl Way {
    /// By the error that the kernel answers (`fib_props` in net/ipv4/fib_semantics.c).
    fn refused(errno: i32) -> Self {
        match errno {
            libc::EHOSTUNREACH | libc::EACCES => Self::Unreachable,
            libc::EINVAL => Self::Blackhole,
            _ => Self::NoRoute,
        }
    }

    /// Name of the device, if there is one.
    #[must_use]
    pub fn device(self) -> Option<String> {
        match self {
            Self::Device(name) => Some(name),
            Self::NoRoute | Self::Unreachable | Self::Blackhole => None,
        }
    }
}

impl Netlink {
    /// The routes of one protocol in the main table, of the shape in which we make them.
    pub async fn routes(&self, protocol: u8) -> Result<Vec<Route>, NetlinkError> {
        Ok(self.dump_protocol(protocol).await?.iter().filter_map(route).collect())
    }

    /// Adds a route. It fails if there is one with the same destination and metric already.
    pub async fn add_route(&self, route: &Route) -> Result<(), NetlinkError> {
        let what = format!("route {} to the overlay device", route.destination);
        self.handle.route().add(message(route)).execute().await.map_err(failed(what))
    }

    /// Puts a route in the place of the one with the same destination and metric.
    pub async fn replace_route(&self, route: &Route) -> Result<(), NetlinkError> {
        let what = format!("replace the route {} to the overlay device", route.destination);
        self.handle.route().add(message(route)).replace().execute().await.map_err(failed(what))
    }

    /// Removes a route, if it is there.
    pub async fn remove_route(&self, unwanted: &Route) -> Result<(), NetlinkError> {
        for found in self.dump_protocol(unwanted.protocol).await? {
            if route(&found).as_ref() == Some(unwanted) {
                let what = format!("remove the route {}", unwanted.destination);
                self.handle.route().del(found).execute().await.map_err(failed(what))?;
            }
        }
        Ok(())
    }

    /// The device of the default route of a family with the lowest metric.
    pub async fn default_interface(&self, family: Family) -> Result<Option<u32>, NetlinkError> {
        let mut best: Option<(u32, u32)> = None;
        for route in self.dump(family, RouteHeader::RT_TABLE_MAIN, RouteProtocol::Unspec).await? {
            let is_default = route.header.destination_prefix_length == 0
                && u32::from(route.header.table) == u32::from(RouteHeader::RT_TABLE_MAIN);
            let (mut metric, mut index) = (0, None);
            for attribute in &route.attributes {
                if let RouteAttribute::Priority(value) = attribute {
                    metric = *value;
                } else if let RouteAttribute::Oif(value) = attribute {
                    index = Some(*value);
                } else if let RouteAttribute::MultiPath(hops) = attribute {
                    // Equal paths: any of them leads out.
                    index = hops.first().map(|hop| hop.interface_index);
                }
            }
            if let (true, Some(index)) = (is_default, index) {
                best = Some(best.map_or((metric, index), |known| known.min((metric, index))));
            }
        }
        Ok(best.map(|(_, index)| index))
    }

    /// The route of another program with this destination and our metric, as `ip route` shows it.
    pub async fn foreign_route(&self, destination: IpNet, own: u8) -> Result<Option<String>, NetlinkError> {
        let (family, address) = (Family::of(destination.addr()), destination.network());
        let dump = self.dump(family, RouteHeader::RT_TABLE_MAIN, RouteProtocol::Unspec).await?;
        let is_same = |message: &&RouteMessage| {
            let header = &message.header;
            header.table == RouteHeader::RT_TABLE_MAIN
                && header.protocol != RouteProtocol::from(own)
                && header.destination_prefix_length == destination.prefix_len()
                && destination_of(message).unwrap_or(address) == address
                && metric_of(message) == default_metric(family)
        };
        let Some(found) = dump.iter().find(is_same) else { return Ok(None) };
        let mut text = destination.trunc().to_string();
        for attribute in &found.attributes {
            if let RouteAttribute::Gateway(gateway) = attribute
                && let Some(gateway) = self::address(gateway)
            {
                text = format!("{text} via {gateway}");
            } else if let RouteAttribute::Oif(index) = attribute {
                let name = self.links().await?.into_iter().find(|link| link.index == *index);
                text = format!("{text} dev {}", name.map_or_else(|| index.to_string(), |link| link.name));
            }
        }
        Ok(Some(format!("{text} proto {}", u8::from(found.header.protocol))))
    }

    /// What the kernel does with packets of this host for `to`.
    pub async fn route_to(&self, to: IpAddr) -> Result<Way, NetlinkError> {
        let route = match self.ask(to, RouteFlags::empty()).await? {
            Ok(route) => route,
            Err(way) => return Ok(way),
        };
        let Some(NextHop { index, .. }) = next_hop(&route) else { return Ok(Way::NoRoute) };
        let link = self.links().await?.into_iter().find(|link| link.index == index);
        Ok(link.map_or(Way::NoRoute, |link| Way::Device(link.name)))
    }

    /// The index of the device by which the kernel sends packets of this host for `to`. `None`:
    /// there is none.
    pub async fn interface_to(&self, to: IpAddr) -> Result<Option<u32>, NetlinkError> {
        let answer = self.ask(to, RouteFlags::empty()).await?;
        Ok(answer.ok().as_ref().and_then(next_hop).map(|hop| hop.index))
    }

    /// How the kernel sends packets of this host for `to`; `None`: there is no route.
    ///
    /// The answer is the route as its administrator wrote it (RTM_F_FIB_MATCH). Without that flag
    /// it would have the MTU that the kernel has learned from ICMP messages.
    pub async fn next_hop(&self, to: IpAddr) -> Result<Option<NextHop>, NetlinkError> {
        Ok(self.ask(to, RouteFlags::FibMatch).await?.ok().as_ref().and_then(next_hop))
    }

    /// The route for `to`, or what the kernel does without one.
    async fn ask(&self, to: IpAddr, flags: RouteFlags) -> Result<Result<RouteMessage, Way>, NetlinkError> {
        let mut question = match to {
            IpAddr::V4(v4) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(v4, 32).build(),
            IpAddr::V6(v6) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(v6, 128).build(),
        };
        // The kernel takes no other value here in a question (inet_rtm_valid_getroute_req).
        question.header = RouteHeader {
            address_family: question.header.address_family,
            destination_prefix_length: question.header.destination_prefix_length,
            flags,
            ..RouteHeader::default()
        };
        match self.handle.route().get(question).execute().try_next().await {
            Ok(answer) => Ok(answer.ok_or(Way::NoRoute)),
            Err(rtnetlink::Error::NetlinkError(error)) => Ok(Err(Way::refused(-error.raw_code()))),
            Err(error) => Err(failed(format!("ask for the route to {to}"))(error)),
        }
    }

    async fn dump_protocol(&self, protocol: u8) -> Result<Vec<RouteMessage>, NetlinkError> {
        let protocol = RouteProtocol::from(protocol);
        let mut all = self.dump(Family::V4, RouteHeader::RT_TABLE_MAIN, protocol).await?;
        all.extend(self.dump(Family::V6, RouteHeader::RT_TABLE_MAIN, protocol).await?);
        // A kernel before 4.20 does not filter.
        all.retain(|route| route.header.protocol == protocol);
        Ok(all)
    }

    /// Lists the routes of a table and a protocol (unspecified: of all).
    async fn dump(
        &self,
        family: Family,
        table: u8,
        protocol: RouteProtocol,
    ) -> Result<Vec<RouteMessage>, NetlinkError> {
        let address_family = match family {
            Family::V4 => AddressFamily::Inet,
            Family::V6 => AddressFamily::Inet6,
        };
        let mut question = RouteMessage::default();
        question.header = RouteHeader { address_family, table, protocol, ..RouteHeader::default() };
        self.handle.route().get(question).execute().try_collect().await.map_err(failed("list routes"))
    }
}

/// The device and the MTU of a route. Of several next hops, the first one stands for all.
fn next_hop(route: &RouteMessage) -> Option<NextHop> {
    let (mut index, mut mtu) = (None, None);
    for attribute in &route.attributes {
        if let RouteAttribute::Oif(value) = attribute {
            index = Some(*value);
        } else if let RouteAttribute::MultiPath(hops) = attribute {
            index = hops.first().map(|hop| hop.interface_index);
        } else if let RouteAttribute::Metrics(metrics) = attribute {
            mtu = metrics
                .iter()
                .find_map(|metric| if let RouteMetric::Mtu(mtu) = metric { Some(*mtu) } else { None });
        }
    }
    Some(NextHop { index: index?, mtu })
}

/// The request that makes `route`, with the attributes that `ip route add` would send.
fn message(route: &Route) -> RouteMessage {
    let protocol = RouteProtocol::from(route.protocol);
    match (route.destination, route.source) {
        (IpNet::V4(net), source) => {
            let mut builder = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(net.network(), net.prefix_len())
                .output_interface(route.index)
                .protocol(protocol)
                .scope(RouteScope::Link);
            if let Some(IpAddr::V4(source)) = source {
                builder = builder.pref_source(source);
            }
            builder.build()
        }
        (IpNet::V6(net), source) => {
            let mut builder = RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(net.network(), net.prefix_len())
                .output_interface(route.index)
                .protocol(protocol);
            if let Some(IpAddr::V6(source)) = source {
                builder = builder.pref_source(source);
            }
            builder.build()
        }
    }
}

/// A route as we make them: in the main table, to a device, with the default metric. `None`: it is
/// of another shape.
fn route(message: &RouteMessage) -> Option<Route> {
    let length = message.header.destination_prefix_length;
    let v4 = message.header.address_family == AddressFamily::Inet;
    // A default route has no destination attribute.
    let mut destination = match v4 {
        true => IpNet::V4(Ipv4Net::new(Ipv4Addr::UNSPECIFIED, length).ok()?),
        false => IpNet::V6(Ipv6Net::new(Ipv6Addr::UNSPECIFIED, length).ok()?),
    };
    let default_metric = default_metric(if v4 { Family::V4 } else { Family::V6 });
    let (mut index, mut source, mut metric) = (None, None, 0);
    for attribute in &message.attributes {
        if let RouteAttribute::Destination(to) = attribute {
            destination = IpNet::new(address(to)?, length).ok()?;
        } else if let RouteAttribute::PrefSource(from) = attribute {
            source = address(from);
        } else if let RouteAttribute::Oif(value) = attribute {
            index = Some(*value);
        } else if let RouteAttribute::Priority(value) = attribute {
            metric = *value;
        }
    }
    let is_default = message.header.table == RouteHeader::RT_TABLE_MAIN && metric == default_metric;
    if !is_default {
        return None;
    }
    Some(Route { destination, index: index?, source, protocol: message.header.protocol.into() })
}

fn destination_of(message: &RouteMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Destination(to) = attribute { address(to) } else { None }
    })
}

fn metric_of(message: &RouteMessage) -> u32 {
    let metric = message.attributes.iter().find_map(|attribute| {
        if let RouteAttribute::Priority(metric) = attribute { Some(*metric) } else { None }
    });
    metric.unwrap_or(0)
}

/// The metric that the kernel gives to a route without one (IP6_RT_PRIO_USER for IPv6).
fn default_metric(family: Family) -> u32 {
    match family {
        Family::V4 => 0,
        Family::V6 => 1024,
    }
}

fn address(address: &RouteAddress) -> Option<IpAddr> {
    if let RouteAddress::Inet(v4) = address {
        Some(IpAddr::V4(*v4))
    } else if let RouteAddress::Inet6(v6) = address {
        Some(IpAddr::V6(*v6))
    } else {
        None
    }
}
