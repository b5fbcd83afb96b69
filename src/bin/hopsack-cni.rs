//! hopsack-cni: the CNI plugin. [`hopsack::cni`] makes its answers; this file prints them.

use std::process::ExitCode;

fn main() -> ExitCode {
    let command = std::env::var("CNI_COMMAND").ok();
    match hopsack::cni::answer(command.as_deref()) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(text) => {
            println!("{text}");
            ExitCode::FAILURE
        }
    }
}
