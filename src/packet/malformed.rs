//! The one error of parsing.
#![forbid(unsafe_code)]

/// The bytes are not what they should be: one whole IP packet, super packet or bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bytes are not one whole IP packet")]
pub struct Malformed;
