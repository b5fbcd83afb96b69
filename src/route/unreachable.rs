//! Leases without a route, and the reasons.
//!
//! It does not decide which leases have a route: the compilation does.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use ipnet::IpNet;

/// A lease that has no route, or only for a part of its subnets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unreachable {
    /// The host's name in the store.
    pub name: String,
    /// The subnets without a route.
    pub subnets: Vec<IpNet>,
    /// Why they have no route.
    pub reason: UnreachableReason,
}

/// Why a lease has no route. The message is written for the operator; "it" is the other host.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum UnreachableReason {
    /// The host does not encrypt, but this host requires encryption.
    #[error(
        "it does not encrypt, but this host requires encryption (security.require): enable \
         encryption there"
    )]
    NotEncrypted,
    /// The host has no public address of the family of our own public address.
    #[error(
        "it has no public address of the family that this host uses ({0}): add one there, or set \
         node.public_ip here"
    )]
    NoPublicAddress(IpAddr),
    /// The host claims our own public address.
    #[error("it claims our own public address {0} for other subnets")]
    OwnPublicAddress(IpAddr),
    /// The host claims an address of one of our interfaces.
    #[error("it claims {0}, an address of this host, for other subnets")]
    OwnAddress(IpAddr),
    /// The host claims a broadcast address.
    #[error("it claims {0}, the broadcast address of a link of this host")]
    Broadcast(IpAddr),
    /// The lease overlaps an older lease of another host.
    #[error("its lease is ignored, because it overlaps the older lease {0} of another host")]
    Overlap(String),
    /// Another lease of the same address announces another certificate.
    #[error("{0}, a lease of the same address, announces another certificate: one of the two hosts is wrong")]
    TwoCertificates(String),
    /// Another version of hopsack announces encryption for the host, in a form that this version
    /// cannot read.
    #[error(
        "{0}, a lease of its address, announces encryption in a form that this version cannot read: run the \
         same version on both hosts"
    )]
    Unreadable(String),
    /// The host runs another backend.
    #[error("its backend is {0}, which does not accept packets of Flannel's UDP mode")]
    OtherBackend(String),
    /// The host runs a plain flanneld, which does not accept IPv6.
    #[error(
        "it runs a plain flanneld, which would read IPv6 packets as IPv4: its IPv6 subnet has no \
         route"
    )]
    NoIpv6,
    /// The path is too narrow for IPv6, and the QUIC connection cannot fragment.
    #[error(
        "its path takes inner packets of {0} bytes, fewer than the 1280 that IPv6 needs, and QUIC \
         cannot fragment: raise the MTU of the path, or set security.mode = \"sealed\" on both hosts"
    )]
    NarrowPath(u16),
    /// The path is too narrow for IPv6, and fragments of longer datagrams are lost.
    #[error(
        "its path takes inner packets of {0} bytes, fewer than the 1280 that IPv6 needs, and fragments of longer \
         datagrams do not arrive: raise the MTU of the path, or set it on the route to the host (ip route ... mtu)"
    )]
    LostFragments(u16),
}
