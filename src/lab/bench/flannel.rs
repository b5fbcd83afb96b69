//! Two real flanneld with the udp backend, one on each host, on the lab's etcd with a prefix of
//! their own.
//!
//! The environment variable FLANNELD names the program. hopsack does not contain or need it.
//!
//! Invariant: when a [`Flanneld`] is dropped, its process has ended.

use std::ffi::OsString;
use std::fs::{self, File};
use std::process::{Child, Stdio};

use super::super::cluster::Lab;
use super::super::daemon;
use super::super::error::LabError;
use super::super::programs;
use super::super::site::Host;
use crate::sys::process::{Process, own_session};

/// Prefix of flannel's configuration and leases. hopsack uses another prefix.
const PREFIX: &str = "/bench-flannel/network";
const NETWORK: &str = "10.244.0.0/16";

/// Path of flanneld; none if FLANNELD is not set.
pub(super) fn program() -> Option<OsString> {
    std::env::var_os("FLANNELD")
}

/// Writes the network configuration into the lab's etcd, which must run.
pub(super) fn configure(lab: &Lab) -> Result<(), LabError> {
    let binary = lab.options().binary.display().to_string();
    let config = format!(r#"{{"Network":"{NETWORK}","Backend":{{"Type":"udp"}}}}"#);
    let (url, binary) = (lab.etcd(1).url(), binary.as_str());
    let argv = [binary, "network", "init", &config, "--store-endpoints", &url, "--store-prefix", PREFIX];
    programs::succeed("hopsack network init", &programs::exec(&lab.underlay_netns(), &argv)?)
}

/// A running flanneld.
#[derive(Debug)]
pub(super) struct Flanneld(Child);

impl Flanneld {
    /// Starts flanneld on host `number`, with the lab's subnet for this host.
    pub(super) fn start(program: &OsString, lab: &Lab, number: usize) -> Result<Self, LabError> {
        let host = lab.host(number);
        let what = || LabError::io(format!("start the flanneld of {}", host.name));
        let env = host.directory.join("flannel.env");
        // flanneld leases the subnet in this file again, so it gets the subnet of the pod's
        // address.
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
        // SIGTERM, so that flanneld removes its device and route. This fails if it has already
        // ended; then the measurement has failed too.
        let process = Process::open(self.pid()).ok();
        let _ = daemon::end_all(process.as_slice(), daemon::TERM_TIMEOUT);
        let _ = self.0.wait();
    }
}

/// First address of the host's subnet with its prefix length, as in `subnet.env`.
fn gateway(host: &Host) -> String {
    format!("{}/{}", host.subnet_v4.hosts().next().unwrap_or(host.pod.v4), host.subnet_v4.prefix_len())
}
