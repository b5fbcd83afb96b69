//! Addresses of devices, as dumps show them, and the changes that are made to them.

use std::net::IpAddr;

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};

use super::connection::Netlink;
use super::error::{NetlinkError, failed};

/// An address of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Index of the device.
    pub index: u32,
    /// Address and prefix length.
    pub net: IpNet,
    /// Packets can be sent from this address, and it stays: duplicate address detection is over,
    /// and it is neither deprecated nor temporary (RFC 8981).
    pub is_lasting: bool,
    /// State of duplicate address detection.
    pub detection: Detection,
}

/// State of duplicate address detection (RFC 4862) of an address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Detection {
    /// It is over, or not needed: the address can be used.
    #[default]
    Done,
    /// It runs: a socket cannot be bound to the address yet.
    Running,
    /// Another host has the address.
    Failed,
}

impl Netlink {
    /// All addresses.
    pub async fn addresses(&self) -> Result<Vec<Address>, NetlinkError> {
        Ok(self.dump_addresses().await?.iter().filter_map(address).collect())
    }

    /// Adds an address to a device.
    pub async fn add_address(&self, index: u32, net: IpNet) -> Result<(), NetlinkError> {
        let what = format!("add the address {net} to the overlay device");
        let mut request = self.handle.address().add(index, net.addr(), net.prefix_len());
        // No neighbour can have this address: duplicate address detection would only delay its use.
        request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        request.execute().await.map_err(failed(what))
    }

    /// Removes an address from a device, if the device has it.
    pub async fn remove_address(&self, index: u32, net: IpNet) -> Result<(), NetlinkError> {
        for message in self.dump_addresses().await? {
            if address(&message).is_some_and(|found| (found.index, found.net) == (index, net)) {
                let what = format!("remove the address {net} from the overlay device");
                self.handle.address().del(message).execute().await.map_err(failed(what))?;
            }
        }
        Ok(())
    }

    async fn dump_addresses(&self) -> Result<Vec<AddressMessage>, NetlinkError> {
        self.handle.address().get().execute().try_collect().await.map_err(failed("list addresses"))
    }
}

fn address(message: &AddressMessage) -> Option<Address> {
    let of = |attribute: &AddressAttribute| {
        if let AddressAttribute::Local(address) = attribute { Some(*address) } else { None }
    };
    let local = message.attributes.iter().find_map(of);
    // IPv6 has no Local attribute unless the address has a peer.
    let plain = message.attributes.iter().find_map(|attribute| {
        if let AddressAttribute::Address(address) = attribute { Some(*address) } else { None }
    });
    let net = IpNet::new(local.or(plain)?, message.header.prefix_len).ok()?;
    let is_lasting = is_lasting(message.header.flags, net.addr());
    let detection = detection(message.header.flags);
    Some(Address { index: message.header.index, net, is_lasting, detection })
}

fn is_lasting(flags: AddressHeaderFlags, address: IpAddr) -> bool {
    let passing = AddressHeaderFlags::Deprecated | AddressHeaderFlags::Secondary;
    // In IPv6 the flag Secondary means temporary (IFA_F_TEMPORARY has its value); in IPv4 it does
    // not.
    detection(flags) == Detection::Done && (address.is_ipv4() || !flags.intersects(passing))
}

fn detection(flags: AddressHeaderFlags) -> Detection {
    if flags.contains(AddressHeaderFlags::Dadfailed) {
        Detection::Failed
    } else if flags.contains(AddressHeaderFlags::Tentative) && !flags.contains(AddressHeaderFlags::Optimistic)
    {
        Detection::Running
    } else {
        Detection::Done
    }
}
