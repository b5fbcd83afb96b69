//! The descriptors of the overlay device: one descriptor through `tun-tap`, or several queues with
//! offloads.
//!
//! A [`Queue`] carries super packets: each read and write has a `VnetHeader` in front
//! (`IFF_VNET_HDR`), and the kernel neither segments nor checksums the packets that it hands over.
//! Which offloads are on is a property of the device, not of the queue.
//!
//! A persistent TUN device outlives its daemon. Its routes and addresses stay, so the kernel queues
//! or drops packets instead of sending them by the default route, and the next start attaches to
//! the device again. This module does not set address, MTU or routes: netlink does.
//!
//! Invariant: a read returns one whole frame, and a write takes a frame whole or not at all.
//! Sources: Documentation/networking/tuntap.rst, include/uapi/linux/if_tun.h.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

/// The device file that is opened to make a TUN device.
pub const DEVICE: &str = "/dev/net/tun";

/// A single-queue TUN device without packet information or vnet header: each read and write is one
/// IP packet.
pub struct SimpleTun(Arc<tun_tap::Iface>);

impl SimpleTun {
    /// Creates the device, or attaches to a persistent one of that name and kind. Reads don't
    /// block.
    ///
    /// Errors: EPERM without CAP_NET_ADMIN, EBUSY if a process is attached, EINVAL if the name
    /// belongs to a device of another kind, ENOENT without [`DEVICE`].
    pub fn open(name: &str) -> io::Result<Self> {
        let tun = tun_tap::Iface::without_packet_info(name, tun_tap::Mode::Tun)?;
        tun.set_non_blocking()?;
        Ok(Self(Arc::new(tun)))
    }

    /// Shares the descriptor: the device stays open until the last share is dropped.
    #[must_use]
    pub fn share(&self) -> Self {
        Self(self.0.clone())
    }

    /// Reads one packet into `buffer`, which must be as long as the MTU of the device: the rest of
    /// a longer packet is lost.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.recv(buffer)
    }

    /// Writes one packet.
    pub fn write(&self, packet: &[u8]) -> io::Result<()> {
        self.0.send(packet).map(drop)
    }
}

/// Which super packets the kernel exchanges with the daemon on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Offload {
    /// None: each read and write is one packet with a complete checksum.
    None,
    /// TCP super packets and partial checksums.
    Tcp,
    /// TCP and UDP super packets and partial checksums: Linux 6.2 and later.
    TcpAndUdp,
}

/// One of several queues of a TUN device, with a `VnetHeader` before each packet. Reads and writes
/// don't block.
#[derive(Debug)]
pub struct Queue(File);

impl Queue {
    /// Creates the device with its first queue, or adds a queue to it, or attaches to a persistent
    /// device of that kind.
    ///
    /// Errors: EPERM without CAP_NET_ADMIN, EBUSY if the name belongs to a single-queue device,
    /// EINVAL if it belongs to a device of another kind, E2BIG beyond 256 queues, ENOENT without
    /// [`DEVICE`].
    pub fn open(name: &str) -> io::Result<Self> {
        let file = File::options().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(DEVICE)?;
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
        // SAFETY: an ifreq is made of plain integers and unions of them, for which zero is a value.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        if name.len() >= request.ifr_name.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        request.ifr_ifru.ifru_flags = libc::c_short::from_ne_bytes(low_half(flags));
        // SAFETY: TUNSETIFF reads and writes one ifreq, which lives across the call.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
        let length: libc::c_int = 10;
        // SAFETY: TUNSETVNETHDRSZ reads one int, which lives across the call.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const length) })?;
        Ok(Self(file))
    }

    /// Makes another descriptor of the same queue.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Makes a queue of any descriptor, for tests of code that writes to a queue.
    #[cfg(test)]
    pub(crate) fn over(fd: OwnedFd) -> Self {
        Self(File::from(fd))
    }

    /// Turns on as many offloads as the device supports, up to `wanted`, and returns what is on.
    /// The setting holds for all queues and stays on a persistent device, so it is made at every
    /// start, also for [`Offload::None`].
    pub fn set_offload(&self, wanted: Offload) -> io::Result<Offload> {
        let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
        let levels = [
            (Offload::None, 0),
            (Offload::Tcp, tcp),
            (Offload::TcpAndUdp, tcp | libc::TUN_F_USO4 | libc::TUN_F_USO6),
        ];
        let mut reached = Offload::None;
        for (level, mask) in levels.into_iter().filter(|(level, _)| *level <= wanted) {
            // SAFETY: TUNSETOFFLOAD takes an integer, no pointer.
            let result = check(unsafe {
                libc::ioctl(self.0.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(mask))
            });
            match result {
                Ok(()) => reached = level,
                Err(error) if level == Offload::None => return Err(error),
                Err(_) => break,
            }
        }
        Ok(reached)
    }

    /// Reads one header and packet into `buffer`.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(buffer)
    }

    /// Writes one header and packet.
    pub fn write(&self, frame: &[u8]) -> io::Result<()> {
        (&self.0).write(frame).map(drop)
    }

    /// Writes one packet that has complete checksums.
    pub fn write_packet(&self, packet: &[u8]) -> io::Result<()> {
        (&self.0).write_vectored(&[IoSlice::new(&[0; 10]), IoSlice::new(packet)]).map(drop)
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The flags of an ifreq have 16 bits, but their constants have 32.
fn low_half(flags: libc::c_int) -> [u8; 2] {
    u16::try_from(flags).unwrap_or(0).to_ne_bytes()
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A second descriptor of a TUN device, which decides whether the device outlives this process.
#[derive(Debug)]
pub struct Persistence(OwnedFd);

impl Persistence {
    /// Takes the device that `queue` belongs to.
    pub fn of(queue: &impl AsFd) -> io::Result<Self> {
        Ok(Self(queue.as_fd().try_clone_to_owned()?))
    }

    /// With `true` the device stays when its last descriptor closes; with `false` it is removed.
    pub fn set(&self, persistent: bool) -> io::Result<()> {
        // SAFETY: TUNSETPERSIST takes an integer, no pointer; the descriptor is open as long as
        // `self`.
        check(unsafe {
            libc::ioctl(self.0.as_raw_fd(), libc::TUNSETPERSIST, libc::c_ulong::from(persistent))
        })
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
