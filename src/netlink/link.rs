//! Links: network devices, as dumps show them, and the changes that are made to them.

use futures_util::TryStreamExt;
use rtnetlink::LinkUnspec;
use rtnetlink::packet_route::link::{
    InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};

use super::connection::Netlink;
use super::error::{NetlinkError, failed};

/// A network device.
#[derive(Debug, Clone, Default)]
pub struct Link {
    /// Device index.
    pub index: u32,
    /// Device name.
    pub name: String,
    /// Device alias: hopsack marks its devices with it.
    pub alias: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// The device has Ethernet headers.
    pub is_ethernet: bool,
    /// The device is a TUN or TAP.
    pub is_tun: bool,
    /// The device is up (administratively).
    pub up: bool,
    /// The device has a carrier. A TUN has one while a process has it open.
    pub carrier: bool,
    /// Packets received. A TUN receives what its process writes.
    pub rx_packets: u64,
    /// Packets dropped before they were sent. A TUN drops while its queue is full or no process has
    /// it open.
    pub tx_dropped: u64,
}

impl Netlink {
    /// All devices.
    pub async fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let dump: Vec<LinkMessage> =
            self.handle.link().get().execute().try_collect().await.map_err(failed("list devices"))?;
        Ok(dump.into_iter().map(link).collect())
    }

    /// The device `name`, if it exists.
    pub async fn link(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        Ok(self.links().await?.into_iter().find(|link| link.name == name))
    }

    /// Sets MTU and state (up or down) of a device.
    pub async fn set_link(&self, index: u32, mtu: u32, up: bool) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index).mtu(mtu);
        let message = if up { message.up() } else { message.down() }.build();
        let state = if up { "up" } else { "down" };
        let what = format!("set an MTU of {mtu} bytes and link {state} on the overlay device");
        self.handle.link().set(message).execute().await.map_err(failed(what))
    }

    /// Marks a device with an alias.
    pub async fn set_alias(&self, index: u32, alias: &str) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index)
            .append_extra_attribute(LinkAttribute::IfAlias(alias.to_owned()))
            .build();
        self.handle.link().set(message).execute().await.map_err(failed("mark the overlay device as ours"))
    }

    /// Removes a device, and with it its addresses and routes.
    pub async fn delete(&self, index: u32) -> Result<(), NetlinkError> {
        self.handle.link().del(index).execute().await.map_err(failed("remove the device"))
    }
}

fn link(message: LinkMessage) -> Link {
    let up = message.header.flags.contains(LinkFlags::Up);
    let carrier = message.header.flags.contains(LinkFlags::LowerUp);
    let is_ethernet = message.header.link_layer_type == LinkLayerType::Ether;
    let mut link = Link { index: message.header.index, is_ethernet, up, carrier, ..Link::default() };
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
