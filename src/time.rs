//! Monotonic time as plain numbers, for code that must not read a clock.
//!
//! The caller reads the clock (`sys::now`) and passes [`Nanos`] in, so that pure modules and tests decide what time it is.
//!
//! Invariant: arithmetic saturates; no operation panics or wraps.
#![forbid(unsafe_code)]

/// A point in monotonic time, in nanoseconds since an arbitrary fixed start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nanos(pub u64);
