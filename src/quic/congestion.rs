//! Congestion control for a tunnel: the packets inside have their own.
//!
//! What a connection carries is IP, and IP's transports find their rate by losses, marks and delays of the whole path. A second
//! controller around them sees the same losses, and both slow down for each; its queue hides from the inner one what the
//! path says. RFC 8085 §3.1.11 asks tunnels for no control of their own where what they carry has one. So [`Open`] lets pass what
//! comes, up to [`WINDOW`] bytes that nobody has acknowledged.
//!
//! What has no congestion control inside is a flood with or without encryption, as on the plain data path. But it is a
//! circuit breaker (RFC 8084): while all that was sent for three probe timeouts is lost (persistent congestion, RFC 9002 §7.6),
//! only [`LEAST`] bytes are on their way at a time, and what is acknowledged opens it again.
//!
//! It decides nothing about which packet is lost: queues in front of it are short, and drop the oldest.
#![forbid(unsafe_code)]

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory};

/// Bytes on their way, at most: what 10 Gbit/s and 50 ms hold. It bounds what a connection remembers of packets.
const WINDOW: u64 = 64 << 20;
/// Of a connection through which nothing comes: what RFC 9002 §7.2 lets one begin with.
const LEAST: u64 = 10 * 1200;

/// The window of one connection.
#[derive(Debug, Clone)]
pub(super) struct Open {
    window: u64,
}

/// Makes them.
#[derive(Debug)]
pub(super) struct OpenConfig;

impl ControllerFactory for OpenConfig {
    fn build(self: Arc<Self>, _now: Instant, _mtu: u16) -> Box<dyn Controller> {
        Box::new(Open { window: WINDOW })
    }
}

impl Controller for Open {
    fn on_end_acks(&mut self, _now: Instant, _in_flight: u64, _app_limited: bool, _largest: Option<u64>) {
        self.window = (self.window + LEAST).min(WINDOW);
    }

    fn on_congestion_event(&mut self, _now: Instant, _sent: Instant, is_persistent: bool, _lost: u64) {
        if is_persistent {
            self.window = LEAST;
        }
    }

    fn on_mtu_update(&mut self, _mtu: u16) {}

    fn window(&self) -> u64 {
        self.window
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        WINDOW
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
