//! Programs: finds the `hopsack` that the lab starts as daemon.

use std::path::PathBuf;

use super::super::error::LabError;
use super::super::programs::on_path;

/// Programs of this package.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Programs {
    /// Path of `hopsack`.
    pub(super) daemon: PathBuf,
    /// Where `hopsack` was found, in words.
    pub(super) place: &'static str,
    /// Path of this program, `hopsack-lab`.
    pub(super) lab: PathBuf,
}

/// Finds the `hopsack` in the directory of this program, or else the first one on the PATH.
pub(super) fn find() -> Result<Programs, LabError> {
    let lab = std::env::current_exe().map_err(LabError::io("find the path of hopsack-lab"))?;
    let beside = lab.with_file_name("hopsack");
    if beside.is_file() {
        return Ok(Programs { daemon: beside, place: "beside hopsack-lab", lab });
    }
    match on_path("hopsack") {
        Some(daemon) => Ok(Programs { daemon, place: "on the PATH", lab }),
        None => Err(LabError::NoDaemon { beside }),
    }
}
