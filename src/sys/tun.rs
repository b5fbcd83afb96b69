//! The overlay device's descriptors: one through `tun-tap`, or queues of our own with offloads; kept alive across a
//! crash by the kernel.
//!
//! A [`Queue`] speaks super packets: each read and write has a `VnetHeader` in front (`IFF_VNET_HDR`), and the kernel
//! neither cuts nor sums what it hands over. Which of these it does is a property of the device, not of the queue.
//!
//! A persistent TUN device outlives its daemon: routes and addresses stay, packets wait or are dropped by the kernel
//! instead of leaking out by the default route, and the next start attaches to it again. Address, MTU and routes are
//! netlink's work, not this module's.
//!
//! Source: Documentation/networking/tuntap.rst, include/uapi/linux/if_tun.h.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

/// The clone device.
pub const DEVICE: &str = "/dev/net/tun";

/// A single-queue TUN device without packet information or vnet header: one IP packet a read, one a write.
pub struct SimpleTun(Arc<tun_tap::Iface>);

impl SimpleTun {
    /// Creates the device, or attaches to a persistent one of that name and kind. Reads don't block.
    ///
    /// Errors: EPERM without CAP_NET_ADMIN, EBUSY if a process is attached, EINVAL if the name belongs to a device of
    /// another kind, ENOENT without [`DEVICE`].
    pub fn open(name: &str) -> io::Result<Self> {
        let tun = tun_tap::Iface::without_packet_info(name, tun_tap::Mode::Tun)?;
        tun.set_non_blocking()?;
        Ok(Self(Arc::new(tun)))
    }

    /// The same descriptor once more: the device stays open until the last goes.
    #[must_use]
    pub fn share(&self) -> Self {
        Self(self.0.clone())
    }

    /// Reads one packet into `buffer`, which must take the device's MTU; what doesn't fit is cut off.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.recv(buffer)
    }

    /// Writes one packet.
    pub fn write(&self, packet: &[u8]) -> io::Result<()> {
        self.0.send(packet).map(drop)
    }
}

/// What the kernel hands over uncut and takes merged, on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Offload {
    /// One packet a read and a write, with its checksum.
    None,
    /// TCP super packets, and partial checksums.
    Tcp,
    /// UDP ones too: Linux 6.2 and later.
    TcpAndUdp,
}

/// One of several queues of a TUN device, with a `VnetHeader` before each packet. Reads and writes don't block.
#[derive(Debug)]
pub struct Queue(File);

impl Queue {
    /// Creates the device with its first queue, or adds one to it, or attaches to a persistent device of that kind.
    ///
    /// Errors: EPERM without CAP_NET_ADMIN, EBUSY if the name belongs to a device that has no queues, EINVAL if to one of
    /// another kind, E2BIG beyond 256 queues, ENOENT without [`DEVICE`].
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

    /// Another descriptor of the same queue.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// A queue that is none: for tests of those who write to one.
    #[cfg(test)]
    pub(crate) fn over(fd: OwnedFd) -> Self {
        Self(File::from(fd))
    }

    /// Asks the device for as much as it can, up to `wanted`, and says what that is. It holds for all its queues, and
    /// outlives the program on a persistent device: so it is said at every start, also for [`Offload::None`].
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

    /// Writes a packet that is whole and has its checksums.
    pub fn write_packet(&self, packet: &[u8]) -> io::Result<()> {
        (&self.0).write_vectored(&[IoSlice::new(&[0; 10]), IoSlice::new(packet)]).map(drop)
    }
}

impl AsFd for Queue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The flags of an ifreq have 16 bits, their constants 32.
fn low_half(flags: libc::c_int) -> [u8; 2] {
    u16::try_from(flags).unwrap_or(0).to_ne_bytes()
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A second descriptor of a TUN device, to decide about its end.
#[derive(Debug)]
pub struct Persistence(OwnedFd);

impl Persistence {
    /// Of the device that `queue` belongs to.
    pub fn of(queue: &impl AsFd) -> io::Result<Self> {
        Ok(Self(queue.as_fd().try_clone_to_owned()?))
    }

    /// `true`: the device stays when the last descriptor closes. `false`: it goes.
    pub fn set(&self, persistent: bool) -> io::Result<()> {
        // SAFETY: TUNSETPERSIST takes an integer, no pointer; the descriptor is open as long as `self`.
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
