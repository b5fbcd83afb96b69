//! What a backend takes of each underlay packet.

/// What a backend takes of each underlay packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overhead {
    /// Bytes of headers and encryption around the inner packet.
    pub total: u16,
    /// Longest inner packet in bytes, however large the underlay's MTU is.
    pub longest: u16,
}
