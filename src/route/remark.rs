//! Remarks: what the operator must know about single leases, whether they have a route or not.
//!
//! A remark changes no route by itself.
#![forbid(unsafe_code)]

use std::net::IpAddr;

use ipnet::IpNet;

/// Something that the operator must know about a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    /// Key of the lease in the store.
    pub key: String,
    /// What there is to know.
    pub kind: RemarkKind,
}

/// What there is to know about a lease. The message is written for the operator; "it" is the lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RemarkKind {
    /// The lease overlaps an older lease of another host.
    #[error(
        "it is ignored, because it overlaps {other}, the older lease of {host}: delete one of the two keys"
    )]
    Overlap {
        /// Key of the older lease.
        other: String,
        /// Name of the host that has the older lease.
        host: String,
    },
    /// Two leases of one address announce different certificates.
    #[error(
        "it has no route, because {other} announces another certificate for the same address {address}: delete \
         the key of the host that does not have the address any more"
    )]
    TwoCertificates {
        /// Key of the other lease.
        other: String,
        /// Address that both leases name.
        address: IpAddr,
    },
    /// A lease without encryption has the address of a host that encrypts.
    #[error(
        "it announces no encryption, but {other} announces encryption for the same address {address}, so hosts \
         that encrypt send nothing there in clear: delete this key if no flanneld runs on that host"
    )]
    Unencrypted {
        /// Key of the lease that announces encryption.
        other: String,
        /// Address that both leases name.
        address: IpAddr,
    },
    /// Another version of hopsack wrote the announcement of encryption.
    #[error(
        "it announces encryption in a form that this version cannot read (BackendData.Security), so hosts that \
         encrypt send nothing to its address: run the same version on both hosts"
    )]
    Unreadable,
    /// The lease of another host has an address of this host.
    #[error(
        "it has no route, because it names {address}, an address of this host: delete its key, or correct its host"
    )]
    OwnAddress {
        /// Address that the lease names.
        address: IpAddr,
    },
    /// The lease has the broadcast address of one of this host's links.
    #[error("it has no route, because it names {address}, the broadcast address of a link of this host")]
    Broadcast {
        /// Address that the lease names.
        address: IpAddr,
    },
    /// The name of the lease's host is invalid.
    #[error(
        "the name of its host is invalid (letters, digits and -_.:@ are allowed): the node id stands for it"
    )]
    Name,
    /// The length of a subnet differs from the network configuration's.
    #[error(
        "its subnet {subnet} is no /{usual}, as the network configuration wants it; it is routed all the same"
    )]
    Length {
        /// Subnet of the lease.
        subnet: IpNet,
        /// Subnet length of the network configuration.
        usual: u8,
    },
}
