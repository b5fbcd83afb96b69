//! flanneld's command line and `FLANNELD_*` variables, read as hopsack's configuration: `hopsack
//! flanneld` is a drop-in.
//!
//! It asks a [`Host`] two questions and is pure otherwise. It does not check values that the
//! configuration checks too, and it refuses what hopsack cannot do. configs/README.md has the
//! table for people.
//!
//! Invariant: every flag of flanneld is in the table, and a flag that is not there is an error, as
//! it is in flanneld. Sources: flannel-io/flannel `main.go`; package `flag` of Go.
#![forbid(unsafe_code)]

mod error;
mod flags;
mod parse;
#[cfg(test)]
mod tests;
mod translate;

pub use error::FlagError;
pub use flags::help;
pub use translate::{Host, Request, Translated, translate};
