//! Control messages between hopsack hosts: keep-alives, and probes of a path's MTU.
//!
//! It sends nothing and knows no peer.
//!
//! Invariant: what [`Control::to_bytes`] writes, [`Control::parse`] reads as the same (fuzz target
//! `message`).
//!
#![doc = include_str!("control/README.md")]
#![forbid(unsafe_code)]

use super::Malformed;

/// The first nibble of a control message.
pub const NIBBLE: u8 = 2;
/// Bytes of a message without padding.
pub const LEN: usize = 12;
/// The first byte: nibble and version.
const FIRST: u8 = NIBBLE << 4 | 1;

/// What a message asks or answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The receiver answers, if it knows the sender.
    Request,
    /// The answer to a request.
    Reply,
}

/// A control message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Control {
    /// Whether it is a request or a reply.
    pub kind: Kind,
    /// Length in bytes of the request, padding included.
    pub length: u16,
    /// The number that the sender of the request has chosen.
    pub nonce: u64,
}

impl Control {
    /// Reads a message. `None`: it is of another version or kind, and is ignored.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, Malformed> {
        if bytes.first() != Some(&FIRST) {
            return Ok(None);
        }
        let Some((header, _)) = bytes.split_first_chunk::<LEN>() else { return Err(Malformed) };
        let [_, kind, high, low, nonce @ ..] = header;
        let kind = match kind {
            1 => Kind::Request,
            2 => Kind::Reply,
            _ => return Ok(None),
        };
        let (length, nonce) = (u16::from_be_bytes([*high, *low]), u64::from_be_bytes(*nonce));
        if kind == Kind::Request && usize::from(length) != bytes.len() {
            return Err(Malformed);
        }
        Ok(Some(Self { kind, length, nonce }))
    }

    /// The message without its padding.
    #[must_use]
    pub fn to_bytes(self) -> [u8; LEN] {
        let kind = match self.kind {
            Kind::Request => 1,
            Kind::Reply => 2,
        };
        let mut bytes = [0; LEN];
        (bytes[0], bytes[1]) = (FIRST, kind);
        bytes[2..4].copy_from_slice(&self.length.to_be_bytes());
        bytes[4..].copy_from_slice(&self.nonce.to_be_bytes());
        bytes
    }

    /// The answer to a request.
    #[must_use]
    pub fn reply(self) -> Self {
        Self { kind: Kind::Reply, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_is_read_as_it_was_written() {
        let request = Control { kind: Kind::Request, length: 20, nonce: 0x0102_0304_0506_0708 };
        let mut bytes = request.to_bytes().to_vec();
        assert_eq!(bytes, [0x21, 1, 0, 20, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(Control::parse(&bytes), Err(Malformed), "the padding is missing");
        bytes.resize(20, 0);
        assert_eq!(Control::parse(&bytes), Ok(Some(request)));
        assert_eq!(Control::parse(&request.reply().to_bytes()), Ok(Some(request.reply())));
    }

    #[test]
    fn unknown_kinds_and_versions_are_ignored() {
        let message = Control { kind: Kind::Reply, length: 12, nonce: 1 }.to_bytes();
        for (at, value) in [(0, 0x22), (0, 0x20), (1, 0), (1, 3)] {
            let mut other = message;
            other[at] = value;
            assert_eq!(Control::parse(&other), Ok(None));
        }
        assert_eq!(Control::parse(&message[..11]), Err(Malformed));
    }
}
