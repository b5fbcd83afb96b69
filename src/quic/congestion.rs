//! Congestion control of a tunnel: the transports inside it have their own.
//!
//! A connection carries IP packets. Their transports adapt their rate to the losses, marks and
//! delays of the whole path. A second controller around them would see the same losses, so both
//! would slow down for each loss, and its queue would hide the path's signals from the inner
//! controller. RFC 8085 section 3.1.11 therefore asks a tunnel for no control of its own if the
//! traffic inside has one. So [`TunnelWindow`] limits only the bytes in flight, to
//! [`WINDOW_BYTES`].
//!
//! Traffic without congestion control can flood the path, with or without encryption, as it can on
//! the plain data path. The window is a circuit breaker (RFC 8084): if everything sent during three
//! probe timeouts is lost (persistent congestion, RFC 9002 section 7.6), the window shrinks to
//! [`MIN_WINDOW_BYTES`]. Acknowledgements open it again.
//!
//! It does not decide which packet is lost: the queues in front of it are short and drop the
//! oldest.
#![forbid(unsafe_code)]

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use quinn::congestion::{Controller, ControllerFactory};

/// Most bytes in flight: 10 Gbit/s for 50 ms. It bounds the memory for packets in flight.
const WINDOW_BYTES: u64 = 64 << 20;
/// Bytes in flight after persistent congestion: the initial window of RFC 9002 section 7.2.
const MIN_WINDOW_BYTES: u64 = 10 * 1200;

/// The window of one connection.
#[derive(Debug, Clone)]
pub(super) struct TunnelWindow {
    window_bytes: u64,
}

/// Makes a [`TunnelWindow`] for each connection.
#[derive(Debug)]
pub(super) struct TunnelWindowFactory;

impl ControllerFactory for TunnelWindowFactory {
    fn build(self: Arc<Self>, _now: Instant, _mtu: u16) -> Box<dyn Controller> {
        Box::new(TunnelWindow { window_bytes: WINDOW_BYTES })
    }
}

impl Controller for TunnelWindow {
    fn on_end_acks(&mut self, _now: Instant, _in_flight: u64, _app_limited: bool, _largest: Option<u64>) {
        self.window_bytes = (self.window_bytes + MIN_WINDOW_BYTES).min(WINDOW_BYTES);
    }

    fn on_congestion_event(&mut self, _now: Instant, _sent: Instant, is_persistent: bool, _lost: u64) {
        if is_persistent {
            self.window_bytes = MIN_WINDOW_BYTES;
        }
    }

    fn on_mtu_update(&mut self, _mtu: u16) {}

    fn window(&self) -> u64 {
        self.window_bytes
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        WINDOW_BYTES
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}
