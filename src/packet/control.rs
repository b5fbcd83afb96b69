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
/// Bits of the second byte that say the kind. The others are flags.
const KIND: u8 = 0x0f;
/// Flag: the sender receives by the kernel fast path.
const FAST: u8 = 0x80;

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
    /// Whether the sender receives by the kernel fast path at this moment.
    pub is_fast: bool,
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
        let [_, second, high, low, nonce @ ..] = header;
        let is_fast = second & FAST != 0;
        let kind = match second & KIND {
            1 => Kind::Request,
            2 => Kind::Reply,
            _ => return Ok(None),
        };
        let (length, nonce) = (u16::from_be_bytes([*high, *low]), u64::from_be_bytes(*nonce));
        if kind == Kind::Request && usize::from(length) != bytes.len() {
            return Err(Malformed);
        }
        Ok(Some(Self { kind, is_fast, length, nonce }))
    }

    /// The message without its padding.
    #[must_use]
    pub fn to_bytes(self) -> [u8; LEN] {
        let kind = match self.kind {
            Kind::Request => 1,
            Kind::Reply => 2,
        };
        let mut bytes = [0; LEN];
        (bytes[0], bytes[1]) = (FIRST, if self.is_fast { kind | FAST } else { kind });
        bytes[2..4].copy_from_slice(&self.length.to_be_bytes());
        bytes[4..].copy_from_slice(&self.nonce.to_be_bytes());
        bytes
    }

    /// The answer to a request. `is_fast`: whether this host receives by the kernel fast path.
    #[must_use]
    pub fn reply(self, is_fast: bool) -> Self {
        Self { kind: Kind::Reply, is_fast, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_is_read_as_it_was_written() {
        let nonce = 0x0102_0304_0506_0708;
        let request = Control { kind: Kind::Request, is_fast: false, length: 20, nonce };
        let mut bytes = request.to_bytes().to_vec();
        assert_eq!(bytes, [0x21, 1, 0, 20, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(Control::parse(&bytes), Err(Malformed), "the padding is missing");
        bytes.resize(20, 0);
        assert_eq!(Control::parse(&bytes), Ok(Some(request)));
        let reply = request.reply(true);
        assert_eq!(reply.to_bytes()[1], 0x82);
        assert_eq!(Control::parse(&reply.to_bytes()), Ok(Some(reply)));
    }

    #[test]
    fn unknown_kinds_and_versions_are_ignored() {
        let reply = Control { kind: Kind::Reply, is_fast: false, length: 12, nonce: 1 };
        let message = reply.to_bytes();
        for (at, value) in [(0, 0x22), (0, 0x20), (1, 0), (1, 3)] {
            let mut other = message;
            other[at] = value;
            assert_eq!(Control::parse(&other), Ok(None));
        }
        assert_eq!(Control::parse(&message[..11]), Err(Malformed));
        let mut later = message;
        later[1] |= 0x70;
        assert_eq!(Control::parse(&later), Ok(Some(reply)), "flags of later versions are ignored");
    }
}
