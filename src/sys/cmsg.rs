//! Socket messages in the kernel's layout: addresses, and the control messages for UDP trains and
//! ECN.
//!
//! It makes no system call. Invariant: a header that was filled points only into itself and into
//! the bytes that it was given. Sources: cmsg(3), udp(7) (UDP_SEGMENT, UDP_GRO),
//! `include/uapi/linux/udp.h`.

use std::mem::size_of;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use super::batch::Message;
use crate::packet::ecn::Ecn;

/// The address of either family.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) union Name {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

/// Bytes of a [`Name`].
pub(super) const NAME_LEN: usize = size_of::<Name>();
/// Bytes of control messages that a receive may return: that of UDP_GRO, with room to spare.
pub(super) const CONTROL_LEN: usize = 64;
/// Bytes before the data of a control message.
// SAFETY: CMSG_LEN computes from its argument and touches no memory.
const CONTROL_HEADER: usize = unsafe { libc::CMSG_LEN(0) } as usize;

/// Bytes of the control messages of a send: UDP_SEGMENT, and TOS or traffic class.
// SAFETY: CMSG_SPACE computes from its argument and touches no memory.
const CONTROL_ROOM: usize = unsafe { libc::CMSG_SPACE(2) + libc::CMSG_SPACE(4) } as usize;
const _: () = assert!(CONTROL_ROOM.is_multiple_of(8));

/// All that a send needs in addition to the bytes. It contains pointers to itself, so it must not
/// move between [`Outgoing::fill`] and the end of the send.
#[repr(C)]
pub(super) struct Outgoing {
    pub(super) header: libc::msghdr,
    name: Name,
    iov: libc::iovec,
    /// [`CONTROL_ROOM`] bytes, aligned for a cmsghdr.
    control: [u64; CONTROL_ROOM / 8],
}

impl Outgoing {
    pub(super) fn empty() -> Self {
        // SAFETY: all fields are plain integers and pointers, for which zero is a value.
        unsafe { std::mem::zeroed() }
    }

    /// Describes the send of `bytes`, which are those of `message`.
    pub(super) fn fill(&mut self, message: &Message, bytes: &[u8]) {
        let name_len = message.destination.map_or(0, |destination| self.name.set(destination));
        self.iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        self.header.msg_name = (&raw mut self.name).cast();
        self.header.msg_namelen = name_len;
        self.header.msg_iov = &raw mut self.iov;
        self.header.msg_iovlen = 1;
        self.header.msg_control = std::ptr::null_mut();
        self.header.msg_controllen = 0;
        let mut filled = 0;
        if message.is_train() {
            let size = u16::try_from(message.segment_size).unwrap_or(u16::MAX);
            filled = self.control(filled, libc::SOL_UDP, libc::UDP_SEGMENT, size.to_ne_bytes());
        }
        if message.ecn != Ecn::NotEct {
            let (level, kind) = match message.destination {
                Some(SocketAddr::V6(_)) => (libc::IPPROTO_IPV6, libc::IPV6_TCLASS),
                Some(SocketAddr::V4(_)) | None => (libc::IPPROTO_IP, libc::IP_TOS),
            };
            filled = self.control(filled, level, kind, i32::from(message.ecn as u8).to_ne_bytes());
        }
        if filled > 0 {
            self.header.msg_control = self.control.as_mut_ptr().cast();
            self.header.msg_controllen = filled as _;
        }
    }

    /// Writes a control message after the first `filled` bytes. Returns how many bytes are filled
    /// then.
    fn control<const N: usize>(&mut self, filled: usize, level: i32, kind: i32, data: [u8; N]) -> usize {
        let size = libc::c_uint::try_from(N).unwrap_or(0);
        // SAFETY: CMSG_LEN and CMSG_SPACE compute from their argument and touch no memory.
        let (length, space) = unsafe { (libc::CMSG_LEN(size), libc::CMSG_SPACE(size) as usize) };
        assert!(filled + space <= CONTROL_ROOM, "two bytes and four have room");
        // SAFETY: the message lies inside `control`, as was asserted; `filled` is a sum of
        // CMSG_SPACEs, so the header is aligned; its data follow it, and `space` counts them.
        unsafe {
            let header = self.control.as_mut_ptr().cast::<u8>().add(filled).cast::<libc::cmsghdr>();
            (*header).cmsg_level = level;
            (*header).cmsg_type = kind;
            (*header).cmsg_len = length as _;
            libc::CMSG_DATA(header).cast::<[u8; N]>().write_unaligned(data);
        }
        filled + space
    }
}

impl Name {
    pub(super) fn empty() -> Self {
        // SAFETY: both variants are plain integers, for which zero is a value.
        unsafe { std::mem::zeroed() }
    }

    /// Sets the address. Returns its length.
    fn set(&mut self, address: SocketAddr) -> libc::socklen_t {
        *self = Self::empty();
        let (family, length) = match address {
            SocketAddr::V4(v4) => {
                self.v4 = libc::sockaddr_in {
                    sin_family: 0,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                    sin_zero: [0; 8],
                };
                (libc::AF_INET, size_of::<libc::sockaddr_in>())
            }
            SocketAddr::V6(v6) => {
                self.v6 = libc::sockaddr_in6 {
                    sin6_family: 0,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                    sin6_scope_id: v6.scope_id(),
                };
                (libc::AF_INET6, size_of::<libc::sockaddr_in6>())
            }
        };
        // Both variants begin with the family.
        self.v4.sin_family = libc::sa_family_t::try_from(family).unwrap_or(0);
        libc::socklen_t::try_from(length).unwrap_or(0)
    }

    /// The address; `None` if it is of another family.
    pub(super) fn get(&self) -> Option<SocketAddr> {
        // SAFETY: both variants begin with the family, all their fields are plain integers, and the
        // union is as long as the longer one: any bytes are a value of either.
        let (v4, v6) = unsafe { (self.v4, self.v6) };
        match libc::c_int::from(v4.sin_family) {
            libc::AF_INET => {
                let ip = IpAddr::from(v4.sin_addr.s_addr.to_ne_bytes());
                Some(SocketAddr::new(ip, u16::from_be(v4.sin_port)))
            }
            libc::AF_INET6 => {
                let (port, flow) = (u16::from_be(v6.sin6_port), v6.sin6_flowinfo);
                Some(SocketAddrV6::new(v6.sin6_addr.s6_addr.into(), port, flow, v6.sin6_scope_id).into())
            }
            _ => None,
        }
    }
}

/// Reads the control messages of a received message: the length of the datagrams of a train (`None`
/// for a single datagram), and the ECN field of the outer header.
pub(super) fn controls(mut control: &[u8]) -> (Option<usize>, Ecn) {
    let (mut stride, mut ecn) = (None, Ecn::NotEct);
    while control.len() >= CONTROL_HEADER {
        // SAFETY: there are at least as many bytes as a cmsghdr has, and any bytes are one.
        let header = unsafe { control.as_ptr().cast::<libc::cmsghdr>().read_unaligned() };
        #[allow(clippy::unnecessary_cast, reason = "a libc has it as u32 or as usize")]
        let length = header.cmsg_len as usize;
        let Some(data) = control.get(CONTROL_HEADER..length) else { break };
        let number = data.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes));
        match (header.cmsg_level, header.cmsg_type) {
            (libc::SOL_UDP, libc::UDP_GRO) => {
                stride = number.and_then(|size| usize::try_from(size).ok()).filter(|size| *size > 0);
            }
            // IPv4 has one byte and IPv6 an integer: the lowest byte has the field.
            (libc::IPPROTO_IP, libc::IP_TOS) => ecn = data.first().map_or(ecn, |tos| Ecn::of(*tos)),
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                ecn = number.map_or(ecn, |class| Ecn::of(class.to_le_bytes()[0]));
            }
            _ => {}
        }
        control = control.get(length.next_multiple_of(size_of::<usize>())..).unwrap_or_default();
    }
    (stride, ecn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_is_read_as_it_was_set() {
        for text in ["192.0.2.7:8285", "[2001:db8::7]:8285"] {
            let address: SocketAddr = text.parse().expect("an address");
            let mut name = Name::empty();
            name.set(address);
            assert_eq!(name.get(), Some(address));
        }
        assert_eq!(Name::empty().get(), None);
        assert_eq!(controls(&[0; 64]), (None, Ecn::NotEct));
        assert_eq!(controls(&[0xff; 64]), (None, Ecn::NotEct));
    }
}
