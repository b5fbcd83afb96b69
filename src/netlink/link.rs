//! Links: network devices, as dumps show them, and the changes that are made to them.

use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth};

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
    /// The device is one end of a veth pair.
    pub is_veth: bool,
    /// Index of the other end of a veth pair, if that is in the same network namespace.
    pub peer: Option<u32>,
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

    /// The device with an index, if it exists.
    pub async fn link_by_index(&self, index: u32) -> Result<Option<Link>, NetlinkError> {
        let dump = self.handle.link().get().match_index(index).execute();
        let found: Result<Vec<LinkMessage>, _> = dump.try_collect().await;
        Ok(found.map_err(failed("ask for a device"))?.into_iter().map(link).next())
    }

    /// Sets MTU and state (up or down) of a device.
    pub async fn set_link(&self, index: u32, mtu: u32, up: bool) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index).mtu(mtu);
        let message = if up { message.up() } else { message.down() }.build();
        let state = if up { "up" } else { "down" };
        let what = format!("set an MTU of {mtu} bytes and link {state} on the device");
        self.handle.link().set(message).execute().await.map_err(failed(what))
    }

    /// Marks a device with an alias.
    pub async fn set_alias(&self, index: u32, alias: &str) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_index(index)
            .append_extra_attribute(LinkAttribute::IfAlias(alias.to_owned()))
            .build();
        self.handle.link().set(message).execute().await.map_err(failed("mark the device as ours"))
    }

    /// Makes a veth pair, both ends down, without ARP, and with this number of queues in each
    /// direction.
    pub async fn add_veth(
        &self,
        (name, peer): (&str, &str),
        mtu: u32,
        queues: u32,
    ) -> Result<(), NetlinkError> {
        let far = end(LinkMessageBuilder::<LinkUnspec>::new(), peer, mtu, queues);
        let near = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(far.build())));
        let near = end(near, name, mtu, queues).build();
        let what = format!("make the veth pair {name} and {peer}");
        self.handle.link().add(near).execute().await.map_err(failed(what))
    }

    /// Removes a device, and with it its addresses and routes.
    pub async fn delete(&self, index: u32) -> Result<(), NetlinkError> {
        self.handle.link().del(index).execute().await.map_err(failed("remove the device"))
    }
}

fn end<T>(message: LinkMessageBuilder<T>, name: &str, mtu: u32, queues: u32) -> LinkMessageBuilder<T> {
    message
        .name(name)
        .mtu(mtu)
        .arp(false)
        .append_extra_attribute(LinkAttribute::NumTxQueues(queues))
        .append_extra_attribute(LinkAttribute::NumRxQueues(queues))
}

fn link(message: LinkMessage) -> Link {
    let up = message.header.flags.contains(LinkFlags::Up);
    let carrier = message.header.flags.contains(LinkFlags::LowerUp);
    let is_ethernet = message.header.link_layer_type == LinkLayerType::Ether;
    let mut link = Link { index: message.header.index, is_ethernet, up, carrier, ..Link::default() };
    let (mut other, mut is_elsewhere) = (None, false);
    for attribute in message.attributes {
        if let LinkAttribute::IfName(name) = attribute {
            link.name = name;
        } else if let LinkAttribute::IfAlias(alias) = attribute {
            link.alias = alias;
        } else if let LinkAttribute::Mtu(mtu) = attribute {
            link.mtu = mtu;
        } else if let LinkAttribute::LinkInfo(infos) = attribute {
            link.is_tun = infos.contains(&LinkInfo::Kind(InfoKind::Tun));
            link.is_veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth));
        } else if let LinkAttribute::Link(index) = attribute {
            other = Some(index);
        } else if let LinkAttribute::LinkNetNsId(_) = attribute {
            is_elsewhere = true;
        } else if let LinkAttribute::Stats64(stats) = attribute {
            (link.rx_packets, link.tx_dropped) = (stats.rx_packets, stats.tx_dropped);
        }
    }
    link.peer = other.filter(|_| link.is_veth && !is_elsewhere);
    link
}
