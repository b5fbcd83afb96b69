//! Why the fast path cannot be used, or cannot be changed.

use std::io;
use std::path::PathBuf;

use aya::EbpfError;
use aya::maps::MapError;
use aya::pin::PinError;
use aya::programs::ProgramError;
use aya::programs::links::LinkError;

/// Why the fast path cannot be used, or cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum FastPathError {
    /// The directory for pins cannot be used.
    #[error(
        "cannot pin to {path}: {error}; mount a bpffs there before the start, or give the process CAP_SYS_ADMIN"
    )]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        error: io::Error,
    },
    /// The kernel does not make the maps.
    #[error(
        "cannot make the maps of the kernel program: {}; it needs CAP_BPF and a Linux with bpf(2)", chain(.0.as_ref())
    )]
    Load(#[source] Box<EbpfError>),
    /// The kernel does not load a program.
    #[error("the kernel does not load the program {name}: {error}; it needs CAP_BPF and CAP_NET_ADMIN")]
    Program {
        /// Name of the program.
        name: &'static str,
        /// The kernel's answer, with the verdict of its verifier.
        error: String,
    },
    /// The object lacks a part.
    #[error("the kernel program has no {0}")]
    Missing(&'static str),
    /// A map cannot be read or written.
    #[error("cannot access the map {name} of the kernel program: {error}")]
    Map {
        /// Name of the map.
        name: &'static str,
        /// The kernel's answer.
        #[source]
        error: Box<MapError>,
    },
    /// There is no such interface.
    #[error("no interface {name} for the kernel program: {error}")]
    Interface {
        /// Name of the interface.
        name: String,
        /// The kernel's answer.
        #[source]
        error: io::Error,
    },
    /// A program cannot be attached.
    #[error("cannot attach the kernel program to {name}: {error}; tcx links need Linux 6.6")]
    Attach {
        /// Name of the interface.
        name: String,
        /// The kernel's answer.
        error: String,
    },
    /// The kernel does not tell which programs are at a hook.
    #[error("cannot ask for the programs at {name}: {error}")]
    Query {
        /// Name of the interface.
        name: String,
        /// The kernel's answer.
        #[source]
        error: io::Error,
    },
    /// A run for a test failed.
    #[error("cannot run the kernel program for a test: {0}")]
    Run(String),
}

impl FastPathError {
    /// Stable code of the error. The process prints it behind the sentence, in brackets.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Directory { .. } => "fastpath_directory",
            Self::Load(_) => "fastpath_load",
            Self::Program { .. } => "fastpath_program",
            Self::Missing(_) => "fastpath_object",
            Self::Map { .. } => "fastpath_map",
            Self::Interface { .. } => "fastpath_interface",
            Self::Attach { .. } => "fastpath_attach",
            Self::Query { .. } => "fastpath_query",
            Self::Run(_) => "fastpath_run",
        }
    }

    pub(super) fn map(name: &'static str) -> impl FnOnce(MapError) -> Self {
        move |error| Self::Map { name, error: Box::new(error) }
    }

    /// Keeps only the verdict from the log of the verifier, which has hundreds of lines.
    pub(super) fn program(name: &'static str) -> impl FnOnce(ProgramError) -> Self {
        move |error| {
            let error = if let ProgramError::LoadError { io_error, verifier_log } = error {
                let log = verifier_log.to_string();
                verdict(&log).map_or_else(|| io_error.to_string(), |verdict| format!("{io_error}: {verdict}"))
            } else {
                chain(&error)
            };
            Self::Program { name, error }
        }
    }

    pub(super) fn attach<E: Into<AttachError>>(name: &str) -> impl FnOnce(E) -> Self + use<'_, E> {
        move |error| Self::Attach { name: name.to_owned(), error: chain(&error.into()) }
    }
}

/// What can fail while a program is attached.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttachError {
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Pin(#[from] PinError),
}

/// The last line of a verifier's log before its statistics.
fn verdict(log: &str) -> Option<&str> {
    let statistics = ["processed ", "verification time ", "stack depth "];
    let is_statistic = |line: &str| statistics.iter().any(|start| line.starts_with(start));
    log.lines().rfind(|line| !line.is_empty() && !is_statistic(line))
}

/// An error with its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdict_is_the_last_line_before_the_statistics() {
        let log = "471: (0f) r8 += r1\nR8 tried to add\nverification time 8205 usec\nstack depth 144\n\
                   processed 1200 insns (limit 1000000)\n\n";
        assert_eq!(verdict(log), Some("R8 tried to add"));
        assert_eq!(verdict(""), None);
    }
}
