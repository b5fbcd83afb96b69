//! `hopsack man [COMMAND]`: a manual page, made from the same text as `--help`.

use clap::CommandFactory;

use super::{Cli, CliError, say};

/// Prints the page of a command, given as its words (`["leases", "list"]`); without words, that of
/// hopsack.
pub(super) fn man(words: &[String]) -> Result<(), CliError> {
    say(&String::from_utf8_lossy(&page(words)?))
}

fn page(words: &[String]) -> Result<Vec<u8>, CliError> {
    let mut command = Cli::command();
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
    use super::*;

    fn text(words: &[&str]) -> String {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        String::from_utf8(page(&words).expect("a page")).expect("UTF-8")
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
        assert!(matches!(page(&["fly".to_owned()]), Err(CliError::NoCommand { .. })));
    }
}
