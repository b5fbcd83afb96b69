//! Socket messages as the kernel lays them out: addresses, and the control messages for UDP trains.
//!
//! It makes no system call. Source: cmsg(3), udp(7) (UDP_SEGMENT, UDP_GRO), `include/uapi/linux/udp.h`.

use std::mem::size_of;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};

use super::block::Part;

/// Room for the address of either family.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) union Name {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

/// Bytes of a [`Name`].
pub(super) const NAME_LEN: usize = size_of::<Name>();
/// Bytes of control messages that a receive may bring: UDP_GRO's, with room to spare.
pub(super) const CONTROL_LEN: usize = 64;
/// Bytes before the data of a control message.
// SAFETY: CMSG_LEN computes from its argument and touches no memory.
const CONTROL_HEADER: usize = unsafe { libc::CMSG_LEN(0) } as usize;

/// Everything beside the bytes that a send needs. It is filled and pointed to where it stands: it must not move between
/// [`Outgoing::fill`] and the end of the send.
#[repr(C)]
pub(super) struct Outgoing {
    pub(super) header: libc::msghdr,
    name: Name,
    iov: libc::iovec,
    control: [u64; 4],
}

impl Outgoing {
    pub(super) fn empty() -> Self {
        // SAFETY: all fields are plain integers and pointers, for which zero is a value.
        unsafe { std::mem::zeroed() }
    }

    /// Describes the send of `bytes`, which are those of `part`.
    pub(super) fn fill(&mut self, part: &Part, bytes: &[u8]) {
        let name_len = part.to.map_or(0, |to| self.name.set(to));
        self.iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        self.header.msg_name = (&raw mut self.name).cast();
        self.header.msg_namelen = name_len;
        self.header.msg_iov = &raw mut self.iov;
        self.header.msg_iovlen = 1;
        self.header.msg_control = std::ptr::null_mut();
        self.header.msg_controllen = 0;
        if part.is_train() {
            let size = u16::try_from(part.stride).unwrap_or(u16::MAX);
            // SAFETY: CMSG_SPACE(2) is at most 24 bytes, `control` has 32 and the alignment of a cmsghdr; so the first
            // header and its two bytes of data lie inside it.
            unsafe {
                self.header.msg_control = self.control.as_mut_ptr().cast();
                self.header.msg_controllen = libc::CMSG_SPACE(2) as _;
                let control = libc::CMSG_FIRSTHDR(&raw const self.header);
                (*control).cmsg_level = libc::SOL_UDP;
                (*control).cmsg_type = libc::UDP_SEGMENT;
                (*control).cmsg_len = libc::CMSG_LEN(2) as _;
                libc::CMSG_DATA(control).cast::<u16>().write_unaligned(size);
            }
        }
    }
}

impl Name {
    pub(super) fn empty() -> Self {
        // SAFETY: both variants are plain integers, for which zero is a value.
        unsafe { std::mem::zeroed() }
    }

    /// Returns the length of what was set.
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
        // SAFETY: both variants begin with the family, all their fields are plain integers, and the union is as long as
        // the longer one: any bytes are a value of either.
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

    /// The same from bytes of any alignment.
    pub(super) fn parse(bytes: &[u8]) -> Option<SocketAddr> {
        let mut name = Self::empty();
        let length = bytes.len().min(NAME_LEN);
        // SAFETY: at most NAME_LEN bytes are copied, from a slice that has them, into a union of that size; any bytes
        // are a value of it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), (&raw mut name).cast(), length) };
        name.get()
    }
}

/// How long the datagrams of a received train are; `None` for a single datagram.
pub(super) fn gro_stride(mut control: &[u8]) -> Option<usize> {
    while control.len() >= CONTROL_HEADER {
        // SAFETY: there are at least as many bytes as a cmsghdr has, and any bytes are one.
        let header = unsafe { control.as_ptr().cast::<libc::cmsghdr>().read_unaligned() };
        #[allow(clippy::unnecessary_cast, reason = "a libc has it as u32 or as usize")]
        let length = header.cmsg_len as usize;
        let data = control.get(CONTROL_HEADER..length)?;
        if header.cmsg_level == libc::SOL_UDP && header.cmsg_type == libc::UDP_GRO {
            return usize::try_from(i32::from_ne_bytes(*data.first_chunk()?)).ok().filter(|size| *size > 0);
        }
        control = control.get(length.next_multiple_of(size_of::<usize>())..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive() {
        for text in ["192.0.2.7:8285", "[2001:db8::7]:8285"] {
            let address: SocketAddr = text.parse().expect("an address");
            let mut name = Name::empty();
            name.set(address);
            assert_eq!(name.get(), Some(address));
        }
        assert_eq!(Name::parse(&[]), None);
        assert_eq!(gro_stride(&[0; 64]), None);
        assert_eq!(gro_stride(&[0xff; 64]), None);
    }
}
