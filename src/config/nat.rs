//! `[nat]`: one key. It accepts its default only, so that no configuration asks for masquerading,
//! which hopsack does not have.
#![forbid(unsafe_code)]

use super::error::ConfigError;
use super::key::{Kind, Preset, keys};
use super::settings::Settings;

keys! {
    "nat";
    MASQUERADE = "masquerade",
        Kind::Bool,
        Preset::Bool(false),
        "Masquerade packets that leave the overlay; this version accepts only false",
        "Let Docker or a CNI plugin masquerade.";
}

/// Refuses what this version cannot do.
pub(super) fn check(settings: &Settings) -> Result<(), ConfigError> {
    if settings.is_set(&MASQUERADE) {
        settings.refuse_with(
            &MASQUERADE,
            "this version does not masquerade: write false, and let Docker or a CNI plugin masquerade",
        )?;
    }
    Ok(())
}
