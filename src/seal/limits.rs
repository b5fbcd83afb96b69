//! For how many packets and for how long a key is used.
//!
//! Nothing here enforces a limit: the session and its keys do.
//!
//! Invariant: the hard limit on packets is twice the number after which a rekey is due.
#![forbid(unsafe_code)]

use core::time::Duration;

/// The most packets that one key seals, even if no handshake succeeds; twice [`REKEY_PACKETS`].
///
/// 2^33 packets of 92 blocks are 2^39.5 blocks. An attacker that sees all of them can tell
/// AES-256-GCM from a random permutation with an advantage of 2^-50. (SP 800-38D limits the number
/// of deterministic nonces only by the length of the counter.)
pub const MOST_PACKETS: u64 = 1 << 33;
/// The number of packets under one key after which a rekey is due.
pub const REKEY_PACKETS: u64 = 1 << 32;

/// How long keys are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// Age of a key at which a rekey is due.
    pub rekey_after: Duration,
    /// Age at which a key stops sealing, even if no handshake succeeds. The session removes the key
    /// after seven eighths of this time, so that packets take another way before the key would
    /// refuse them.
    pub seal_for: Duration,
    /// Time for which an older epoch still opens datagrams after a newer one is in use, so that
    /// datagrams on their way arrive.
    pub open_for: Duration,
}

impl Default for Lifetime {
    fn default() -> Self {
        let hour = Duration::from_secs(3600);
        Self { rekey_after: hour, seal_for: 2 * hour, open_for: Duration::from_secs(30) }
    }
}
