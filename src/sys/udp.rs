//! The underlay socket: bound to our public address, with a long receive queue.
//!
//! [`send_many`] and [`Receiver`] move many messages in one system call; each message is a datagram
//! or a train of datagrams. The engines decide what to do about an error.
//!
//! Anyone can send a forged ICMP error that lowers the path MTU in the kernel's route cache. No
//! socket lets such an error refuse a datagram: [`bind`] ignores the cache (IP_PMTUDISC_PROBE), and
//! after [`allow_fragments`] a datagram that is too long is fragmented.
//!
//! Invariant: only a datagram that is longer than the interface takes fails with EMSGSIZE. Sources:
//! ip(7), ipv6(7), socket(7), udp(7), sendmmsg(2), `ip_sk_use_pmtu` in the kernel.

mod errors;
mod many;

use std::io;
use std::mem::size_of;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::OnceLock;

pub use errors::take_error;
pub use many::{RECEIVE_BATCH, Received, Receiver, send_many};
use socket2::{Domain, Protocol, Socket, Type};

use super::batch::Message;

/// Bytes of receive queue to ask for: a burst of one bandwidth-delay product at 10 Gbit/s and 3 ms.
/// The kernel counts each packet with its overhead, about twice its length.
pub const RECEIVE_QUEUE: usize = 8 << 20;
/// Bytes of send queue to ask for: 32 trains of 64 KiB and their overhead may wait for the
/// interface.
pub const SEND_QUEUE: usize = 4 << 20;

/// The longest UDP payload over IPv4. It limits a datagram, and a UDP_SEGMENT train as a whole.
pub const MAX_PAYLOAD: usize = 65_507;
/// Datagrams that every kernel with UDP_SEGMENT accepts in one send (`UDP_MAX_SEGMENTS`).
pub const SEGMENTS: usize = 64;
/// Datagrams that kernels since 6.9 accept in one send.
const MORE_SEGMENTS: usize = 128;

/// Opens a non-blocking UDP socket on `address`. Datagrams leave with "don't fragment": one that is
/// too long for the interface fails with EMSGSIZE, and one that is too long for the path is lost.
///
/// Errors: EADDRINUSE if another socket has the port, EADDRNOTAVAIL if no interface has the
/// address.
pub fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    open(address, false)
}

/// Opens one of several sockets that share `address`. The kernel gives the datagrams of each sender
/// to one of them, by [`choose_by_source_port`] or by a hash of addresses and ports.
pub fn bind_shared(address: SocketAddr) -> io::Result<UdpSocket> {
    open(address, true)
}

fn open(address: SocketAddr, shared: bool) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    let fd = socket.as_raw_fd();
    match address {
        SocketAddr::V4(_) => {
            set(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)?;
            set(fd, libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
        }
        SocketAddr::V6(_) => {
            socket.set_only_v6(true)?;
            set(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)?;
            set(fd, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 1)?;
            set(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
        }
    }
    // With CAP_NET_ADMIN the size is forced; otherwise net.core.rmem_max and wmem_max limit it.
    let queue = libc::c_int::try_from(RECEIVE_QUEUE).unwrap_or(libc::c_int::MAX);
    if set(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, queue).is_err() {
        socket.set_recv_buffer_size(RECEIVE_QUEUE)?;
    }
    let queue = libc::c_int::try_from(SEND_QUEUE).unwrap_or(libc::c_int::MAX);
    if set(fd, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, queue).is_err() {
        socket.set_send_buffer_size(SEND_QUEUE)?;
    }
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// Lets datagrams of a socket be fragmented on their way: by routers (IPv4), or by this kernel if a
/// router has reported that they are too long for the path (IPv6, where routers do not fragment). A
/// train still fails with EMSGSIZE if one of its datagrams would have to be fragmented here.
///
/// A forged report only leads to fragments of at least 1,280 bytes: the kernel ignores reports for
/// IPv4 (IP_PMTUDISC_OMIT), and accepts no smaller MTU for IPv6. IPV6_MTU does not help: the kernel
/// fragments only what is longer than the MTU of the route (`ip6_finish_output`).
pub fn allow_fragments(socket: &UdpSocket) -> io::Result<()> {
    let fd = socket.as_raw_fd();
    if socket.local_addr()?.is_ipv4() {
        return set(fd, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_OMIT);
    }
    set(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT)?;
    set(fd, libc::IPPROTO_IPV6, libc::IPV6_DONTFRAG, 0)
}

/// Lets the kernel hand over trains: it merges received datagrams of one sender and one length
/// (UDP_GRO).
pub fn receive_trains(socket: &UdpSocket) -> io::Result<()> {
    set(socket.as_raw_fd(), libc::SOL_UDP, libc::UDP_GRO, 1)
}

/// Makes the kernel choose among the `count` sockets that share the address of this one, which must
/// all be bound. A datagram goes to socket (the sum of both addresses - (its source port - `port`))
/// modulo `count`, in the order of binding. With `has_more`, the socket that is bound next gets the
/// datagrams with the UDP checksum 0 (IPv4). Any further socket receives nothing.
///
/// The kernel's own hash could give both ports of a peer with two workers to one socket. A TUN
/// sends the packets of a flow to the queue that its answers were written to, so every flow would
/// end up at that worker. With this rule, worker `w` of a peer gets its answers from the same
/// worker that it sends to, and peers with only one port are spread by their addresses.
pub fn choose_by_source_port(socket: &UdpSocket, port: u16, count: usize, has_more: bool) -> io::Result<()> {
    // The offsets of the last words of source and destination address, and of the source port.
    let (src, dst, source_port) = if socket.local_addr()?.is_ipv4() { (12, 16, 20) } else { (20, 36, 40) };
    let count = u32::try_from(count).map_err(io::Error::other)?;
    let statement =
        |code: u32, k: u32| libc::sock_filter { code: u16::try_from(code).unwrap_or(0), jt: 0, jf: 0, k };
    // Offsets from SKF_NET_OFF on count from the network header.
    let load = |size: u32, offset: u32| {
        let k = libc::SKF_NET_OFF.cast_unsigned().wrapping_add(offset);
        statement(libc::BPF_LD | size | libc::BPF_ABS, k)
    };
    let modulo = statement(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, count);
    let to_x = statement(libc::BPF_MISC | libc::BPF_TAX, 0);
    let has_checksum =
        libc::sock_filter { jf: 1, ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0) };
    let without_checksum =
        [load(libc::BPF_H, source_port + 6), has_checksum, statement(libc::BPF_RET | libc::BPF_K, count)];
    let by_port = [
        load(libc::BPF_H, source_port),
        statement(libc::BPF_ALU | libc::BPF_SUB | libc::BPF_K, port.into()),
        modulo,
        statement(libc::BPF_ST, 0),
        load(libc::BPF_W, src),
        to_x,
        load(libc::BPF_W, dst),
        statement(libc::BPF_ALU | libc::BPF_ADD | libc::BPF_X, 0),
        modulo,
        statement(libc::BPF_ALU | libc::BPF_ADD | libc::BPF_K, count),
        statement(libc::BPF_LDX | libc::BPF_MEM, 0),
        statement(libc::BPF_ALU | libc::BPF_SUB | libc::BPF_X, 0),
        modulo,
        statement(libc::BPF_RET | libc::BPF_A, 0),
    ];
    let mut program: Vec<_> = without_checksum.into_iter().filter(|_| has_more).chain(by_port).collect();
    let length = libc::c_ushort::try_from(program.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    let length = libc::socklen_t::try_from(size_of::<libc::sock_fprog>()).map_err(io::Error::other)?;
    // SAFETY: `program` points to as many statements as it says, and both live across the call,
    // which copies them.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            length,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Datagrams that this kernel accepts in one UDP_SEGMENT send, and that it cuts one UDP super
/// packet of a TUN into. It is tried once, on the loopback interface.
#[must_use]
pub fn max_segments() -> usize {
    static ANSWER: OnceLock<usize> = OnceLock::new();
    let accepts_more = || {
        let socket = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        let message = Message::train(0, MORE_SEGMENTS, 1, socket.local_addr()?);
        send_many(&socket, &[0; MORE_SEGMENTS], &[message])
    };
    *ANSWER.get_or_init(|| if accepts_more().is_ok() { MORE_SEGMENTS } else { SEGMENTS })
}

/// Makes the receive queue of a socket as small as possible, for a socket that only sends.
pub fn receive_nothing(socket: &UdpSocket) -> io::Result<()> {
    set(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, 0)
}

/// Datagrams that the kernel dropped because the socket's receive queue was full, since it was
/// opened.
pub fn queue_drops(socket: &UdpSocket) -> io::Result<u32> {
    // include/uapi/linux/sock_diag.h: SK_MEMINFO_DROPS = 8, SK_MEMINFO_VARS = 9.
    let mut info = [0u32; 9];
    get(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_MEMINFO, &mut info)?;
    Ok(info[8])
}

/// Lets the kernel keep ICMP errors about datagrams of this socket, for [`take_error`].
pub fn keep_errors(socket: &UdpSocket) -> io::Result<()> {
    let fd = socket.as_raw_fd();
    match socket.local_addr()? {
        SocketAddr::V4(_) => set(fd, libc::IPPROTO_IP, libc::IP_RECVERR, 1),
        SocketAddr::V6(_) => set(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1),
    }
}

pub(super) fn set(fd: RawFd, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).map_err(io::Error::other)?;
    // SAFETY: the option value is one c_int that lives across the call, and `length` is its size.
    let result = unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Reads an option made of 32-bit integers.
fn get<T: Copy, const N: usize>(
    fd: RawFd,
    level: libc::c_int,
    name: libc::c_int,
    value: &mut [T; N],
) -> io::Result<()> {
    const { assert!(size_of::<T>() == 4) };
    let mut length = libc::socklen_t::try_from(size_of::<[T; N]>()).map_err(io::Error::other)?;
    // SAFETY: `value` is `length` bytes of plain integers, writable across the call; the kernel
    // writes at most that.
    let result = unsafe { libc::getsockopt(fd, level, name, value.as_mut_ptr().cast(), &raw mut length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn full_queue_is_counted_and_taken_port_refused() {
        let socket = bind("127.0.0.1:0".parse().expect("an address")).expect("bound");
        let address = socket.local_addr().expect("bound");
        assert_eq!(queue_drops(&socket).expect("SO_MEMINFO"), 0);
        assert_eq!(bind(address).expect_err("taken").kind(), io::ErrorKind::AddrInUse);
        let sender = UdpSocket::bind("127.0.0.1:0").expect("bound");
        for _ in 0..2000 {
            sender.send_to(&[0; 60_000], address).expect("sent");
        }
        let dropped = queue_drops(&socket).expect("SO_MEMINFO");
        let mut received = 0;
        while socket.recv(&mut [0; 65536]).is_ok() {
            received += 1;
        }
        assert_eq!(dropped + received, 2000);
        assert!(dropped > 0);
    }

    /// Kernel contract: only the port of the sender decides which of the sockets on one port
    /// receives.
    #[test]
    fn source_port_chooses_the_socket() {
        for (host, word) in [("127.0.0.1", 0x7f00_0001_u32), ("::1", 1)] {
            let host: IpAddr = host.parse().expect("an address");
            let addresses = word.wrapping_add(word) % 3;
            let first = bind_shared((host, 0).into()).expect("bound");
            let address = first.local_addr().expect("bound");
            let others = (1..3).map(|_| bind_shared(address).expect("bound"));
            let sockets: Vec<UdpSocket> = std::iter::once(first).chain(others).collect();
            choose_by_source_port(&sockets[0], address.port(), 3, false).expect("SO_ATTACH_REUSEPORT_CBPF");
            let silent = bind_shared(address).expect("bound");
            for _ in 0..20 {
                let sender = UdpSocket::bind((host, 0)).expect("bound");
                let port = u32::from(sender.local_addr().expect("bound").port());
                let chosen = (addresses + 3 - port.wrapping_sub(address.port().into()) % 3) % 3;
                sender.send_to(&[1], address).expect("sent");
                for (n, socket) in (0..).zip(&sockets) {
                    assert_eq!(socket.recv(&mut [0; 9]).is_ok(), n == chosen, "from {port} to socket {n}");
                }
                assert!(silent.recv(&mut [0; 9]).is_err(), "one more socket receives nothing");
            }
        }
    }
}
