//! `hopsack man [COMMAND]`: a manual page, made from the same text as `--help`.

use super::error::CliError;
use super::output::say;

/// Prints the page of a subcommand of `hopsack`, given as its words (`["leases", "list"]`). Without
/// words, it prints the page of `hopsack` itself.
pub(super) fn man(hopsack: clap::Command, words: &[String]) -> Result<(), CliError> {
    say(&String::from_utf8_lossy(&page(hopsack, words)?))
}

fn page(hopsack: clap::Command, words: &[String]) -> Result<Vec<u8>, CliError> {
    let mut command = hopsack;
    command.build();
    for word in words {
        let Some(found) = command.find_subcommand(word) else {
            let known: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
            return Err(CliError::NoCommand { word: word.clone(), known: known.join(", ") });
        };
        command = found.clone();
    }
    // `build` has given each subcommand the name of its page, such as `hopsack-leases-list`.
    let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
    let mut page = Vec::new();
    clap_mangen::Man::new(command.name(name)).render(&mut page)?;
    Ok(page)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    fn text(words: &[&str]) -> String {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        String::from_utf8(page(Cli::command(), &words).expect("a page")).expect("UTF-8")
    }

    #[test]
    fn each_command_has_a_page() {
        let mut command = Cli::command();
        command.build();
        assert!(text(&[]).contains(".TH hopsack 1"));
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            let name = sub.get_name();
            assert!(text(&[name]).contains(&format!(".TH hopsack-{name} 1")), "{name}");
        }
        assert!(text(&["run"]).contains("HOPSACK_OVERLAY_PORT"));
    }

    #[test]
    fn unknown_command_has_no_page() {
        assert!(matches!(page(Cli::command(), &["fly".to_owned()]), Err(CliError::NoCommand { .. })));
    }
}
