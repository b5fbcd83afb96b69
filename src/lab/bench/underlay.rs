//! Underlay: offloads of the links between the hosts.
//!
//! It sets what `ethtool -K` can set and checks nothing. The bench counts the bytes per packet on
//! the underlay and shows them.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::super::cluster::Lab;
use super::super::error::LabError;
use super::super::programs;

/// How the links between the hosts treat super packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Underlay {
    /// Default of veth: super packets pass whole from host to host, without a copy.
    Pass,
    /// No segmentation offload: each packet travels and arrives alone.
    Noseg,
    /// No segmentation offload, but the receiving host merges packets (GRO). This is most similar
    /// to a NIC.
    #[value(name = "noseg+gro")]
    #[serde(rename = "noseg+gro")]
    NosegGro,
    /// No segmentation and no checksum offload: the CPU computes the checksum of every packet.
    #[value(name = "noseg+nocsum")]
    #[serde(rename = "noseg+nocsum")]
    NosegNocsum,
}

impl Underlay {
    /// Name, as on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Noseg => "noseg",
            Self::NosegGro => "noseg+gro",
            Self::NosegNocsum => "noseg+nocsum",
        }
    }

    /// Sets the offloads of the links between a lab's hosts, at both ends.
    ///
    /// # Errors
    /// `ethtool` could not be run, or refused.
    pub fn set(self, lab: &Lab) -> Result<(), LabError> {
        let switch = |on| if on { "on" } else { "off" };
        let (whole, sums) = (switch(self == Self::Pass), switch(self != Self::NosegNocsum));
        let set = |netns: &str, device: &str, gro: bool| {
            let mut argv = vec!["ethtool", "-K", device, "gro", switch(gro), "tx", sums];
            argv.extend(SEGMENTATION.iter().flat_map(|feature| [*feature, whole]));
            let output = programs::exec(netns, &argv)?;
            programs::succeed(&argv.join(" "), &output)
        };
        for host in lab.hosts() {
            set(&host.netns, "eth0", self == Self::NosegGro)?;
            // The bridge between the hosts represents a switch, and a switch does not merge
            // packets.
            set(&lab.underlay_netns(), &host.name, false)?;
        }
        Ok(())
    }
}

/// Names of ethtool for segmentation of TCP, of the kernel's generic kind, of UDP, and of TCP in
/// VXLAN.
const SEGMENTATION: [&str; 5] =
    ["tso", "gso", "tx-udp-segmentation", "tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation"];
