//! `hopsack flanneld`: flanneld's command line, with this process's environment and this host's
//! interfaces.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::path::Path;

use super::error::CliError;
use crate::config::flanneld::{self, Host};
pub(super) use crate::config::flanneld::{Request, help};

/// The machine on which this process runs.
struct ThisHost;

impl Host for ThisHost {
    fn has(&self, interface: &str) -> bool {
        match interface.parse::<IpAddr>() {
            // The kernel binds only to addresses of this host.
            Ok(address) => UdpSocket::bind((address, 0)).is_ok(),
            Err(_) => !interface.contains('/') && Path::new("/sys/class/net").join(interface).exists(),
        }
    }

    fn source_towards(&self, other: IpAddr) -> Option<IpAddr> {
        let any: IpAddr = match other {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        // Connecting a UDP socket sends nothing; it looks up the route. Port 9 is discard (RFC
        // 863).
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect((other, 9)).ok()?;
        socket.local_addr().ok().map(|address: SocketAddr| address.ip())
    }
}

/// Reads the flags.
pub(super) fn translate(flags: &[String]) -> Result<Request, CliError> {
    let environment: Vec<_> = std::env::vars().filter(|(name, _)| name.starts_with("FLANNELD_")).collect();
    Ok(flanneld::translate(flags, &environment, &ThisHost)?)
}
