//! Bytes that QUIC adds to an inner packet.
#![forbid(unsafe_code)]

/// Length of the connection ids that the endpoint gives out.
pub(super) const CONNECTION_ID_BYTES: u16 = 8;
/// First byte of a packet with a short header (RFC 9000 section 17.3.1).
const HEADER_BYTES: u16 = 1;
/// The longest packet number.
const PACKET_NUMBER_BYTES: u16 = 4;
/// The tag of either AEAD that TLS 1.3 negotiates here.
const TAG_BYTES: u16 = 16;
/// Type and length of a DATAGRAM frame, as quinn bounds them.
const FRAME_BYTES: u16 = 9;

/// Bytes of a QUIC packet's UDP payload that an inner packet cannot use.
pub const OVERHEAD_BYTES: u16 =
    HEADER_BYTES + CONNECTION_ID_BYTES + PACKET_NUMBER_BYTES + TAG_BYTES + FRAME_BYTES;
