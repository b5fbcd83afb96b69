//! Sealed packets: the AEAD envelope in which two authenticated hosts carry inner packets.
//!
//! A TLS 1.3 handshake over QUIC, which is made elsewhere, yields a [`Secret`] for each peer and
//! epoch. A [`Session`] derives keys from it, seals the packets that workers send and opens the
//! datagrams that they receive. The sealed mode is a protocol of our own (its specification follows
//! below); `quic` is the conservative choice.
//!
//! This module makes no handshake, knows no descriptor, thread or log, and reads no clock: the
//! caller passes the time. Sealing and opening allocate nothing and take no lock.
//!
//! Invariants:
//! * No key is used with the same nonce twice. Each worker has a key of its own and a counter that
//!   only grows, and a newly published forwarding table cannot set a counter back.
//! * A datagram that was opened once is never opened again (property tests in `window`).
//! * Every byte of a datagram is authenticated.
//!
//! Sources: RFC 5116 (AEAD), RFC 5869 (HKDF), RFC 8446 §7.5 (exporters), NIST SP 800-38D (GCM), RFC
//! 8439 (ChaCha20-Poly1305), RFC 4303 §3.4.3 (replay windows).
//!
#![doc = include_str!("seal/README.md")]
#![forbid(unsafe_code)]

mod envelope;
mod error;
mod header;
mod hello;
mod keys;
mod limits;
mod role;
mod schedule;
mod session;
mod suite;
mod window;

pub use envelope::{OpeningKeys, SealingKeys};
pub use error::{InstallError, OpenError, SealError};
pub use header::{HEADER, Header, NIBBLE, OVERHEAD, TAG};
pub use hello::{Agreement, Hello, HelloError};
pub use keys::Keys;
pub use limits::{Lifetime, MOST_PACKETS, REKEY_PACKETS};
pub use role::Role;
pub use schedule::{CertificateHash, EXPORTER_LABEL, Secret};
pub use session::{Session, SessionStatus};
pub use suite::Suite;
pub use window::{WINDOW, Window};
