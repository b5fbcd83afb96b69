//! Where the fields of TCP and UDP headers stand, and how 16-bit fields are read and written.
//!
//! Offsets count from the start of the transport header. Nothing here checks a length: slices that are too
//! short panic, so callers look first.
//! Sources: RFC 9293 §3.1 (TCP), RFC 768 (UDP).
#![forbid(unsafe_code)]

/// TCP.
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

    /// Bytes of the header with its options, if all of it is in `segment`.
    pub(in crate::packet) fn header_len(segment: &[u8]) -> Option<usize> {
        let length = usize::from(segment.get(DATA_OFFSET)? >> 4) * 4;
        (HEADER..=segment.len()).contains(&length).then_some(length)
    }

    pub(in crate::packet) fn sequence(header: &[u8]) -> u32 {
        let b = &header[SEQUENCE..SEQUENCE + 4];
        u32::from_be_bytes([b[0], b[1], b[2], b[3]])
    }
}

/// UDP.
pub(super) mod udp {
    pub(in crate::packet) const DST_PORT: usize = 2;
    pub(in crate::packet) const LENGTH: usize = 4;
    pub(in crate::packet) const CHECKSUM: usize = 6;
    /// Bytes of the header.
    pub(in crate::packet) const HEADER: usize = 8;
}

/// The big-endian word at `at`.
pub(super) fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Writes the bytes of a field.
pub(super) fn put<const N: usize>(bytes: &mut [u8], at: usize, value: [u8; N]) {
    bytes[at..at + N].copy_from_slice(&value);
}

/// A length, or a count of parts, as a header has it.
pub(super) fn narrow(n: usize) -> u16 {
    u16::try_from(n).expect("no part of a packet is longer than its own 16-bit length field says")
}
