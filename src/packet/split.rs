//! Splits what one TUN read delivered into packets of wire size: the segments that the kernel would
//! have sent.
//!
//! A [`SplitPlan`] says how many segments there are and how much room they need, and writes them
//! back to back into one buffer. So they leave in one UDP_SEGMENT send of one iovec: copying and
//! summing them is cheaper than a gather of two entries for each segment.
//!
//! It does not look up routes (all segments have the same destination) and does not know an MTU. It
//! does not trust a field of the [`VnetHeader`] that it can find in the packet: it ignores
//! `hdr_len`, and refuses a `csum_start` that contradicts the packet.
//!
//! Invariant: for every accepted input, each segment is one whole IP packet with correct checksums,
//! and merging the segments gives the input again (property test `coalesce_undoes_split`). No input
//! panics.
//! Sources: Linux `Documentation/networking/segmentation-offloads.rst`, RFC 3168 §6.1.2 (CWR), RFC
//! 768 (checksum of zero).
#![forbid(unsafe_code)]

mod plan;
mod segments;

use super::header::IPV6_HEADER;
use super::ip::IpPacket;
use super::malformed::Malformed;
use super::train::Train;
use super::vnet::VnetHeader;
pub use plan::SplitPlan;

/// Length in bytes of a buffer that holds the segments of every super packet that the local TCP
/// makes.
///
/// Linux never accepts an MSS below 48 (`net.ipv4.tcp_min_snd_mss`), which includes at most 40
/// bytes of options: 65,535 bytes in segments of at least 8 would be 8,192 segments. With the 12
/// bytes of timestamps that occur in practice they are at most 1,821 segments, with up to 72 bytes
/// of headers each.
pub const SPLIT_BUFFER: usize = 256 * 1024;
const _: () = assert!(65_535 + 65_535_usize.div_ceil(48 - 12) * (IPV6_HEADER + 32) <= SPLIT_BUFFER);

/// Splits `packet` into `out` as `vnet` says: plans and writes in one step, for a caller that has
/// room for any plan.
pub fn split<'a>(vnet: &VnetHeader, packet: IpPacket<'_>, out: &'a mut [u8]) -> Result<Train<'a>, Malformed> {
    SplitPlan::of(*vnet, packet)?.write(out)
}

#[cfg(test)]
mod tests;
