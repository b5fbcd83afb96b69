//! The program's object, and how it is loaded.
//!
//! It attaches nothing.
//!
//! Invariant: the object is the committed one, which `scripts/fastpath-program` makes from
//! `program.c`.

use aya::programs::SchedClassifier;
use aya::{Ebpf, EbpfLoader};

use super::error::FastPathError;
use super::pins::{MAPS, Pins};

/// The compiled program.
static OBJECT: &[u8] = aya::include_bytes_aligned!("program.o");

/// Names of the programs.
pub(super) const EGRESS: &str = "egress";
pub(super) const INGRESS: &str = "ingress";
pub(super) const MERGED: &str = "merged";

/// Loads all programs. Maps that are pinned are used as they are, and other maps are made and
/// pinned; without `pins` all maps are new and vanish with the process. `overlay_header` is the
/// number of bytes before the IP header on the overlay device.
pub(super) fn load(pins: Option<&Pins>, overlay_header: u32) -> Result<Ebpf, FastPathError> {
    let mut loader = EbpfLoader::new();
    loader.override_global("overlay_header", &overlay_header, true);
    for map in pins.iter().flat_map(|pins| MAPS.iter().map(|map| (pins.map(map.name), map.name))) {
        let (path, name) = map;
        loader.map_pin_path(name, path);
    }
    let mut ebpf = loader.load(OBJECT).map_err(|error| FastPathError::Load(Box::new(error)))?;
    for name in [EGRESS, INGRESS, MERGED] {
        program(&mut ebpf, name)?.load().map_err(FastPathError::program(name))?;
    }
    Ok(ebpf)
}

/// A program of a loaded object.
pub(super) fn program<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut SchedClassifier, FastPathError> {
    let program = ebpf.program_mut(name).ok_or(FastPathError::Missing(name))?;
    program.try_into().map_err(FastPathError::program(name))
}
