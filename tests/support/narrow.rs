//! A path with a smaller MTU than the links of the hosts, and an attacker that claims there is one.
#![allow(dead_code, unreachable_pub)]

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::process::Command;

use hopsack::lab::Lab;
use hopsack::packet::checksum::checksum;
use hopsack::sys::netns::in_netns;
use socket2::{Domain, Protocol, Socket, Type};

use super::run;

/// Puts two routers with a link of this MTU between host 2 and all other hosts. Both answer a
/// packet that is too long as the RFCs require. The links of the hosts stay as they are.
///
/// ```text
///   h1 -- br0 (underlay) -- nar0 ====== nar1 (router) -- h2
///                               mtu
/// ```
pub struct NarrowPath {
    router: String,
}

impl NarrowPath {
    pub fn before_host_2(lab: &Lab, mtu: u16) -> Self {
        let (underlay, address) = (lab.underlay_netns(), lab.host(2).public);
        let router = underlay.strip_suffix("net").expect("its name").to_owned() + "r";
        here(&["netns", "add", &router]);
        let narrow = Self { router };
        let router = narrow.router.as_str();
        let (ours, theirs, length, nodad) = match address {
            IpAddr::V4(_) => ("192.0.2.240", "192.0.2.241", 32, ""),
            IpAddr::V6(_) => ("2001:db8:64::e0", "2001:db8:64::e1", 128, " nodad"),
        };
        let others: Vec<IpAddr> =
            lab.hosts().iter().map(|host| host.public).filter(|other| *other != address).collect();
        ip(&underlay, "link set h2 nomaster");
        ip(&underlay, &format!("link set h2 netns {router}"));
        ip(&underlay, &format!("link add nar0 mtu {mtu} type veth peer name nar1 mtu {mtu} netns {router}"));
        // The addresses are the source of the ICMP errors.
        ip(&underlay, &format!("addr add {ours}/{length} dev nar0{nodad}"));
        ip(router, &format!("addr add {theirs}/{length} dev nar1{nodad}"));
        for (netns, link) in [(underlay.as_str(), "nar0"), (router, "nar1"), (router, "h2"), (router, "lo")] {
            ip(netns, &format!("link set {link} up"));
        }
        ip(&underlay, &format!("route add {address}/{length} dev nar0"));
        ip(router, &format!("route add {address}/{length} dev h2"));
        for other in &others {
            ip(&underlay, &format!("route add {other}/{length} dev br0"));
            ip(router, &format!("route add {other}/{length} dev nar1"));
        }
        // Each router answers for the hosts that are behind it.
        for (netns, links) in [(underlay.as_str(), ["br0", "nar0"]), (router, ["h2", "nar1"])] {
            let (forward, proxy) = match address {
                IpAddr::V4(_) => ("net.ipv4.ip_forward", ["net.ipv4.conf", "proxy_arp"]),
                IpAddr::V6(_) => ("net.ipv6.conf.all.forwarding", ["net.ipv6.conf", "proxy_ndp"]),
            };
            run(netns, &["sysctl", "-qw", &format!("{forward}=1")]);
            for link in links {
                run(netns, &["sysctl", "-qw", &format!("{}.{link}.{}=1", proxy[0], proxy[1])]);
            }
        }
        if address.is_ipv6() {
            for (netns, link) in [(underlay.as_str(), "br0"), (router, "nar1")] {
                ip(netns, &format!("neigh add proxy {address} dev {link}"));
            }
            for (netns, link) in [(underlay.as_str(), "nar0"), (router, "h2")] {
                for other in others.iter().map(IpAddr::to_string).chain([ours.to_owned(), theirs.to_owned()])
                {
                    ip(netns, &format!("neigh add proxy {other} dev {link}"));
                }
            }
            ip(&underlay, &format!("neigh add proxy {theirs} dev br0"));
        }
        // The hosts know each other's link addresses of before.
        for host in lab.hosts() {
            ip(&host.netns, "neigh flush dev eth0");
        }
        narrow
    }
}

fn ip(netns: &str, line: &str) {
    let argv: Vec<&str> = std::iter::once("ip").chain(line.split(' ')).collect();
    run(netns, &argv);
}

fn here(argv: &[&str]) {
    let done = Command::new("ip").args(argv).status().expect("ip runs");
    assert!(done.success(), "{argv:?}");
}

impl Drop for NarrowPath {
    fn drop(&mut self) {
        here(&["netns", "del", &self.router]);
    }
}

/// Tells a host that the path to another one has a small MTU, by one forged ICMP message of a pod.
/// It quotes a UDP datagram from `port` to `port`.
pub fn forge_frag_needed(lab: &Lab, [to, quoted]: [usize; 2], port: u16, mtu: u16) {
    let open = || Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4));
    let socket = in_netns(&lab.pod(to).netns, open).and_then(|socket| socket).expect("a raw socket");
    let address = |host: usize| match lab.host(host).public {
        IpAddr::V4(v4) => v4,
        IpAddr::V6(v6) => panic!("{v6}: the underlay of this lab is IPv4"),
    };
    let (source, destination): (Ipv4Addr, Ipv4Addr) = (address(to), address(quoted));
    let mut packet = vec![3, 4, 0, 0, 0, 0];
    packet.extend(mtu.to_be_bytes());
    packet.extend([0x45, 0, 0x05, 0xdc, 0, 0, 0x40, 0, 64, 17, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    for field in [port, port, 1480, 0] {
        packet.extend(field.to_be_bytes());
    }
    let sum = checksum(&packet);
    packet[2..4].copy_from_slice(&sum);
    socket.send_to(&packet, &SocketAddrV4::new(source, 0).into()).expect("sent");
}
