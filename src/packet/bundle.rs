//! A bundle: several small packets in one datagram, for hosts that announce that they accept
//! bundles.
//!
//! The two kernels between the hosts spend as much on one datagram with fifteen packets of 92 bytes
//! as on one packet. Bundles of equal length also leave as one UDP_SEGMENT train, as full-size
//! packets do. A bundle carries whole packets unchanged, with complete checksums, so that each
//! entry equals a bare datagram and is checked like one.
//!
//! # The format, version 1
//! All numbers are big-endian.
//!
//! ```text
//! 0       1       2       3       4               6
//! +-------+-------+-------+-------+-------+-------+----------------+-------+-------+------
//! | 3 | 1 | zero  | total length  | entry length  | inner packet   | entry length  | ...
//! +-------+-------+-------+-------+-------+-------+----------------+-------+-------+------
//! ```
//!
//! * The first nibble is 3, the second is the version. A receiver that does not know the version
//!   drops the datagram.
//! * The second byte is sent as zero, and receivers ignore it.
//! * *Total length* is the length of the datagram in bytes, this header and the padding included.
//!   It must equal the datagram's length.
//! * Entries follow without gaps, at least one. An entry is a length in two bytes, with its
//!   highest bit zero, and one whole IP packet of that length.
//! * If a length of zero stands where an entry would begin, or fewer than two bytes are left, the
//!   rest is padding: zeros that receivers ignore. All datagrams of a train except the last have
//!   the same length, so they are padded to it.
//! * A datagram is never longer than a bare packet to the same peer may be, nor than the link of
//!   the peer takes: 1,500 bytes with IP and UDP headers, unless the peer announces another MTU.
//!
//! No entry refers to another datagram. A sender keeps the packets of a flow in order across
//! bundles and bare datagrams.
//!
//! *Malformed bundles.* A datagram with a wrong version or total length, or without an entry, is
//! one drop. An entry that reaches beyond the end of the datagram, or has its highest bit set, ends
//! the bundle. The packets before it are accepted, since each of them is whole and independent of
//! its neighbours; that entry and all bytes after it are one drop.
//!
//! *No partial checksums.* The highest bit of an entry length is reserved for a flag that would
//! announce them. They would save only the summing of few bytes while these are copied (compare
//! `checksum/copied/64` with `checksum/memcpy/64` in benches/packet.rs). In return, the receiver
//! could verify nothing before it merges, and a packet could not be sent bare where the path takes
//! no bundle. That is not worth a bit.
//!
//! This module does not choose the packets of a bundle, and does not look into packets.
//!
//! Invariant: `entries(write(packets)) == packets`, and an entry never reaches beyond its datagram,
//! for any bytes (property tests `bundles_return_their_packets`, `arbitrary_bundles_stay_inside`).
#![forbid(unsafe_code)]

use super::header::{put, to_u16, word};
use super::malformed::Malformed;

/// The first nibble of a bundle.
pub const NIBBLE: u8 = 3;
/// The first byte of a bundle: first nibble and version.
const FIRST_BYTE: u8 = NIBBLE << 4 | 1;
/// Offset of the total length.
const TOTAL: usize = 2;
/// Bytes before the first entry.
pub const HEADER: usize = 4;
/// Bytes before the packet of each entry.
pub const ENTRY: usize = 2;
/// Bytes before the first packet.
pub const FIRST_PACKET: usize = HEADER + ENTRY;
/// The longest packet that an entry can hold.
const MAX_ENTRY: usize = 0x7fff;

/// The longest packet of which three fit in a datagram of `datagram` bytes. Longer packets are not
/// bundled: to save one datagram of two, most of their bytes would be copied, and such packets are
/// long enough to fill a train of their own.
#[must_use]
pub const fn longest_small_packet(datagram: usize) -> usize {
    (datagram.saturating_sub(HEADER) / 3).saturating_sub(ENTRY)
}

/// Appends `packet` to the bundle in the first `filled` bytes of `datagram`, or begins a bundle if
/// `filled` is zero. Returns the new length of the bundle, or `None` if the packet does not fit.
/// The bundle is complete after each call.
#[must_use]
#[inline]
pub fn append(datagram: &mut [u8], filled: usize, packet: &[u8]) -> Option<usize> {
    let at = filled.max(HEADER);
    let end = at + ENTRY + packet.len();
    if end > datagram.len() || packet.len() > MAX_ENTRY {
        return None;
    }
    put(datagram, at, to_u16(packet.len()).to_be_bytes());
    datagram[at + ENTRY..end].copy_from_slice(packet);
    put(datagram, 0, [FIRST_BYTE, 0]);
    put(datagram, TOTAL, to_u16(end).to_be_bytes());
    Some(end)
}

/// Fills `datagram` with padding after the bundle in its first `filled` bytes.
#[inline]
pub fn pad(datagram: &mut [u8], filled: usize) {
    datagram[filled..].fill(0);
    put(datagram, TOTAL, to_u16(datagram.len()).to_be_bytes());
}

/// Whether the first nibble of a datagram is that of a bundle.
#[must_use]
#[inline]
pub fn is_bundle(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|byte| byte >> 4 == NIBBLE)
}

/// The entries of a bundle. [`Malformed`] if the version is unknown, the total length is not the
/// length of the datagram, or there is no entry.
#[inline]
pub fn entries(datagram: &[u8]) -> Result<Entries<'_>, Malformed> {
    let (header, rest) = datagram.split_at_checked(HEADER).ok_or(Malformed)?;
    let is_known = header[0] == FIRST_BYTE && usize::from(word(header, TOTAL)) == datagram.len();
    let is_empty = rest.len() < ENTRY || word(rest, 0) == 0;
    if is_known && !is_empty { Ok(Entries { rest }) } else { Err(Malformed) }
}

/// Iterates over the entries of a bundle, in order. [`Malformed`] is always the last item.
#[derive(Debug, Clone)]
pub struct Entries<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Entries<'a> {
    type Item = Result<&'a [u8], Malformed>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let (length, rest) = self.rest.split_first_chunk::<ENTRY>()?;
        let length = usize::from(u16::from_be_bytes(*length));
        if length == 0 {
            self.rest = &[];
            return None;
        }
        match rest.split_at_checked(length).filter(|_| length <= MAX_ENTRY) {
            Some((packet, rest)) => {
                self.rest = rest;
                Some(Ok(packet))
            }
            None => {
                self.rest = &[];
                Some(Err(Malformed))
            }
        }
    }
}

/// Number of packets in a datagram, and the sum of their bytes. A datagram that is not a bundle
/// counts as one packet.
#[must_use]
pub fn contents(datagram: &[u8]) -> (u64, u64) {
    match entries(datagram) {
        Ok(entries) => {
            entries.flatten().fold((0, 0), |(n, bytes), entry| (n + 1, bytes + entry.len() as u64))
        }
        Err(Malformed) => (1, datagram.len() as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(datagram: &mut [u8], packets: &[&[u8]]) -> usize {
        packets.iter().fold(0, |filled, packet| append(datagram, filled, packet).expect("fits"))
    }

    fn read(datagram: &[u8]) -> Result<Vec<Result<&[u8], Malformed>>, Malformed> {
        Ok(entries(datagram)?.collect())
    }

    #[test]
    fn a_bundle_has_the_specified_bytes() {
        let mut datagram = [0xaa; 16];
        let filled = bundle(&mut datagram, &[b"ab", b"c"]);
        assert_eq!(datagram[..filled], *b"\x31\0\0\x0b\0\x02ab\0\x01c");
        assert_eq!(read(&datagram[..filled]), Ok(vec![Ok(&b"ab"[..]), Ok(b"c")]));
        assert_eq!(contents(&datagram[..filled]), (2, 3));
        pad(&mut datagram, filled);
        assert_eq!(datagram, *b"\x31\0\0\x10\0\x02ab\0\x01c\0\0\0\0\0");
        assert_eq!(read(&datagram), Ok(vec![Ok(&b"ab"[..]), Ok(b"c")]));
    }

    #[test]
    fn a_packet_fits_up_to_the_last_byte() {
        let mut datagram = [0; 12];
        assert_eq!(append(&mut datagram, 0, &[7; 7]), None);
        assert_eq!(append(&mut datagram, 0, &[7; 6]), Some(12));
        assert_eq!(append(&mut datagram, 12, &[]), None);
        // One byte of padding is too short for an entry length.
        let mut datagram = [0; 13];
        let filled = bundle(&mut datagram, &[&[7; 6]]);
        pad(&mut datagram, filled);
        assert_eq!(read(&datagram), Ok(vec![Ok(&[7u8; 6][..])]));
        let mut long = vec![0; 40_000];
        assert_eq!(append(&mut long, 0, &[7; MAX_ENTRY + 1]), None, "its length needs the highest bit");
        assert_eq!(append(&mut long, 0, &[7; MAX_ENTRY]), Some(MAX_ENTRY + FIRST_PACKET));
    }

    #[test]
    fn three_small_packets_fit() {
        for datagram in [576usize, 1280, 1472, 8972] {
            let (mut memory, small) = (vec![0; datagram], longest_small_packet(datagram));
            bundle(&mut memory, &[&vec![7; small][..]; 3]);
            let four = append(&mut memory, datagram, &[7]);
            assert_eq!(four, None);
            assert!(HEADER + 3 * (ENTRY + small + 1) > datagram, "three packets of one byte more do not fit");
        }
        assert_eq!(longest_small_packet(3), 0);
    }

    #[test]
    fn a_malformed_entry_ends_the_bundle() {
        let good = b"\x31\0\0\x0b\0\x02ab\0\x01c";
        for (at, value, what) in
            [(0, 0x30, "version"), (3, 0x0c, "longer"), (3, 0x0a, "shorter"), (5, 0, "no entry")]
        {
            let mut datagram = *good;
            datagram[at] = value;
            assert_eq!(read(&datagram), Err(Malformed), "{what}");
        }
        for short in [&b""[..], b"\x31", b"\x31\0\0\x04", b"\x31\0\0\x05\0"] {
            assert_eq!(read(short), Err(Malformed), "{short:?}");
        }
        for (at, value) in [(9, 2), (8, 0x80), (9, 0xff)] {
            let mut datagram = *good;
            datagram[at] = value;
            assert_eq!(read(&datagram), Ok(vec![Ok(&b"ab"[..]), Err(Malformed)]));
        }
        let mut reserved = *good;
        reserved[1] = 0xff;
        assert_eq!(read(&reserved), read(good), "receivers ignore the reserved byte");
    }
}
