//! [`ControlInbox`]: control messages from the workers that received them to the task that handles
//! them.
//!
//! It knows no peer. Invariant: it allocates nothing after it was made, and a worker never waits
//! for it: a message that finds no room, or finds the inbox in use, is forgotten, as the network
//! might have forgotten it.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

use crate::packet::control::Control;
use crate::time::Nanos;

/// Messages that may wait: those of a second in which every peer of a large cluster asks.
const MOST: usize = 512;

/// A control message that has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ControlArrival {
    /// Address of the peer that has sent it.
    pub from: IpAddr,
    /// The port that it was sent from.
    pub port: u16,
    /// The message.
    pub message: Control,
    /// When a worker received it.
    pub at: Nanos,
}

/// The messages that wait.
#[derive(Debug)]
pub struct ControlInbox {
    waiting: Mutex<Vec<ControlArrival>>,
    not_empty: Notify,
}

impl Default for ControlInbox {
    fn default() -> Self {
        Self { waiting: Mutex::new(Vec::with_capacity(MOST)), not_empty: Notify::new() }
    }
}

impl ControlInbox {
    /// Adds a message.
    pub(super) fn put(&self, arrival: ControlArrival) {
        let Ok(mut waiting) = self.waiting.try_lock() else { return };
        if waiting.len() < MOST {
            waiting.push(arrival);
            if waiting.len() == 1 {
                self.not_empty.notify_one();
            }
        }
    }

    /// Waits for messages. Cancel safe.
    pub async fn wait(&self) {
        self.not_empty.notified().await;
    }

    /// Moves all messages to `taken`, after what is there.
    pub fn take(&self, taken: &mut Vec<ControlArrival>) {
        taken.append(&mut self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::control::Kind;

    #[test]
    fn full_inbox_takes_no_more() {
        let inbox = ControlInbox::default();
        let message = Control { kind: Kind::Request, is_fast: false, length: 12, nonce: 7 };
        let arrival = ControlArrival { from: [192, 0, 2, 1].into(), port: 8285, message, at: Nanos(1) };
        (0..MOST + 9).for_each(|_| inbox.put(arrival));
        let mut taken = Vec::new();
        inbox.take(&mut taken);
        assert_eq!(taken.len(), MOST);
        inbox.take(&mut taken);
        assert_eq!(taken.len(), MOST);
    }
}
