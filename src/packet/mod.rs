//! IP packets as bytes: checked views, checksums, ICMP errors, ECN, bundles, and the splitting and
//! merging of super packets.
//!
//! Nothing here knows a device, a route or a clock.
//!
//! Invariant: no input makes anything here panic.
#![forbid(unsafe_code)]

pub mod bundle;
pub mod checksum;
pub mod coalesce;
pub mod control;
pub mod ecn;
mod family;
pub mod half_summed;
mod header;
pub mod icmp;
mod ip;
mod malformed;
pub mod protocol;
pub mod split;
#[cfg(test)]
mod testing;
mod train;
pub mod vnet;

pub use family::{Family, min_mtu, outer_overhead};
pub use header::{IPV4_HEADER, IPV6_HEADER};
pub use ip::{IpPacket, Transport};
pub use malformed::Malformed;
pub use train::Train;
pub use vnet::VnetHeader;
