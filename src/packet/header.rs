//! Positions of header fields in IP, TCP and UDP headers, and helpers that read and write 16-bit
//! fields.
//!
//! Offsets of TCP and UDP fields count from the start of the transport header. Nothing here checks
//! a length: a slice that is too short panics, so callers check first.
//! Sources: RFC 791 (IPv4), RFC 8200 (IPv6), RFC 9293 §3.1 (TCP), RFC 768 (UDP).
#![forbid(unsafe_code)]

/// Bytes of an IPv4 header without options.
pub const IPV4_HEADER: usize = 20;
/// Bytes of an IPv6 header without extension headers.
pub const IPV6_HEADER: usize = 40;

/// Byte offsets of header fields, from the start of the IP header.
pub(super) mod field {
    pub(in crate::packet) const V4_LENGTH: usize = 2;
    pub(in crate::packet) const V4_ID: usize = 4;
    pub(in crate::packet) const V4_FRAGMENT: usize = 6;
    pub(in crate::packet) const V4_CHECKSUM: usize = 10;
    pub(in crate::packet) const V4_PROTOCOL: usize = 9;
    pub(in crate::packet) const V4_SRC: usize = 12;
    pub(in crate::packet) const V4_DST: usize = 16;
    pub(in crate::packet) const V6_LENGTH: usize = 4;
    pub(in crate::packet) const V6_NEXT_HEADER: usize = 6;
    pub(in crate::packet) const V6_SRC: usize = 8;
    pub(in crate::packet) const V6_DST: usize = 24;
}

/// Fields and flags of a TCP header.
pub(super) mod tcp {
    pub(in crate::packet) const SEQUENCE: usize = 4;
    pub(in crate::packet) const ACK_NUMBER: usize = 8;
    pub(in crate::packet) const DATA_OFFSET: usize = 12;
    pub(in crate::packet) const FLAGS: usize = 13;
    pub(in crate::packet) const WINDOW: usize = 14;
    pub(in crate::packet) const CHECKSUM: usize = 16;
    pub(in crate::packet) const URGENT: usize = 18;
    /// Bytes of a header without options.
    const HEADER: usize = 20;

    pub(in crate::packet) const FIN: u8 = 0x01;
    pub(in crate::packet) const SYN: u8 = 0x02;
    pub(in crate::packet) const RST: u8 = 0x04;
    pub(in crate::packet) const PSH: u8 = 0x08;
    pub(in crate::packet) const ACK: u8 = 0x10;
    pub(in crate::packet) const URG: u8 = 0x20;
    pub(in crate::packet) const CWR: u8 = 0x80;

    /// Bytes of the header with its options; `None` if `segment` does not hold the whole header.
    pub(in crate::packet) fn header_len(segment: &[u8]) -> Option<usize> {
        let length = usize::from(segment.get(DATA_OFFSET)? >> 4) * 4;
        (HEADER..=segment.len()).contains(&length).then_some(length)
    }

    pub(in crate::packet) fn sequence(header: &[u8]) -> u32 {
        let b = &header[SEQUENCE..SEQUENCE + 4];
        u32::from_be_bytes([b[0], b[1], b[2], b[3]])
    }
}

/// Fields of a UDP header.
pub(super) mod udp {
    pub(in crate::packet) const DST_PORT: usize = 2;
    pub(in crate::packet) const LENGTH: usize = 4;
    pub(in crate::packet) const CHECKSUM: usize = 6;
    /// Bytes of the header.
    pub(in crate::packet) const HEADER: usize = 8;
}

/// Reads the big-endian 16-bit word at `at`.
#[inline]
pub(super) fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Writes the bytes of a field at `at`.
#[inline]
pub(super) fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&value);
}

/// Converts a length or a count to the 16 bits of a header field.
#[inline]
pub(super) fn to_u16(n: usize) -> u16 {
    u16::try_from(n).expect("no part of a packet is longer than its own 16-bit length field says")
}
