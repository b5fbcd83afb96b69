//! The reconciler: keeps the kernel and our files as the parts of the program want them.
//!
//! One turn reads what is there, compares it with what is desired ([`crate::desired::diff`]), and
//! takes the steps that lead there. The node starts a turn when it starts itself (so a device that
//! an earlier daemon left is brought in order), when its address or MTU changes, when the kernel
//! tells of a change, and every [`PERIOD`]. A step in a turn that the node did not start is a
//! repair: it is logged and counted.
//!
//! It does not decide what is desired, and it does not make TUN devices.
//!
//! Invariant: what is right already is not written.

mod error;
mod kernel;
mod linux;
mod obstacles;
mod reader;
#[cfg(test)]
mod recording;
mod repairs;
mod repetition;
#[cfg(test)]
mod tests;
mod turn;

pub use error::ReconcileError;
pub use kernel::Kernel;
pub use linux::Linux;
pub use obstacles::obstacles;
pub use reader::Reader;
#[cfg(test)]
pub(crate) use recording::Recording;
pub use repairs::Repairs;
pub use turn::{PERIOD, Reconciler};
