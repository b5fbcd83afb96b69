//! `hopsack completions SHELL`: a script that lets a shell complete hopsack's command line.

use clap_complete::Shell;

use super::error::CliError;
use super::output::say;

/// Prints the script for `command`, which is all of hopsack.
pub(super) fn completions(command: clap::Command, shell: Shell) -> Result<(), CliError> {
    say(&script(command, shell))
}

fn script(mut command: clap::Command, shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "hopsack", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn every_shell_gets_a_script_with_every_option() {
        for shell in [Shell::Bash, Shell::Elvish, Shell::Fish, Shell::PowerShell, Shell::Zsh] {
            let script = script(Cli::command(), shell);
            assert!(script.contains("overlay-port"), "{shell}");
            assert!(script.contains("sealed"), "{shell} knows the words of security.mode");
        }
    }
}
