//! Two questions about a network device that netlink answers only by another family: is it up, and
//! which offloads are on. And the switch of an offload.
//!
//! Invariant: no descriptor outlives the call that has opened it. Sources: netdevice(7),
//! include/uapi/linux/ethtool.h.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

/// An offload of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offload {
    /// TCP segmentation (ethtool's `tso`).
    Tso,
    /// Merging of received segments (ethtool's `gro`).
    Gro,
}

/// `struct ethtool_value`.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

impl Offload {
    /// ETHTOOL_GTSO and ETHTOOL_STSO, ETHTOOL_GGRO and ETHTOOL_SGRO.
    fn commands(self) -> [u32; 2] {
        match self {
            Self::Tso => [0x1e, 0x1f],
            Self::Gro => [0x2b, 0x2c],
        }
    }
}

/// Whether an offload of a device is on.
pub fn offload(device: &str, offload: Offload) -> io::Result<bool> {
    let [get, _] = offload.commands();
    ethtool(device, Value { command: get, data: 0 }).map(|value| value.data != 0)
}

/// Turns an offload of a device on or off.
pub fn set_offload(device: &str, offload: Offload, is_on: bool) -> io::Result<()> {
    let [_, set] = offload.commands();
    ethtool(device, Value { command: set, data: is_on.into() }).map(drop)
}

/// Whether a device is up and has a carrier.
pub fn is_running(device: &str) -> io::Result<bool> {
    let mut request = request(device)?;
    let socket = UnixDatagram::unbound()?;
    // SAFETY: SIOCGIFFLAGS reads the name in the ifreq, which lives across the call, and writes its
    // flags.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &raw mut request) })?;
    // SAFETY: the kernel has just written this field of the union; each value is a valid c_short.
    let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
    let wanted = libc::IFF_UP | libc::IFF_RUNNING;
    Ok(flags & wanted == wanted)
}

fn ethtool(device: &str, mut value: Value) -> io::Result<Value> {
    let mut request = request(device)?;
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    let socket = UnixDatagram::unbound()?;
    // SAFETY: SIOCETHTOOL reads the name in the ifreq and reads and writes the `Value` behind its
    // pointer. Both live across the call, and each command here takes a `struct ethtool_value`.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) })?;
    Ok(value)
}

/// An ifreq with the name of a device. Any socket will do: the kernel looks for the device in the
/// network namespace of the socket.
fn request(device: &str) -> io::Result<libc::ifreq> {
    // SAFETY: an ifreq is made of plain integers, pointers and unions of them, for which zero is a
    // value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if device.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_asked() {
        assert!(offload("lo", Offload::Gro).is_ok());
        let missing = offload("hopsack-no-dev", Offload::Tso).expect_err("there is none");
        assert_eq!(missing.raw_os_error(), Some(libc::ENODEV));
        assert!(is_running("a-name-of-16-byte").is_err());
    }
}
