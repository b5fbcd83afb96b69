//! The cables between the hosts: what they do with super packets.
//!
//! It sets what `ethtool -K` can set and checks nothing: the bench counts bytes a packet on the wire and shows them.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::super::cluster::Lab;
use super::super::error::LabError;
use super::super::programs;

/// What the cables between the hosts do with super packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Underlay {
    /// veth as it comes: super packets pass whole, without a copy, from host to host.
    Pass,
    /// Segmentation offloads off: each packet travels alone, and arrives alone.
    Noseg,
    /// The same, and the receiving host gathers what it gets (GRO): nearest to a NIC.
    #[value(name = "noseg+gro")]
    #[serde(rename = "noseg+gro")]
    NosegGro,
    /// As noseg, and checksum offload is off too: the CPU sums every packet that leaves a host.
    #[value(name = "noseg+nocsum")]
    #[serde(rename = "noseg+nocsum")]
    NosegNocsum,
}

impl Underlay {
    /// As on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Noseg => "noseg",
            Self::NosegGro => "noseg+gro",
            Self::NosegNocsum => "noseg+nocsum",
        }
    }

    /// Sets the offloads of a lab's cables between the hosts, at both ends.
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
            // The bridge between the hosts stands for a switch, and switches gather nothing.
            set(&lab.underlay_netns(), &host.name, false)?;
        }
        Ok(())
    }
}

/// ethtool's names: TCP, all of the kernel's own, UDP, and the two of TCP inside VXLAN.
const SEGMENTATION: [&str; 5] =
    ["tso", "gso", "tx-udp-segmentation", "tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation"];
