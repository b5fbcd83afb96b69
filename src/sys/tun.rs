//! The overlay device's descriptor: made through `tun-tap`, kept alive across a crash by the kernel.
//!
//! A persistent TUN device outlives its daemon: routes and addresses stay, packets wait or are dropped by the kernel
//! instead of leaking out by the default route, and the next start attaches to it again. Address, MTU and routes are
//! netlink's work, not this module's.
//!
//! Source: Documentation/networking/tuntap.rst, include/uapi/linux/if_tun.h.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// The clone device.
pub const DEVICE: &str = "/dev/net/tun";

/// A single-queue TUN device without packet information or vnet header: one IP packet a read, one a write.
pub struct SimpleTun(tun_tap::Iface);

impl SimpleTun {
    /// Creates the device, or attaches to a persistent one of that name and kind. Reads don't block.
    ///
    /// Errors: EPERM without CAP_NET_ADMIN, EBUSY if a process is attached, EINVAL if the name belongs to a device of
    /// another kind, ENOENT without [`DEVICE`].
    pub fn open(name: &str) -> io::Result<Self> {
        let tun = tun_tap::Iface::without_packet_info(name, tun_tap::Mode::Tun)?;
        tun.set_non_blocking()?;
        Ok(Self(tun))
    }

    /// Reads one packet into `buffer`, which must take the device's MTU; what doesn't fit is cut off.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.recv(buffer)
    }

    /// Writes one packet.
    pub fn write(&self, packet: &[u8]) -> io::Result<()> {
        self.0.send(packet).map(drop)
    }

    /// The right to decide what happens to the device when its last descriptor closes.
    pub fn persistence(&self) -> io::Result<Persistence> {
        Ok(Persistence(self.as_fd().try_clone_to_owned()?))
    }
}

/// A second descriptor of a TUN device, to decide about its end.
#[derive(Debug)]
pub struct Persistence(OwnedFd);

impl Persistence {
    /// `true`: the device stays when the last descriptor closes. `false`: it goes.
    pub fn set(&self, persistent: bool) -> io::Result<()> {
        // SAFETY: TUNSETPERSIST takes an integer, no pointer; the descriptor is open as long as `self`.
        let result =
            unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNSETPERSIST, libc::c_ulong::from(persistent)) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl AsFd for SimpleTun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor belongs to `self.0`, which lives as long as the borrow.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

impl std::fmt::Debug for SimpleTun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SimpleTun({})", self.0.name())
    }
}
