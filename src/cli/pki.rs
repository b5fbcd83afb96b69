//! `hopsack pki`: makes and shows the files of the cluster's CA and of the nodes' certificates.
//!
//! It asks no daemon. Invariant: it overwrites no file.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use ipnet::IpNet;

use super::error::CliError;
use super::output::{Format, print, say};
use crate::pki::{Authority, Description};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Subcommands of `hopsack pki`.
#[derive(Debug, Subcommand)]
pub(super) enum PkiCommand {
    /// Make a CA for the cluster: ca.crt for every node, and ca.key for none
    ///
    /// openssl can make the same files: hopsack accepts any PEM chain in which the node's name is a
    /// SAN of the node's certificate.
    #[command(
        after_help = "Example: hopsack pki init --dir ./pki && hopsack pki issue node-a --dir ./pki --subnet 10.244.1.0/24"
    )]
    Init {
        #[command(flatten)]
        folder: Folder,
        /// Name of the CA
        #[arg(long, default_value = "hopsack cluster CA")]
        name: String,
        /// Days until the CA expires
        #[arg(long, default_value_t = 3650)]
        days: u32,
    },
    /// Make a node's key and certificate, signed by the CA: NAME.key and NAME.crt, for security.key
    /// and security.cert
    Issue {
        /// The node's name, as `hopsack peers` shows it (node.name, or the host name if that is not
        /// set)
        name: String,
        /// Subnet that the node leases, in IPv4 or IPv6; may be given several times. Without any,
        /// hosts give the node packets only if they set security.bind_subnets = false
        #[arg(long = "subnet", value_name = "PREFIX")]
        subnets: Vec<IpNet>,
        #[command(flatten)]
        folder: Folder,
        /// Folder for the new files [default: the folder of the CA]
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// Days until the certificate expires
        #[arg(long, default_value_t = 365)]
        days: u32,
    },
    /// Show the content of certificates: names, subnets, issuer, days left, fingerprint
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
    /// Folder of ca.crt and ca.key
    #[arg(long, value_name = "DIR", default_value = ".")]
    dir: PathBuf,
}

/// Runs a subcommand.
pub(super) fn pki(command: PkiCommand) -> Result<(), CliError> {
    match command {
        PkiCommand::Init { folder, name, days } => {
            let [certificate, key] = Authority::init(&folder.dir, &name, DAY * days)?;
            say(&format!(
                "{}: give it to every node (security.ca)\n{}: keep it secret, and on no node\n",
                certificate.display(),
                key.display()
            ))
        }
        PkiCommand::Issue { name, subnets, folder, out, days } => {
            let authority = Authority::load(&folder.dir)?;
            let out = out.unwrap_or(folder.dir);
            let [certificate, key] = authority.issue(&out, (&name, &subnets), DAY * days)?;
            say(&format!(
                "{}: set security.cert to it on {name}\n{}: set security.key to it on {name}, and give it to no other node\n",
                certificate.display(),
                key.display()
            ))
        }
        PkiCommand::Show { files, format } => {
            let mut all = Vec::new();
            for file in files {
                all.extend(Description::read(&file)?);
            }
            print(&format, &all, |all| all.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
        }
    }
}
