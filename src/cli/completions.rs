//! `hopsack completions SHELL`: a script that lets a shell complete hopsack's command line.

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, CliError, say};

/// Prints the script.
pub(super) fn completions(shell: Shell) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "hopsack", &mut script);
    say(&String::from_utf8_lossy(&script))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_gets_a_script_with_every_option() {
        for shell in [Shell::Bash, Shell::Elvish, Shell::Fish, Shell::PowerShell, Shell::Zsh] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "hopsack", &mut script);
            let script = String::from_utf8(script).expect("UTF-8");
            assert!(script.contains("overlay-port"), "{shell}");
            assert!(script.contains("sealed"), "{shell} knows the words of security.mode");
        }
    }
}
