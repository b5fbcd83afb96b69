//! The configuration's keys as command-line options: `--config FILE`, and `--<section>-<key> VALUE` for each key.
//!
//! The options are made from [`KEYS`], so that none can be forgotten; clap's derive cannot do that, hence by hand.

use std::path::PathBuf;

use clap::{Arg, ArgMatches, Args, Command, Error, FromArgMatches};

use crate::config::keys::KEYS;
use crate::config::{DEFAULT_PATH, Sources};

/// `--config` and one option for each key.
#[derive(Debug, Clone, Default)]
pub(super) struct ConfigOptions {
    file: Option<PathBuf>,
    values: Vec<(&'static str, &'static str, String)>,
}

impl ConfigOptions {
    /// Together with this process's environment.
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
        let said = |key: &crate::config::keys::Key| matches.get_one::<String>(key.option).cloned();
        self.values = KEYS.iter().filter_map(|key| Some((key.section, key.name, said(key)?))).collect();
        Ok(())
    }
}

impl Args for ConfigOptions {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new("config")
            .long("config")
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help(format!("Configuration file [default: {DEFAULT_PATH}, if it is there]"));
        KEYS.iter().fold(command.arg(file), |command, key| {
            let option = Arg::new(key.option)
                .long(key.option)
                .value_name("VALUE")
                .help(format!("{} [env: {}]", key.help, key.variable()))
                .help_heading("Configuration keys (as in the file, section by section)");
            command.arg(match key.option {
                // Said by hand of a node that leaves for good.
                "store-revoke-on-exit" => {
                    option.visible_alias("revoke-on-exit").num_args(0..=1).default_missing_value("true")
                }
                _ => option,
            })
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
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

    #[test]
    fn a_node_that_leaves_for_good_says_one_word() {
        let said = |argv: &[&str]| {
            let line = Line::try_parse_from([&["run"], argv].concat()).expect("good");
            line.options
                .values
                .into_iter()
                .map(|(_, name, value)| format!("{name}={value}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(said(&["--revoke-on-exit"]), ["revoke_on_exit=true"]);
        assert_eq!(said(&["--store-revoke-on-exit", "false"]), ["revoke_on_exit=false"]);
        assert_eq!(said(&["--revoke-on-exit", "--overlay-port", "9"]), ["revoke_on_exit=true", "port=9"]);
    }
}
