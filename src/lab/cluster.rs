//! A lab that exists: made, opened, started, kept, removed.
//!
//! It runs what [`TopologyPlan`] says. It decides no address and no configuration text.
//!
//! Invariant: a lab that is neither kept nor opened is removed when its [`Lab`] is dropped.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::daemon::{Daemon, READY_TIMEOUT};
use super::error::LabError;
use super::etcd::Etcd;
use super::names::check_name;
use super::options::{Options, Store};
use super::programs::{self, exec};
use super::removal::{Removed, down};
use super::site::{Host, Pod};
use super::state::{self, ProcessId, Record};
use super::topology::{COMMON_SYSCTLS, HOST_SYSCTLS, TopologyPlan};
use crate::api::{Request, Status};
use crate::pki::Identity;

/// A lab that exists.
#[derive(Debug)]
pub struct Lab {
    options: Options,
    plan: TopologyPlan,
    daemons: Vec<Daemon>,
    etcd: Vec<Etcd>,
    keep: bool,
}

impl Lab {
    /// Makes a lab, starts its daemons, and waits until they are ready.
    ///
    /// # Errors
    /// See [`LabError`]. A lab that failed leaves nothing.
    pub fn up(options: Options) -> Result<Self, LabError> {
        let lab = Self::create(options)?;
        lab.start()?;
        Ok(lab)
    }

    /// Makes a lab without starting its daemons.
    ///
    /// # Errors
    /// See [`LabError`]. A lab that failed leaves nothing.
    pub fn create(options: Options) -> Result<Self, LabError> {
        let name = options.name.clone();
        let plan = TopologyPlan::new(&options, &state::directory(&name))?;
        programs::preflight(options.store)?;
        if !state::namespaces(&name).is_empty() {
            return Err(LabError::Exists(name));
        }
        state::create(&name)?;
        // From here on there is something to remove; dropping the lab removes it.
        let lab = Self::assemble(options, plan, false);
        let owner = ProcessId::of(std::process::id());
        let record = |built| Record { options: lab.options.clone(), owner, built };
        state::set_record(&name, &record(false))?;
        lab.write_files()?;
        lab.build()?;
        state::set_record(&name, &record(true))?;
        Ok(lab)
    }

    /// Opens a lab that was made earlier. Dropping the result leaves the lab in place.
    ///
    /// # Errors
    /// The lab does not exist, or is incomplete, or the process that made it still runs and will
    /// remove it.
    pub fn open(name: &str) -> Result<Self, LabError> {
        check_name(name)?;
        programs::privileged()?;
        let namespaces: BTreeSet<String> = state::namespaces(name).into_iter().collect();
        if namespaces.is_empty() && !state::directory(name).exists() {
            return Err(LabError::Absent(name.to_owned()));
        }
        let record = state::record(name);
        if let Some(owner) = record.as_ref().and_then(Record::live_owner) {
            return Err(LabError::Busy { name: name.to_owned(), pid: owner.pid });
        }
        let Some(Record { options, .. }) = record.filter(|record| record.built) else {
            return Err(LabError::HalfBuilt(name.to_owned()));
        };
        let plan = TopologyPlan::new(&options, &state::directory(name))?;
        if !plan.namespaces().iter().all(|netns| namespaces.contains(netns)) {
            return Err(LabError::HalfBuilt(name.to_owned()));
        }
        Ok(Self::assemble(options, plan, true))
    }

    /// Starts etcd (if it is the store) and each daemon that does not run, and waits until all are
    /// ready and know each other.
    ///
    /// # Errors
    /// A daemon or etcd could not be started, ended, or is not ready after 15 s.
    pub fn start(&self) -> Result<(), LabError> {
        self.start_etcd()?;
        self.daemons.iter().try_for_each(Daemon::start)?;
        self.daemons.iter().try_for_each(|daemon| daemon.wait_ready(READY_TIMEOUT))?;
        self.hosts().iter().zip(&self.daemons).try_for_each(|(host, daemon)| check_subnet(host, daemon))?;
        self.daemons.iter().try_for_each(|daemon| daemon.wait_peers(self.hosts().len() - 1, READY_TIMEOUT))
    }

    /// Starts the members of etcd that do not run, waits until they serve, and writes the network
    /// configuration.
    pub(super) fn start_etcd(&self) -> Result<(), LabError> {
        self.etcd.iter().try_for_each(Etcd::start)?;
        self.etcd.iter().try_for_each(|etcd| etcd.wait_ready(READY_TIMEOUT))?;
        let Some(etcd) = self.etcd.first() else { return Ok(()) };
        let (binary, url) = (&self.options.binary, etcd.url());
        let init = ["network", "init", TopologyPlan::NETWORK, "--store-endpoints", &url].map(OsStr::new);
        let argv = [[binary.as_os_str()].as_slice(), &init].concat();
        programs::succeed("hopsack network init", &exec(&self.plan.underlay(), &argv)?)
    }

    /// Leaves the lab in place when this value is dropped, for [`Lab::open`] and [`down`].
    ///
    /// # Errors
    /// The record of the lab could not be written.
    pub fn keep(&mut self) -> Result<(), LabError> {
        let record = Record { options: self.options.clone(), owner: None, built: true };
        state::set_record(&self.options.name, &record)?;
        self.keep = true;
        Ok(())
    }

    /// Removes the lab, kept or not, and returns what was removed.
    ///
    /// # Errors
    /// Something could not be removed; the error lists it.
    pub fn down(mut self) -> Result<Removed, LabError> {
        self.remove()
    }

    /// The options that the lab was made with.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// All hosts; the first is h1.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.plan.hosts
    }

    /// Host `number`; the first is 1.
    ///
    /// # Panics
    /// The lab has no such host.
    #[must_use]
    pub fn host(&self, number: usize) -> &Host {
        &self.plan.hosts[number - 1]
    }

    /// The pod of host `number`; the first is 1.
    ///
    /// # Panics
    /// The lab has no such host.
    #[must_use]
    pub fn pod(&self, number: usize) -> &Pod {
        &self.host(number).pod
    }

    /// The daemon of host `number`; the first is 1.
    ///
    /// # Panics
    /// The lab has no such host.
    #[must_use]
    pub fn daemon(&self, number: usize) -> &Daemon {
        &self.daemons[number - 1]
    }

    /// Member `number` of the lab's etcd; the first is 1.
    ///
    /// # Panics
    /// The lab has no such member, or its store is a file.
    #[must_use]
    pub fn etcd(&self, number: usize) -> &Etcd {
        &self.etcd[number - 1]
    }

    /// The namespace of the underlay. It contains the bridge `br0` with one port for each host,
    /// which has the name of the host.
    #[must_use]
    pub fn underlay_netns(&self) -> String {
        self.plan.underlay()
    }

    /// The file that describes the cluster to all daemons, if the store is a file.
    #[must_use]
    pub fn cluster_path(&self) -> PathBuf {
        self.plan.cluster_path()
    }

    /// The MTU of the pods in bytes: the underlay's MTU minus the outer headers.
    #[must_use]
    pub fn overlay_mtu(&self) -> u16 {
        self.plan.overlay_mtu()
    }

    /// The namespace of a host or pod. `site` is its name: `h1`, `p1`, ...
    ///
    /// # Errors
    /// The lab has no such host or pod.
    pub fn netns_of(&self, site: &str) -> Result<&str, LabError> {
        let all = self
            .hosts()
            .iter()
            .flat_map(|host| [(&host.name, host.netns.as_str()), (&host.pod.name, host.pod.netns.as_str())]);
        let found = all.into_iter().find(|(name, _)| *name == site).map(|(_, netns)| netns);
        let Options { name, hosts, .. } = &self.options;
        found.ok_or_else(|| LabError::Site { lab: name.clone(), site: site.to_owned(), hosts: *hosts })
    }

    fn assemble(options: Options, plan: TopologyPlan, keep: bool) -> Self {
        let daemons = plan.hosts.iter().map(|host| Daemon::new(host.clone(), &options)).collect();
        let etcd = Etcd::all(&plan.etcd, &options.interrupt);
        Self { options, plan, daemons, etcd, keep }
    }

    fn write_files(&self) -> Result<(), LabError> {
        let write = |path: &Path, text: &str| {
            fs::write(path, text).map_err(LabError::io(format!("write {}", path.display())))
        };
        let has_etcd = matches!(self.options.store, Store::Etcd { .. });
        if !has_etcd {
            write(&self.plan.cluster_path(), &self.plan.cluster_toml(&self.encryption_lines()?))?;
        }
        for host in self.hosts() {
            for directory in ["run", "state"] {
                let path = host.directory.join(directory);
                fs::create_dir_all(&path).map_err(LabError::io(format!("make {}", path.display())))?;
            }
            write(&host.directory.join("hopsack.toml"), &self.plan.hopsack_toml(host))?;
            if has_etcd {
                write(&host.directory.join("subnet.env"), &self.plan.subnet_env(host))?;
            }
        }
        Ok(())
    }

    /// One line of the cluster file for each host: the encryption that the host would announce in a
    /// lease. The line contains the fingerprint, so the certificates are made here.
    fn encryption_lines(&self) -> Result<Vec<String>, LabError> {
        let Some(mode) = self.plan.encryption() else { return Ok(Vec::new()) };
        let line = |host: &Host| {
            let identity = Identity::load_or_make(&host.directory.join("state"), &host.name);
            let failed = |error| LabError::io("make a certificate")(std::io::Error::other(error));
            let print = identity.map_err(failed)?.fingerprint();
            Ok(format!("security = {{ mode = \"{mode}\", fingerprint = \"{print}\" }}\n"))
        };
        self.hosts().iter().map(line).collect()
    }

    /// Makes the namespaces with one `ip` process, and the devices of each namespace with one more.
    /// A lab of 3 hosts is made in 0.1 s.
    fn build(&self) -> Result<(), LabError> {
        let namespaces = self.plan.namespaces();
        let added: String = namespaces.iter().map(|netns| format!("netns add {netns}\n")).collect();
        programs::ip_batch(None, &added, false)?;
        namespaces.iter().try_for_each(|netns| programs::set_sysctls(netns, &COMMON_SYSCTLS))?;
        programs::ip_batch(Some(&self.plan.underlay()), &self.plan.underlay_batch(), false)?;
        for host in self.hosts() {
            self.options.interrupt.check()?;
            programs::set_sysctls(&host.netns, &HOST_SYSCTLS)?;
            programs::ip_batch(Some(&host.netns), &self.plan.host_batch(host), false)?;
            programs::ip_batch(Some(&host.pod.netns), &self.plan.pod_batch(host), false)?;
        }
        Ok(())
    }

    fn remove(&mut self) -> Result<Removed, LabError> {
        self.keep = true;
        let removed = down(&self.options.name);
        for daemon in &self.daemons {
            daemon.reap();
        }
        self.etcd.iter().for_each(Etcd::reap);
        removed
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if let Err(error) = self.remove() {
            tracing::warn!("{error}");
        }
    }
}

/// Checks that a daemon leased the planned subnet. Pods have addresses of that subnet, so a daemon
/// with another lease would not carry their packets.
fn check_subnet(host: &Host, daemon: &Daemon) -> Result<(), LabError> {
    let status: Status = daemon.query(Request::Status)?;
    let planned = host.subnet_v4.to_string();
    if status.subnets.contains(&planned) {
        return Ok(());
    }
    Err(LabError::Subnet { host: host.name.clone(), leased: status.subnets.join(" "), planned })
}
