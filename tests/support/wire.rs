//! An attacker between two hosts of a lab, which records, changes and repeats datagrams.
#![allow(dead_code, unreachable_pub)]

use std::collections::BTreeSet;
use std::io::Read as _;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use hopsack::lab::Lab;
use hopsack::sys::netns::in_netns;
use socket2::{Domain, Protocol, Socket, Type};

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const UDP: usize = 8;

/// A packet socket in the namespace that connects the hosts. It sees no packets of pods.
pub fn tap(lab: &Lab) -> Socket {
    let every_protocol = i32::from(0x0003_u16.to_be());
    let open = move || {
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(every_protocol)))?;
        socket.set_recv_buffer_size(16 << 20)?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        Ok(socket)
    };
    let socket = in_netns(&lab.underlay_netns(), open).and_then(|result: std::io::Result<Socket>| result);
    socket.expect("a packet socket")
}

/// Records each datagram from one host to a port of another once, in the order of sending.
///
/// The sender must send no trains: see [`no_trains`].
pub struct Recorder {
    recorded: Arc<Mutex<Vec<Vec<u8>>>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Recorder {
    pub fn of(lab: &Lab, from: usize, to: usize, port: u16) -> Self {
        let mut socket = tap(lab);
        let (recorded, stop) = (Arc::<Mutex<Vec<Vec<u8>>>>::default(), Arc::<AtomicBool>::default());
        let pair = [from, to].map(|host| v4(lab.host(host).public));
        let thread = std::thread::spawn({
            let (recorded, stop) = (recorded.clone(), stop.clone());
            move || {
                let (mut frame, mut known) = (vec![0; 70_000], BTreeSet::new());
                while !stop.load(Ordering::Relaxed) {
                    let Ok(length) = socket.read(&mut frame) else { continue };
                    // The socket sees each frame at several interfaces.
                    if let Some(datagram) = datagram(&frame[..length], pair, port)
                        && known.insert(datagram.to_vec())
                    {
                        recorded.lock().expect("no panic").push(datagram.to_vec());
                    }
                }
            }
        });
        Self { recorded, stop, thread }
    }

    /// How many datagrams are recorded so far.
    pub fn count(&self) -> usize {
        self.recorded.lock().expect("no panic").len()
    }

    pub fn stop(self) -> Vec<Vec<u8>> {
        std::thread::sleep(Duration::from_millis(200));
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("it recorded to the end");
        std::mem::take(&mut self.recorded.lock().expect("no panic"))
    }
}

fn datagram(frame: &[u8], [from, to]: [Ipv4Addr; 2], port: u16) -> Option<&[u8]> {
    let packet = frame.get(ETHERNET..)?;
    let (head, rest) = packet.split_at_checked(IPV4)?;
    let is_ours =
        head[0] == 0x45 && head[9] == 17 && head[12..16] == from.octets() && head[16..20] == to.octets();
    let (udp, payload) = rest.split_at_checked(UDP)?;
    let length = usize::from(u16::from_be_bytes([udp[4], udp[5]])).checked_sub(UDP)?;
    let is_to_port = udp[2..4] == port.to_be_bytes();
    if is_ours && is_to_port { payload.get(..length) } else { None }
}

/// Makes a host send each datagram singly, because a train would be recorded as one datagram.
pub fn no_trains(lab: &Lab, host: usize) {
    super::run(&lab.host(host).netns, &["ip", "link", "set", "eth0", "gso_max_segs", "1"]);
}

/// Sends datagrams to a port of a host with the source address of another host.
pub struct Forger {
    socket: Socket,
    pair: [Ipv4Addr; 2],
    port: u16,
}

impl Forger {
    pub fn of(lab: &Lab, from: usize, to: usize, port: u16) -> Self {
        // With protocol 255 the caller writes the IP header.
        let open = || Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(255)));
        let socket = in_netns(&lab.underlay_netns(), open).and_then(|socket| socket).expect("a raw socket");
        Self { socket, pair: [from, to].map(|host| v4(lab.host(host).public)), port }
    }

    pub fn send(&self, datagram: &[u8]) {
        let [from, to] = self.pair;
        let length = u16::try_from(IPV4 + UDP + datagram.len()).expect("it was one packet");
        let mut packet = vec![0; IPV4];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&length.to_be_bytes());
        (packet[8], packet[9]) = (64, 17);
        packet[12..16].copy_from_slice(&from.octets());
        packet[16..20].copy_from_slice(&to.octets());
        // UDP over IPv4 permits a checksum of zero (RFC 768). The kernel fills in the checksum of
        // the IP header.
        for field in [self.port, self.port, length - 20, 0] {
            packet.extend(field.to_be_bytes());
        }
        packet.extend(datagram);
        let sent = self.socket.send_to(&packet, &SocketAddrV4::new(to, 0).into()).expect("sent");
        assert_eq!(sent, packet.len());
        // Without the pause, a full queue would lose packets of the test itself.
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// A socket in a pod that counts the datagrams that it receives.
pub struct Ear(Socket);

impl Ear {
    pub const PORT: u16 = 7777;

    pub fn of(lab: &Lab, host: usize) -> Self {
        let at = SocketAddrV4::new(lab.pod(host).v4, Self::PORT);
        let open = move || {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, None)?;
            socket.set_recv_buffer_size(4 << 20)?;
            socket.bind(&at.into())?;
            Ok(socket)
        };
        let socket = in_netns(&lab.pod(host).netns, open).and_then(|socket: std::io::Result<Socket>| socket);
        Self(socket.expect("a socket"))
    }

    /// Counts datagrams until none has come for `pause`.
    pub fn count(&self, pause: Duration) -> usize {
        self.0.set_read_timeout(Some(pause)).expect("a timeout");
        let mut buffer = [MaybeUninit::uninit(); 2000];
        std::iter::from_fn(|| self.0.recv(&mut buffer).ok()).count()
    }
}

fn v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(v6) => panic!("{v6}: the underlay of this lab is IPv4"),
    }
}
