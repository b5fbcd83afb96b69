//! `hopsack lab`: executes the program `hopsack-lab` with the same arguments.
//!
//! The daemon's program contains no lab: traffic generators and test tunnels are in `hopsack-lab`
//! only.

use std::convert::Infallible;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use super::error::CliError;

const PROGRAM: &str = "hopsack-lab";

/// Becomes the `hopsack-lab` in the directory of this program, or else the first one on the PATH.
/// Returns only if neither can be executed.
pub(super) fn exec(args: &[OsString]) -> Result<Infallible, CliError> {
    let beside = std::env::current_exe()?.with_file_name(PROGRAM);
    let mut command = if beside.is_file() { Command::new(&beside) } else { Command::new(PROGRAM) };
    let error = command.args(args).exec();
    if error.kind() == ErrorKind::NotFound { Err(CliError::NoLab { beside }) } else { Err(error.into()) }
}
