//! The monitor: tells which objects the kernel has changed. It reads the fixed header of each
//! notice only, because a router with a full table may see thousands a second. Notices about routes
//! of other programs are discarded where they arrive.
//!
//! Invariant: memory is bounded, also while nobody asks for notices. If notices were lost because a
//! queue was full, the monitor says so ([`Notice::Lost`]).

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::{Stream, StreamExt};
use rtnetlink::MulticastGroup;
use rtnetlink::packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkPayload, NetlinkSerializable};
use rtnetlink::proto;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, SocketAddr, TokioSocket};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::error::NetlinkError;

/// A change of an object, by the kernel's own account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A device changed, came or went.
    Link {
        /// Device index.
        index: u32,
        /// Device name, empty if the notice lacks it.
        name: String,
    },
    /// An address of a device changed, came or went.
    Address {
        /// Device index.
        index: u32,
    },
    /// A route changed, came or went.
    Route {
        /// Protocol number of the route.
        protocol: u8,
    },
    /// A forwarding setting of a device or of all changed.
    Forwarding,
    /// Notices were lost: anything may have changed.
    Lost,
    /// A notice of another kind.
    Other,
}

/// Notices that may wait. A host has few changes of links and addresses, so more than this means
/// that nobody has asked for a while.
const WAITING: usize = 256;

/// Listens to the kernel's notices.
#[derive(Debug)]
pub struct Monitor {
    notices: mpsc::Receiver<Notice>,
    /// Whether a notice found no room.
    lost: Arc<AtomicBool>,
}

impl Monitor {
    /// Subscribes, in the namespace of the calling thread, to changes of links, addresses and
    /// forwarding settings, and of routes with this protocol number. It needs a tokio runtime.
    pub fn new(route_protocol: u8) -> Result<Self, NetlinkError> {
        const GROUPS: [MulticastGroup; 7] = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv4Netconf,
            MulticastGroup::Ipv6Netconf,
        ];
        let (mut connection, _, messages) =
            proto::new_connection_with_socket::<Notice, TokioSocket>(NETLINK_ROUTE)
                .map_err(NetlinkError::Open)?;
        let groups = GROUPS.iter().fold(0, |groups, group| groups | 1 << (*group as u32 - 1));
        connection.socket_mut().socket_mut().bind(&SocketAddr::new(0, groups)).map_err(NetlinkError::Open)?;
        tokio::spawn(connection);
        let notices = messages.map(|(message, _)| {
            let NetlinkPayload::InnerMessage(notice) = message.payload else { return Notice::Lost };
            notice
        });
        let (sender, receiver) = mpsc::channel(WAITING);
        let lost = Arc::new(AtomicBool::new(false));
        tokio::spawn(pass_on(notices, route_protocol, sender, lost.clone()));
        Ok(Self { notices: receiver, lost })
    }

    /// Waits for the next notice. Cancel safe.
    pub async fn next(&mut self) -> Notice {
        // The flag is set only while the channel is full, so a later call sees it.
        if self.lost.swap(false, Ordering::Relaxed) {
            return Notice::Lost;
        }
        match self.notices.recv().await {
            Some(notice) => notice,
            // The connection has ended. What looks regularly still sees changes.
            None => std::future::pending().await,
        }
    }
}

/// Discards what is of no interest, and queues the rest as long as there is room.
async fn pass_on(
    mut notices: impl Stream<Item = Notice> + Unpin,
    route_protocol: u8,
    sender: mpsc::Sender<Notice>,
    lost: Arc<AtomicBool>,
) {
    while let Some(notice) = notices.next().await {
        let is_foreign = matches!(notice, Notice::Route { protocol } if protocol != route_protocol);
        if is_foreign || notice == Notice::Other {
            continue;
        }
        match sender.try_send(notice) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => lost.store(true, Ordering::Relaxed),
            Err(TrySendError::Closed(_)) => return,
        }
    }
}

/// linux/rtnetlink.h
mod kinds {
    pub(super) const NEWLINK: u16 = 16;
    pub(super) const DELLINK: u16 = 17;
    pub(super) const NEWADDR: u16 = 20;
    pub(super) const DELADDR: u16 = 21;
    pub(super) const NEWROUTE: u16 = 24;
    pub(super) const DELROUTE: u16 = 25;
    pub(super) const NEWNETCONF: u16 = 80;
    pub(super) const DELNETCONF: u16 = 81;
}

impl NetlinkDeserializable for Notice {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        // struct ifinfomsg and struct ifaddrmsg both have the index at byte 4, struct rtmsg the
        // protocol at byte 5.
        let index = payload.get(4..8).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
        Ok(match (header.message_type, index, payload.get(5)) {
            (kinds::NEWLINK | kinds::DELLINK, Some(index), _) => Self::Link { index, name: name(payload) },
            (kinds::NEWADDR | kinds::DELADDR, Some(index), _) => Self::Address { index },
            (kinds::NEWROUTE | kinds::DELROUTE, _, Some(protocol)) => Self::Route { protocol: *protocol },
            (kinds::NEWNETCONF | kinds::DELNETCONF, ..) => Self::Forwarding,
            _ => Self::Other,
        })
    }
}

/// The name in a notice about a link: the attribute IFLA_IFNAME behind struct ifinfomsg.
fn name(payload: &[u8]) -> String {
    const HEADER_BYTES: usize = 16;
    const IFLA_IFNAME: u16 = 3;
    let mut rest = payload.get(HEADER_BYTES..).unwrap_or_default();
    // struct rtattr: length with these four bytes, type, value; aligned to four bytes.
    while let [low, high, kind_low, kind_high, ..] = *rest {
        let length = usize::from(u16::from_ne_bytes([low, high]));
        let Some(value) = rest.get(4..length) else { break };
        if u16::from_ne_bytes([kind_low, kind_high]) == IFLA_IFNAME {
            let text = value.strip_suffix(&[0]).unwrap_or(value);
            return String::from_utf8_lossy(text).into_owned();
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    String::new()
}

/// The monitor sends nothing; the connection's type wants to know how it would.
impl NetlinkSerializable for Notice {
    fn message_type(&self) -> u16 {
        0
    }

    fn buffer_len(&self) -> usize {
        0
    }

    fn serialize(&self, _buffer: &mut [u8]) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(message_type: u16, payload: &[u8]) -> Notice {
        let mut header = NetlinkHeader::default();
        header.message_type = message_type;
        let Ok(notice) = Notice::deserialize(&header, payload);
        notice
    }

    #[tokio::test]
    async fn notices_are_filtered_and_bounded() {
        let (sender, receiver) = mpsc::channel(WAITING);
        let lost = Arc::new(AtomicBool::new(false));
        let mut monitor = Monitor { notices: receiver, lost: lost.clone() };
        let foreign = vec![Notice::Route { protocol: 2 }; 1000];
        let mut all: Vec<Notice> = [foreign, vec![Notice::Other, Notice::Forwarding]].concat();
        pass_on(futures_util::stream::iter(all.clone()), 182, sender.clone(), lost.clone()).await;
        assert_eq!(monitor.next().await, Notice::Forwarding);
        all = vec![Notice::Route { protocol: 182 }; WAITING + 1];
        pass_on(futures_util::stream::iter(all), 182, sender, lost).await;
        assert_eq!(monitor.next().await, Notice::Lost);
        for _ in 0..WAITING {
            assert_eq!(monitor.next().await, Notice::Route { protocol: 182 });
        }
    }

    #[test]
    fn notices_name_their_object() {
        let index = 7u32.to_ne_bytes();
        let payload = [&[0; 4], &index[..], &[0; 8]].concat();
        let attributes = [&[6u8, 0, 1, 0, 9, 9, 0, 0][..], &[9, 0, 3, 0], b"eth0\0"].concat();
        let with_name = [&payload[..], &attributes].concat();
        assert_eq!(notice(kinds::DELLINK, &payload), Notice::Link { index: 7, name: String::new() });
        assert_eq!(notice(kinds::NEWLINK, &with_name), Notice::Link { index: 7, name: "eth0".into() });
        assert_eq!(notice(kinds::NEWADDR, &payload), Notice::Address { index: 7 });
        assert_eq!(notice(kinds::DELROUTE, &[2, 16, 0, 0, 254, 182, 0, 0]), Notice::Route { protocol: 182 });
        assert_eq!(notice(kinds::NEWNETCONF, &[2]), Notice::Forwarding);
        assert_eq!(notice(kinds::NEWLINK, &[0; 3]), Notice::Other, "shorter than its header");
        assert_eq!(notice(999, &payload), Notice::Other);
    }
}
