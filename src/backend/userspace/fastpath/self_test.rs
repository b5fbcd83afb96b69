//! The check whether this kernel loads the program, and whether the program does with a few packets
//! what it should (BPF_PROG_TEST_RUN).
//!
//! It attaches nothing and leaves nothing behind. It does not show what a network card does with
//! the packets: the [`canary`](super::canary) does. Invariant: it says that all is well only if
//! each packet came out with exactly the expected bytes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::fastpath::{Route, RouteKind, Routes, Settings, Trial, Verdict, Way};
use crate::packet::checksum::checksum;

const US: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const PORT: u16 = 8285;
/// Bytes of an IPv4 and a UDP header.
const OUTER: usize = 28;
/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;

/// Runs the check. `Err`: what does not work, for `status`.
pub(in crate::backend::userspace) fn self_test() -> Result<(), String> {
    let settings = Settings {
        address: US,
        port: PORT,
        verify_source: true,
        overlay: 1,
        gro: None,
        ports: Settings::spread(&[PORT]),
        public_v4: None,
        public_v6: None,
    };
    let mut trial = Trial::load(&settings, &routes()).map_err(|error| error.to_string())?;
    for (is_v6, payload) in [(false, 1), (true, 1), (false, 1432), (true, 1412)] {
        let sent = packet(is_v6, Host::Us, payload);
        check(&mut trial, Way::Egress, &frame(is_v6, &sent), |out| {
            let (outer, inner) = out.split_at_checked(OUTER)?;
            let is_right = outer[0] == 0x45 && outer[12..16] == US.octets() && outer[16..20] == PEER.octets();
            (is_right && outer[26..28] == [0, 0]).then_some(inner == sent)
        })?;
        let received = packet(is_v6, Host::Peer, payload);
        let datagram = datagram(&received);
        check(&mut trial, Way::Ingress, &frame(false, &datagram), |out| Some(out == received))?;
    }
    Ok(())
}

fn check(
    trial: &mut Trial,
    way: Way,
    frame: &[u8],
    is_right: impl Fn(&[u8]) -> Option<bool>,
) -> Result<(), String> {
    let (verdict, out) = trial.run(way, frame, 0).map_err(|error| error.to_string())?;
    let is_right = verdict == Verdict::Accepted && out.get(ETHERNET..).and_then(is_right) == Some(true);
    let length = frame.len() - ETHERNET;
    let failed = || {
        format!("the kernel program does not do what it should with {length} bytes ({way:?}: {verdict:?})")
    };
    if is_right { Ok(()) } else { Err(failed()) }
}

/// Which host sends a packet to the other one.
#[derive(Clone, Copy)]
enum Host {
    Us,
    Peer,
}

fn routes() -> Routes {
    let peer = Route {
        kind: RouteKind::Peer,
        may_send: true,
        is_clear: true,
        ecn: true,
        mtu: 1472,
        peer: PEER,
        underlay: 1,
    };
    let host = |from, is_v6| IpNet::from(address(from, is_v6));
    Routes::from([
        (host(Host::Us, false), Route::LOCAL),
        (host(Host::Us, true), Route::LOCAL),
        (host(Host::Peer, false), peer),
        (host(Host::Peer, true), peer),
    ])
}

fn address(host: Host, is_v6: bool) -> IpAddr {
    let n = match host {
        Host::Us => 1,
        Host::Peer => 2,
    };
    if is_v6 {
        Ipv6Addr::new(0xfd00, 0, 0, n, 0, 0, 0, 1).into()
    } else {
        let [_, n] = n.to_be_bytes();
        Ipv4Addr::new(10, 1, n, 1).into()
    }
}

/// A TCP packet from `host` to the other one.
fn packet(is_v6: bool, host: Host, payload: usize) -> Vec<u8> {
    let (src, dst) = match host {
        Host::Us => (address(Host::Us, is_v6), address(Host::Peer, is_v6)),
        Host::Peer => (address(Host::Peer, is_v6), address(Host::Us, is_v6)),
    };
    let length = u16::try_from(20 + payload).unwrap_or(0);
    let mut bytes = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => ipv4(6, src, dst, length).to_vec(),
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut header = vec![0x60, 0, 0, 0, 0, 0, 6, 64];
            header[4..6].copy_from_slice(&length.to_be_bytes());
            header.extend(src.octets());
            header.extend(dst.octets());
            header
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => Vec::new(),
    };
    bytes.extend([0x1f, 0x90, 0x1f, 0x91, 0, 0, 0, 1, 0, 0, 0, 1, 5 << 4, 0x10, 1, 0, 0, 0, 0, 0]);
    bytes.resize(bytes.len() + payload, 7);
    bytes
}

/// An IPv4 header for `length` bytes that follow.
fn ipv4(protocol: u8, src: Ipv4Addr, dst: Ipv4Addr, length: u16) -> [u8; 20] {
    let mut header = [0; 20];
    (header[0], header[6], header[8], header[9]) = (0x45, 0x40, 64, protocol);
    header[2..4].copy_from_slice(&(20 + length).to_be_bytes());
    header[12..16].copy_from_slice(&src.octets());
    header[16..20].copy_from_slice(&dst.octets());
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum);
    header
}

/// A datagram of the peer's fast path.
fn datagram(inner: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + inner.len()).unwrap_or(0);
    let mut bytes = ipv4(17, PEER, US, length).to_vec();
    for word in [PORT, PORT, length, 0] {
        bytes.extend(word.to_be_bytes());
    }
    bytes.extend(inner);
    bytes
}

/// A packet with an Ethernet header, as the kernel wants it for a test run.
fn frame(is_v6: bool, packet: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; ETHERNET];
    frame[12..14].copy_from_slice(if is_v6 { &[0x86, 0xdd] } else { &[0x08, 0x00] });
    frame.extend(packet);
    frame
}
