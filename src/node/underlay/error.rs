//! Why there is no usable interface or address.

use std::net::IpAddr;

use crate::netlink::NetlinkError;
use crate::route::Unfit;

/// Why there is no usable interface or address.
#[derive(Debug, thiserror::Error)]
pub enum UnderlayError {
    /// No interface has the configured name.
    #[error("node.interface = {name:?}: no such interface; there are {}", there.join(", "))]
    NoInterface {
        /// Configured name.
        name: String,
        /// Names of the interfaces of this host.
        there: Vec<String>,
    },
    /// No interface has the configured address.
    #[error("{key} = {address} is on no interface of this host; its addresses are: {}", list(own))]
    NotOurs {
        /// Key of the configuration.
        key: &'static str,
        /// Configured address.
        address: IpAddr,
        /// Addresses of this host.
        own: Vec<IpAddr>,
    },
    /// The configured address cannot be an underlay address.
    #[error("node.public_ip = {address} cannot be the address of a host: {why}")]
    Unfit {
        /// Configured address.
        address: IpAddr,
        /// Why it cannot be one.
        why: Unfit,
    },
    /// Without a default route, no interface can be chosen.
    #[error("this host has no default route to choose an interface by: set node.interface or node.public_ip")]
    NoDefaultRoute,
    /// The interface has no address that other hosts could use.
    #[error("{0} has no address by which other hosts could reach it: give it one")]
    NoAddress(String),
    /// Duplicate address detection (RFC 4862) runs: the address cannot be used yet.
    #[error("{0} has an address that is tentative: duplicate address detection takes a second or two")]
    Tentative(String),
    /// The interface was removed in the meantime.
    #[error("the underlay interface went away")]
    Gone,
    /// The kernel refused a question.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

impl UnderlayError {
    /// Stable code of the error. The process prints it behind the sentence, in brackets.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoInterface { .. } => "no_such_interface",
            Self::NotOurs { .. } => "address_not_on_host",
            Self::Unfit { .. } => "address_unfit",
            Self::NoDefaultRoute => "no_default_route",
            Self::NoAddress(_) => "interface_without_address",
            Self::Tentative(_) => "address_tentative",
            Self::Gone => "interface_gone",
            Self::Netlink(error) => error.code(),
        }
    }

    /// Whether the condition may end without an edit of the configuration. An interface, address or
    /// route that is configured may appear later (slow DHCP).
    #[must_use]
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::NoInterface { .. }
            | Self::NotOurs { .. }
            | Self::NoDefaultRoute
            | Self::NoAddress(_)
            | Self::Tentative(_)
            | Self::Gone => true,
            Self::Unfit { .. } | Self::Netlink(_) => false,
        }
    }
}

fn list(addresses: &[IpAddr]) -> String {
    match addresses {
        [] => "none".to_owned(),
        some => some.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}
