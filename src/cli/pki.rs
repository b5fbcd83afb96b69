//! `hopsack pki`: the cluster's CA and the nodes' certificates, as files. No daemon is asked.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::{CliError, Format, print, say};
use crate::node::NodeError;
use crate::pki::{Authority, Description, PkiError};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// `hopsack pki ...`
#[derive(Debug, Subcommand)]
pub(super) enum PkiCommand {
    /// Make a CA for the cluster: ca.crt, which every node gets, and ca.key, which none gets
    ///
    /// openssl makes files as good: any PEM chain in which a node's certificate has the node's name as SAN.
    #[command(after_help = "Example: hopsack pki init --dir ./pki && hopsack pki issue node-a --dir ./pki")]
    Init {
        #[command(flatten)]
        folder: Folder,
        /// What the CA is called
        #[arg(long, default_value = "hopsack cluster CA")]
        name: String,
        /// Days until it runs out
        #[arg(long, default_value_t = 3650)]
        days: u32,
    },
    /// Make key and certificate of a node, signed by the CA: NAME.key and NAME.crt, for security.key and security.cert
    Issue {
        /// The node's name, as `hopsack peers` shows it (node.name, else its host name)
        name: String,
        #[command(flatten)]
        folder: Folder,
        /// Where the files go, if not beside the CA
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Days until it runs out
        #[arg(long, default_value_t = 365)]
        days: u32,
    },
    /// What a certificate says: names, issuer, days left, fingerprint
    Show {
        /// PEM files
        #[arg(required = true)]
        files: Vec<PathBuf>,
        #[command(flatten)]
        format: Format,
    },
}

#[derive(Debug, Args)]
pub(super) struct Folder {
    /// The folder with ca.crt and ca.key
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
}

/// Does it.
pub(super) fn pki(command: PkiCommand) -> Result<(), CliError> {
    match command {
        PkiCommand::Init { folder, name, days } => {
            let [certificate, key] = Authority::init(&folder.dir, &name, DAY * days).map_err(wrong)?;
            say(&format!(
                "{}: give it to every node (security.ca)\n{}: keep it where no node is\n",
                certificate.display(),
                key.display()
            ))
        }
        PkiCommand::Issue { name, folder, out, days } => {
            let authority = Authority::load(&folder.dir).map_err(wrong)?;
            let out = out.unwrap_or(folder.dir);
            let [certificate, key] = authority.issue(&out, &name, DAY * days).map_err(wrong)?;
            say(&format!(
                "{}: for security.cert on {name}\n{}: for security.key there, and nowhere else\n",
                certificate.display(),
                key.display()
            ))
        }
        PkiCommand::Show { files, format } => {
            let mut all = Vec::new();
            for file in files {
                all.extend(Description::read(&file).map_err(wrong)?);
            }
            print(&format, &all, |all| all.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
        }
    }
}

/// Exit code 2: another name, folder or file mends it.
fn wrong(error: PkiError) -> CliError {
    CliError::Node(NodeError::Invalid(error.to_string()))
}
