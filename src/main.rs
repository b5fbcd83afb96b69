//! The program `hopsack`: parses the arguments, runs the command, and turns its result into an exit
//! code: 0 for success, 1 for a failure, 2 for a wrong argument or configuration.

use std::process::ExitCode;

use clap::Parser;
use hopsack::api::shown;
use hopsack::cli::{Cli, LogLines};
use hopsack::config::Config;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt, reload};

fn main() -> ExitCode {
    match Cli::parse().run(start_log) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("hopsack: {} [{}]", shown(&error.to_string()), error.code());
            ExitCode::from(error.exit_code())
        }
    }
}

/// Starts logging to standard error. Returns a function that changes the log filter later.
fn start_log(config: &Config) -> impl Fn(&Config) + use<> {
    let (filter, handle) = reload::Layer::new(targets(config));
    let colour = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let json = config.log.json;
    let lines = fmt::layer().with_writer(move || LogLines { json, colour }).with_target(false);
    let lines = if config.log.json { lines.json().boxed() } else { lines.with_ansi(colour).boxed() };
    tracing_subscriber::registry().with(lines.with_filter(filter)).init();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), pid = std::process::id(), "hopsack");
    move |config| {
        if let Err(error) = handle.reload(targets(config)) {
            tracing::warn!(%error, "log filter not changed");
        }
    }
}

fn targets(config: &Config) -> Targets {
    // The configuration has checked the filter already.
    config.log.filter.parse().unwrap_or_default()
}
