//! `hopsack run` and `hopsack flanneld`: the daemon in the foreground.

use clap::Args;

use super::error::CliError;
use super::flanneld;
use super::options::ConfigOptions;
use super::output::say;
use super::runtime::runtime;
use crate::config::{Config, Sources};
use crate::node::Node;

/// Options of `hopsack run`.
#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// Remove the overlay device, its routes and the kernel fast path at the end
    ///
    /// Without this option they stay for the next start, which loses no packets by that; `hopsack
    /// clean` removes them.
    #[arg(long)]
    remove_on_exit: bool,
    #[command(flatten)]
    config: ConfigOptions,
}

/// Runs the daemon until a signal stops it. `start_log` starts logging and returns a function that
/// changes the log filter later.
pub(super) fn run<R: Fn(&Config)>(
    args: &RunArgs,
    start_log: impl FnOnce(&Config) -> R,
) -> Result<(), CliError> {
    run_node(&args.config.sources(), args.remove_on_exit, &[], start_log)
}

/// Runs the daemon as flanneld's flags and environment say.
pub(super) fn run_as_flanneld<R: Fn(&Config)>(
    flags: &[String],
    start_log: impl FnOnce(&Config) -> R,
) -> Result<(), CliError> {
    match flanneld::translate(flags)? {
        flanneld::Request::Run(translated) => {
            let sources = Sources { options: translated.options, ..Sources::from_environment() };
            run_node(&sources, false, &translated.notes, start_log)
        }
        flanneld::Request::Help => say(&flanneld::help()),
        flanneld::Request::Version => say(concat!("hopsack ", env!("CARGO_PKG_VERSION"), "\n")),
    }
}

/// Logs `notes` as warnings before the daemon starts.
fn run_node<R: Fn(&Config)>(
    sources: &Sources,
    remove_on_exit: bool,
    notes: &[String],
    start_log: impl FnOnce(&Config) -> R,
) -> Result<(), CliError> {
    let config = sources.load()?;
    let reconfigure = start_log(&config);
    notes.iter().for_each(|note| tracing::warn!("{note}"));
    runtime()?.block_on(async {
        match Node::start(config).await? {
            Some(node) => node.run(sources, reconfigure, remove_on_exit).await,
            None => Ok(()),
        }
    })?;
    Ok(())
}
