//! A bundle: several small packets in one datagram, to hosts that announce that they take them.
//!
//! Fifteen packets of 92 bytes in one datagram cost the two kernels between hosts what one costs; and bundles of one
//! length leave as one UDP_SEGMENT train, as full-size packets do (DATAPLANE.md §4.5). Whole packets are carried as they
//! are, checksums complete, so that each entry is what would have been a bare datagram, and is judged like one.
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
//! * First nibble 3, second the version. A receiver that does not know the version drops the datagram.
//! * The byte after it is sent as zero and not looked at.
//! * *Total length*: bytes of the datagram, this header and the padding included. It must equal the datagram's.
//! * Then entries without gaps, at least one: two bytes of length, of which the highest bit is zero, and one whole IP packet
//!   of that length.
//! * Where an entry would begin, a length of zero, or fewer than two bytes: the rest is padding, zeros that are not looked
//!   at. All datagrams of a train but the last have one length, so all but the last are padded to it.
//! * A datagram is never longer than a bare packet to the same peer may be.
//!
//! No entry refers to another datagram. A sender keeps the packets of a flow in order across bundles and bare datagrams.
//!
//! *What is not one datagram of this format*: a wrong version or total length, or no entry, makes the datagram one drop.
//! An entry that ends behind the datagram or has its highest bit set ends the bundle: the packets before it are taken, for
//! each was whole and proves nothing by its neighbours, and all from it on is one drop.
//!
//! *No partial checksums.* The highest bit of an entry length is where a flag for them would be. What it
//! would save is to sum few bytes while they are copied (`checksum/copied/64` beside `checksum/memcpy/64` of
//! benches/packet.rs), against which the receiver would verify nothing before it merges, and a packet could not be sent bare
//! where the path takes no bundle: not worth a bit.
//!
//! This module does not decide what is bundled, and does not look into packets.
//!
//! Invariant: `entries(write(packets)) == packets`; an entry never reaches behind its datagram, whatever the bytes are
//! (property tests `bundles_hold_what_was_put_in`, `arbitrary_bundles_stay_inside`).
#![forbid(unsafe_code)]

use super::Malformed;
use super::header::{narrow, put, word};

/// The first nibble of a bundle.
pub const NIBBLE: u8 = 3;
/// First nibble and version.
const FIRST_BYTE: u8 = NIBBLE << 4 | 1;
/// Where the total length stands.
const TOTAL: usize = 2;
/// Bytes before the first entry.
pub const HEADER: usize = 4;
/// Bytes before an entry's packet.
pub const ENTRY: usize = 2;
/// Bytes before the first packet.
pub const FIRST_PACKET: usize = HEADER + ENTRY;
/// The longest packet that an entry can hold.
const MAX_ENTRY: usize = 0x7fff;

/// The longest packet of which three fit in a datagram of `datagram` bytes. Of two, a copy of most of their bytes would
/// save one datagram; and those are long enough to fill a train of their own.
#[must_use]
pub const fn smallness(datagram: usize) -> usize {
    (datagram.saturating_sub(HEADER) / 3).saturating_sub(ENTRY)
}

/// Appends `packet` to the bundle in the first `filled` bytes of `datagram`; zero of them begin one. Returns how many are
/// filled then, `None` if it does not fit. The bundle is complete after each call.
#[must_use]
#[inline]
pub fn append(datagram: &mut [u8], filled: usize, packet: &[u8]) -> Option<usize> {
    let at = filled.max(HEADER);
    let end = at + ENTRY + packet.len();
    if end > datagram.len() || packet.len() > MAX_ENTRY {
        return None;
    }
    put(datagram, at, narrow(packet.len()).to_be_bytes());
    datagram[at + ENTRY..end].copy_from_slice(packet);
    put(datagram, 0, [FIRST_BYTE, 0]);
    put(datagram, TOTAL, narrow(end).to_be_bytes());
    Some(end)
}

/// Fills the rest of `datagram`, behind the bundle in its first `filled` bytes, with padding.
#[inline]
pub fn pad(datagram: &mut [u8], filled: usize) {
    datagram[filled..].fill(0);
    put(datagram, TOTAL, narrow(datagram.len()).to_be_bytes());
}

/// Whether a datagram says that it is a bundle.
#[must_use]
#[inline]
pub fn is_bundle(datagram: &[u8]) -> bool {
    datagram.first().is_some_and(|byte| byte >> 4 == NIBBLE)
}

/// The packets in a bundle. [`Malformed`] if the version is unknown, the length is not the datagram's, or nothing is in it.
#[inline]
pub fn entries(datagram: &[u8]) -> Result<Entries<'_>, Malformed> {
    let (header, rest) = datagram.split_at_checked(HEADER).ok_or(Malformed)?;
    let is_known = header[0] == FIRST_BYTE && usize::from(word(header, TOTAL)) == datagram.len();
    let is_empty = rest.len() < ENTRY || word(rest, 0) == 0;
    if is_known && !is_empty { Ok(Entries { rest }) } else { Err(Malformed) }
}

/// The bytes of each entry, in their order; after [`Malformed`] nothing follows.
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

/// Packets in a datagram, and their bytes: of a bundle those inside, of any other datagram itself.
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
    fn the_bytes_are_those_of_the_specification() {
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
    fn a_packet_fits_or_not_by_its_last_byte() {
        let mut datagram = [0; 12];
        assert_eq!(append(&mut datagram, 0, &[7; 7]), None);
        assert_eq!(append(&mut datagram, 0, &[7; 6]), Some(12));
        assert_eq!(append(&mut datagram, 12, &[]), None);
        // One byte of padding is no length.
        let mut datagram = [0; 13];
        let filled = bundle(&mut datagram, &[&[7; 6]]);
        pad(&mut datagram, filled);
        assert_eq!(read(&datagram), Ok(vec![Ok(&[7u8; 6][..])]));
        let mut long = vec![0; 40_000];
        assert_eq!(append(&mut long, 0, &[7; MAX_ENTRY + 1]), None, "its length has a bit too many");
        assert_eq!(append(&mut long, 0, &[7; MAX_ENTRY]), Some(MAX_ENTRY + FIRST_PACKET));
    }

    #[test]
    fn three_small_ones_fit() {
        for datagram in [576usize, 1280, 1472, 8972] {
            let (mut memory, small) = (vec![0; datagram], smallness(datagram));
            bundle(&mut memory, &[&vec![7; small][..]; 3]);
            let four = append(&mut memory, datagram, &[7]);
            assert_eq!(four, None);
            assert!(HEADER + 3 * (ENTRY + small + 1) > datagram, "one byte more and they would not");
        }
        assert_eq!(smallness(3), 0);
    }

    #[test]
    fn what_lies_is_dropped_from_there_on() {
        let good = b"\x31\0\0\x0b\0\x02ab\0\x01c";
        for (at, value, what) in
            [(0, 0x30, "version"), (3, 0x0c, "longer"), (3, 0x0a, "shorter"), (5, 0, "none")]
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
        assert_eq!(read(&reserved), read(good), "not looked at");
    }
}
