//! The configuration keys as command-line options: `--config FILE`, and `--section-key VALUE` for
//! each key.
//!
//! The options are made from the rows of the keys, so that no key can be forgotten; clap's derive
//! cannot do that.

use std::path::PathBuf;

use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use clap::{Arg, ArgMatches, Args, Command, Error, FromArgMatches, ValueHint};

use crate::config::{DEFAULT_PATH, Key, Kind, Sources, all_keys};

/// `--config`, and one option for each key.
#[derive(Debug, Clone, Default)]
pub(super) struct ConfigOptions {
    file: Option<PathBuf>,
    values: Vec<(&'static str, &'static str, String)>,
}

impl ConfigOptions {
    /// These options, together with this process's environment.
    pub(super) fn sources(&self) -> Sources {
        Sources { file: self.file.clone(), options: self.values.clone(), ..Sources::from_environment() }
    }
}

impl FromArgMatches for ConfigOptions {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut options = Self::default();
        options.update_from_arg_matches(matches)?;
        Ok(options)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        self.file = matches.get_one::<PathBuf>("config").cloned();
        let given = |key: &Key| matches.get_one::<String>(&key.option()).cloned();
        self.values = all_keys().filter_map(|key| Some((key.section, key.name, given(key)?))).collect();
        Ok(())
    }
}

impl Args for ConfigOptions {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .value_hint(ValueHint::FilePath)
            .help(format!("Configuration file [default: {DEFAULT_PATH}, if it exists]"));
        all_keys().fold(command.arg(file), |command, key| command.arg(option(key)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

fn option(key: &'static Key) -> Arg {
    let words: &[&str] = match key.kind {
        Kind::Choice(words) => words,
        Kind::Bool => &["true", "false"],
        Kind::BoolOrAuto => &["true", "false", "auto"],
        Kind::Number { .. } | Kind::NumberOrAuto { .. } | Kind::Text(_) | Kind::List(_) => &[],
    };
    let sources = format!("[env: {}] [default: {}]", key.variable(), key.default_value());
    let details = [&format!("{}.", key.help), key.details, &format!("Write {}.", key.accepts()), &sources];
    let details: Vec<&str> = details.into_iter().filter(|text| !text.is_empty()).collect();
    let option = Arg::new(key.option())
        .long(key.option())
        .value_name("VALUE")
        .value_parser(Suggestions { words })
        .hide_possible_values(true)
        .help(format!("{} [env: {}]", key.help, key.variable()))
        .long_help(details.join("\n"))
        .help_heading("Configuration keys, section by section");
    // A host that leaves the cluster for good is started with this flag by hand.
    if key.path == "store.revoke_on_exit" {
        return option.visible_alias("revoke-on-exit").num_args(0..=1).default_missing_value("true");
    }
    option
}

/// Accepts every text, and suggests words to a shell that completes. The configuration checks the
/// value: it knows the whole of it, and its message names the key.
#[derive(Debug, Clone)]
struct Suggestions {
    words: &'static [&'static str],
}

impl TypedValueParser for Suggestions {
    type Value = String;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<String, Error> {
        StringValueParser::new().parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let words = self.words.iter().map(PossibleValue::new);
        if self.words.is_empty() { None } else { Some(Box::new(words)) }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        options: ConfigOptions,
    }

    fn parse(args: &[&str]) -> Vec<String> {
        let line = Line::try_parse_from([&["run"], args].concat()).expect("a valid command line");
        line.options.values.into_iter().map(|(_, name, value)| format!("{name}={value}")).collect()
    }

    #[test]
    fn revoke_on_exit_is_also_a_flag() {
        assert_eq!(parse(&["--revoke-on-exit"]), ["revoke_on_exit=true"]);
        assert_eq!(parse(&["--store-revoke-on-exit", "false"]), ["revoke_on_exit=false"]);
        assert_eq!(parse(&["--revoke-on-exit", "--overlay-port", "9"]), ["revoke_on_exit=true", "port=9"]);
    }

    #[test]
    fn a_choice_is_left_to_the_configuration() {
        assert_eq!(parse(&["--store-kind", "consul"]), ["kind=consul"]);
    }
}
