//! Two real flannelds with the udp backend, one a host: started on the lab's etcd, below a prefix of their own, and ended.
//!
//! It knows flanneld as a program, from the environment variable FLANNELD; hopsack neither has nor needs one.
//!
//! Invariant: a flanneld that was started here has ended when its [`Flanneld`] is dropped.

use std::ffi::OsString;
use std::fs::{self, File};
use std::process::{Child, Stdio};

use super::super::cluster::Lab;
use super::super::daemon;
use super::super::error::LabError;
use super::super::programs;
use super::super::site::Host;
use crate::sys::process::{Process, own_session};

/// Where both find their configuration and their leases; hopsack's are elsewhere.
const PREFIX: &str = "/bench-flannel/network";
const NETWORK: &str = "10.244.0.0/16";

/// Flanneld's program, if there is one.
pub(super) fn program() -> Option<OsString> {
    std::env::var_os("FLANNELD")
}

/// Writes the network's configuration into the lab's etcd, which runs.
pub(super) fn configure(lab: &Lab) -> Result<(), LabError> {
    let binary = lab.options().binary.display().to_string();
    let config = format!(r#"{{"Network":"{NETWORK}","Backend":{{"Type":"udp"}}}}"#);
    let (url, binary) = (lab.etcd(1).url(), binary.as_str());
    let argv = [binary, "network", "init", &config, "--store-endpoints", &url, "--store-prefix", PREFIX];
    programs::succeed("hopsack network init", &programs::exec(&lab.underlay_netns(), &argv)?)
}

/// A flanneld that runs.
#[derive(Debug)]
pub(super) struct Flanneld(Child);

impl Flanneld {
    /// Starts the one of host `number`, with the lab's subnet for it.
    pub(super) fn start(program: &OsString, lab: &Lab, number: usize) -> Result<Self, LabError> {
        let host = lab.host(number);
        let what = || LabError::io(format!("start the flanneld of {}", host.name));
        let env = host.directory.join("flannel.env");
        // The subnet of an earlier run is leased again: so it takes the one that the pods' addresses are in.
        let before = format!("FLANNEL_NETWORK={NETWORK}\nFLANNEL_SUBNET={}\n", gateway(host));
        fs::write(&env, before).map_err(what())?;
        let log = File::create(host.directory.join("flanneld.log")).map_err(what())?;
        let argv = [
            program.clone(),
            format!("-etcd-endpoints={}", lab.etcd(1).url()).into(),
            format!("-etcd-prefix={PREFIX}").into(),
            format!("-subnet-file={}", env.display()).into(),
            "-iface=eth0".into(),
            "-iptables-forward-rules=false".into(),
        ];
        let mut command = programs::command_in(&host.netns, &argv);
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(what())?).stderr(log);
        Ok(Self(own_session(&mut command).spawn().map_err(what())?))
    }

    pub(super) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Flanneld {
    fn drop(&mut self) {
        // In order, so that its device and route go; it fails if it has ended by itself, which the traffic has noticed.
        let process = Process::open(self.pid()).ok();
        let _ = daemon::end_all(process.as_slice(), daemon::TERM_TIMEOUT);
        let _ = self.0.wait();
    }
}

/// As `subnet.env` has it: the first address of the host's subnet.
fn gateway(host: &Host) -> String {
    format!("{}/{}", host.subnet_v4.hosts().next().unwrap_or(host.pod.v4), host.subnet_v4.prefix_len())
}
