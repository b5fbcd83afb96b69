//! hopsack: the lab's commands.

use std::env;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use hopsack::lab::cli::{self, LabArgs};

#[derive(Parser)]
#[command(name = "hopsack", version, about)]
struct Hopsack {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Lab(LabArgs),
}

fn main() -> ExitCode {
    let Command::Lab(args) = Hopsack::parse().command;
    let binary = match env::current_exe() {
        Ok(binary) => binary,
        Err(error) => {
            eprintln!("hopsack: {error}");
            return ExitCode::FAILURE;
        }
    };
    match cli::run(args, &binary) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hopsack: {error}");
            ExitCode::from(if error.is_usage() { 2 } else { 1 })
        }
    }
}
