//! A lab: a cluster of hosts on one machine, each a network namespace with a daemon and a pod.
//!
//! [`Lab::up`] makes one and dropping it removes it, which is what tests and benches want; [`Lab::keep`] leaves it for
//! later processes, which find it by [`Lab::open`] and remove it by [`down`]; `hopsack lab` ([`cli`]) is made of these.
//! [`traffic`] moves bytes from pod to pod, [`ping`](mod@ping) pings, [`demo`](mod@demo) shows it all in a minute,
//! [`bench`](mod@bench) measures it beside kernel VXLAN, [`soak`](mod@soak) looks whether it wears out.
//!
//! A lab knows a daemon only as a program: its configuration file, its control socket and its exit. It knows nothing of
//! engines or stores beyond the text of a configuration, and that the store may be an etcd that has to be started.
//!
//! Invariant: a lab touches namespaces named `hs-LAB-*`, the directory `/run/hopsack-lab/LAB`, and the processes in
//! them: nothing in the machine's own network namespace. Whatever has been made of it, however far, [`down`] removes.

pub mod bench;
pub mod cli;
pub mod demo;
pub mod ping;
pub mod soak;
pub mod traffic;

mod daemon;
mod error;
mod etcd;
mod interrupt;
mod programs;
mod state;
mod topology;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use daemon::Daemon;
pub use error::LabError;
pub use etcd::Etcd;
pub use interrupt::Interrupt;
pub use programs::exec;
pub use topology::{Host, MAX_HOSTS, Pod};

use crate::packet::Family;
use crate::pki::Identity;
use crate::sys::netns;
use crate::sys::process::Process;
use state::{ProcessId, Record};
use topology::{COMMON_SYSCTLS, HOST_SYSCTLS, Plan};

/// How long daemons may take to become ready: they wait for nobody, so this is for a machine that is busy.
const READY: Duration = Duration::from_secs(15);

/// What lab to make.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Options {
    /// 1 to 32 of a-z, 0-9 and '-'. Two labs at a time have two names.
    pub name: String,
    /// 1 to 200.
    pub hosts: u8,
    /// The family of the outer addresses. Pods have both.
    #[serde(with = "FamilyName")]
    pub underlay: Family,
    /// Of the underlay, in bytes. Pods get what the overlay leaves of it.
    pub mtu: u16,
    /// The program that is run as daemon.
    pub binary: PathBuf,
    /// Where the cluster is described.
    pub store: Store,
    /// TOML that is appended to each daemon's configuration: further tables, such as `[dataplane]`.
    pub extra_config: String,
    /// Ends what is being done to the lab.
    #[serde(skip)]
    pub interrupt: Interrupt,
}

/// Where a lab's daemons find the cluster's map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Store {
    /// In a file that all hosts read.
    File,
    /// In an etcd of so many members, up to five, that the lab starts itself.
    Etcd { members: u8 },
}

/// How a family is written in `lab.json`.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Family")]
enum FamilyName {
    V4,
    V6,
}

impl Options {
    /// Three hosts on an IPv4 underlay of MTU 1500, described by a file.
    pub fn named(name: impl Into<String>, binary: impl Into<PathBuf>) -> Self {
        Self {
            name: name.into(),
            hosts: 3,
            underlay: Family::V4,
            mtu: 1500,
            binary: binary.into(),
            store: Store::File,
            extra_config: String::new(),
            interrupt: Interrupt::default(),
        }
    }

    /// The same with a name that no other process and no other call has: for tests, which run side by side.
    pub fn unique(label: &str, binary: impl Into<PathBuf>) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        Self::named(format!("{label}-{}-{count}", std::process::id()), binary)
    }
}

/// A lab that is up.
#[derive(Debug)]
pub struct Lab {
    options: Options,
    plan: Plan,
    daemons: Vec<Daemon>,
    etcd: Vec<Etcd>,
    keep: bool,
}

impl Lab {
    /// Makes a lab, starts its daemons, and waits until they are ready.
    ///
    /// # Errors
    /// See [`LabError`]; nothing is left of a lab that failed.
    pub fn up(options: Options) -> Result<Self, LabError> {
        let lab = Self::create(options)?;
        lab.start()?;
        Ok(lab)
    }

    /// Makes a lab without starting its daemons.
    ///
    /// # Errors
    /// See [`LabError`]; nothing is left of a lab that failed.
    pub fn create(options: Options) -> Result<Self, LabError> {
        let name = options.name.clone();
        let plan = Plan::new(&options, &state::directory(&name))?;
        programs::preflight(options.store)?;
        if !state::namespaces(&name).is_empty() {
            return Err(LabError::Exists(name));
        }
        state::create(&name)?;
        // From here on there is something to remove, and dropping the lab does it.
        let lab = Self::assemble(options, plan, false);
        let owner = ProcessId::of(std::process::id());
        let record = |built| Record { options: lab.options.clone(), owner, built };
        state::set_record(&name, &record(false))?;
        lab.write_files()?;
        lab.build()?;
        state::set_record(&name, &record(true))?;
        Ok(lab)
    }

    /// Finds a lab that was made earlier. Dropping it leaves it there.
    ///
    /// # Errors
    /// There is none, or not all of it, or the process that made it is alive and will remove it.
    pub fn open(name: &str) -> Result<Self, LabError> {
        topology::check_name(name)?;
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
        let plan = Plan::new(&options, &state::directory(name))?;
        if !plan.namespaces().iter().all(|netns| namespaces.contains(netns)) {
            return Err(LabError::HalfBuilt(name.to_owned()));
        }
        Ok(Self::assemble(options, plan, true))
    }

    /// Starts etcd, if that is the store, and the daemons that do not run, and waits until all are ready and know each
    /// other.
    ///
    /// # Errors
    /// A daemon could not be started, ended, or is not ready after 15 s; likewise etcd.
    pub fn start(&self) -> Result<(), LabError> {
        self.start_etcd()?;
        self.daemons.iter().try_for_each(Daemon::start)?;
        self.daemons.iter().try_for_each(|daemon| daemon.wait_ready(READY))?;
        self.hosts().iter().zip(&self.daemons).try_for_each(|(host, daemon)| has_its_subnet(host, daemon))?;
        self.daemons.iter().try_for_each(|daemon| daemon.wait_peers(self.hosts().len() - 1, READY))
    }

    /// Starts the members of etcd that do not run, waits until they serve, and writes the network configuration.
    fn start_etcd(&self) -> Result<(), LabError> {
        self.etcd.iter().try_for_each(Etcd::start)?;
        self.etcd.iter().try_for_each(|etcd| etcd.wait_ready(READY))?;
        let Some(etcd) = self.etcd.first() else { return Ok(()) };
        let (binary, url) = (&self.options.binary, etcd.url());
        let init = ["network", "init", Plan::NETWORK, "--store-endpoints", &url].map(OsStr::new);
        let argv = [[binary.as_os_str()].as_slice(), &init].concat();
        programs::succeed("hopsack network init", &exec(&self.plan.underlay(), &argv)?)
    }

    /// Leaves the lab in place when this is dropped, for [`Lab::open`] and [`down`].
    ///
    /// # Errors
    /// That could not be written down.
    pub fn keep(&mut self) -> Result<(), LabError> {
        let record = Record { options: self.options.clone(), owner: None, built: true };
        state::set_record(&self.options.name, &record)?;
        self.keep = true;
        Ok(())
    }

    /// Removes the lab, kept or not, and says what there was and what could not be removed.
    ///
    /// # Errors
    /// Something is left.
    pub fn down(mut self) -> Result<Removed, LabError> {
        self.remove()
    }

    /// What it was made of.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The hosts; the first is h1.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.plan.hosts
    }

    /// Host `number`, from 1 on.
    ///
    /// # Panics
    /// There is no such host.
    #[must_use]
    pub fn host(&self, number: usize) -> &Host {
        &self.plan.hosts[number - 1]
    }

    /// The pod of host `number`, from 1 on.
    ///
    /// # Panics
    /// There is no such host.
    #[must_use]
    pub fn pod(&self, number: usize) -> &Pod {
        &self.host(number).pod
    }

    /// The daemon of host `number`, from 1 on.
    ///
    /// # Panics
    /// There is no such host.
    #[must_use]
    pub fn daemon(&self, number: usize) -> &Daemon {
        &self.daemons[number - 1]
    }

    /// Member `number` of the lab's etcd, from 1 on.
    ///
    /// # Panics
    /// There is no such member, or the store is a file.
    #[must_use]
    pub fn etcd(&self, number: usize) -> &Etcd {
        &self.etcd[number - 1]
    }

    /// The namespace of the underlay, with its bridge `br0` and a port named after each host.
    #[must_use]
    pub fn underlay_netns(&self) -> String {
        self.plan.underlay()
    }

    /// The file that describes the cluster to all daemons.
    #[must_use]
    pub fn cluster_path(&self) -> PathBuf {
        self.plan.cluster_path()
    }

    /// The MTU of the pods: what the underlay's leaves after the outer headers, in bytes.
    #[must_use]
    pub fn overlay_mtu(&self) -> u16 {
        self.plan.overlay_mtu()
    }

    /// The namespace of a host or pod, by name: `h1`, `p1`.
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

    fn assemble(options: Options, plan: Plan, keep: bool) -> Self {
        let daemon =
            |host: &Host| Daemon::new(host.clone(), options.binary.clone(), options.interrupt.clone());
        let daemons = plan.hosts.iter().map(daemon).collect();
        let etcd = Etcd::all(&plan.etcd, &options.interrupt);
        Self { options, plan, daemons, etcd, keep }
    }

    fn write_files(&self) -> Result<(), LabError> {
        let write = |path: &Path, text: &str| {
            fs::write(path, text).map_err(LabError::io(format!("write {}", path.display())))
        };
        let leased = matches!(self.options.store, Store::Etcd { .. });
        if !leased {
            write(&self.plan.cluster_path(), &self.plan.cluster_toml(&self.announced()?))?;
        }
        for host in self.hosts() {
            for directory in ["run", "state"] {
                let path = host.directory.join(directory);
                fs::create_dir_all(&path).map_err(LabError::io(format!("make {}", path.display())))?;
            }
            write(&host.directory.join("hopsack.toml"), &self.plan.hopsack_toml(host))?;
            if leased {
                write(&host.directory.join("subnet.env"), &self.plan.subnet_env(host))?;
            }
        }
        Ok(())
    }

    /// What hosts would announce of their encryption in leases, for a cluster file: their certificates are made before.
    fn announced(&self) -> Result<Vec<String>, LabError> {
        let Some(mode) = self.plan.encryption() else { return Ok(Vec::new()) };
        let line = |host: &Host| {
            let identity = Identity::load_or_make(&host.directory.join("state"), &host.name);
            let failed = |error| LabError::io("make a certificate")(std::io::Error::other(error));
            let print = identity.map_err(failed)?.fingerprint();
            Ok(format!("security = {{ mode = \"{mode}\", fingerprint = \"{print}\" }}\n"))
        };
        self.hosts().iter().map(line).collect()
    }

    /// One process for all namespaces, then one for what is inside each: a lab of 3 hosts is made in a tenth of a second.
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

/// Pods have the addresses of the plan: a daemon that leased another subnet would not carry their packets.
fn has_its_subnet(host: &Host, daemon: &Daemon) -> Result<(), LabError> {
    let (status, planned) = (daemon.status()?, host.subnet_v4.to_string());
    let leased = status["subnets"].to_string();
    if leased.contains(&planned) {
        return Ok(());
    }
    Err(LabError::Subnet { host: host.name.clone(), leased, planned })
}

/// What [`down`] found and removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Removed {
    /// Processes: daemons, etcd, and whatever else ran in the lab's namespaces.
    pub processes: usize,
    /// Network namespaces.
    pub namespaces: usize,
    /// Whether there was a directory.
    pub directory: bool,
}

/// Removes a lab, or what is left of one, or nothing: that it is gone is what counts.
///
/// # Errors
/// Something is left. Everything else is removed nevertheless.
pub fn down(name: &str) -> Result<Removed, LabError> {
    topology::check_name(name)?;
    programs::privileged()?;
    let mut left = Vec::new();
    let mut note = |result: Result<(), LabError>| left.extend(result.err().map(|error| error.to_string()));

    let daemons: Vec<Process> = state::daemons(name).into_iter().filter_map(ProcessId::open).collect();
    note(daemon::end_all(&daemons, daemon::GRACE));
    let namespaces = state::namespaces(name);
    let others = processes_in(&namespaces);
    note(daemon::end_all(&others, Duration::from_secs(1)));
    if !namespaces.is_empty() {
        let lines: String = namespaces.iter().map(|netns| format!("netns del {netns}\n")).collect();
        note(programs::ip_batch(None, &lines, true));
    }
    let directory = state::remove(name).unwrap_or_else(|error| {
        note(Err(LabError::io(format!("remove {}", state::directory(name).display()))(error)));
        false
    });
    let removed =
        Removed { processes: daemons.len() + others.len(), namespaces: namespaces.len(), directory };
    if left.is_empty() { Ok(removed) } else { Err(LabError::Left { name: name.to_owned(), left }) }
}

/// The processes in the lab's namespaces, found by the namespace itself: a shell of `lab exec`, a daemon that was started
/// and not yet recorded. Left alone they would keep the namespace alive, nameless, with all its devices.
fn processes_in(namespaces: &[String]) -> Vec<Process> {
    let identity = |path: &Path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let ours = |pid: u32| identity(Path::new(&format!("/proc/{pid}/ns/net")));
    let mut inside: BTreeSet<_> = namespaces.iter().filter_map(|name| identity(&netns::path(name))).collect();
    // Never the namespace that we are in ourselves.
    if let Some(here) = ours(std::process::id()) {
        inside.remove(&here);
    }
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| {
        let process = Process::open(pid).ok()?;
        inside.contains(&ours(pid)?).then_some(process)
    })
    .collect()
}

/// A lab as `hopsack lab list` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// Its name.
    pub name: String,
    /// How many hosts it was made with; none if that cannot be told.
    pub hosts: Option<u8>,
    /// Daemons that run.
    pub daemons: usize,
    /// Whether all of it is there.
    pub whole: bool,
    /// The process that will remove it when it ends, while that runs.
    pub owner: Option<u32>,
    /// That process has ended without removing it.
    pub abandoned: bool,
}

/// All labs of this machine, by name.
#[must_use]
pub fn list() -> Vec<Summary> {
    let summary = |name: String| {
        let record = state::record(&name);
        let owner = record.as_ref().and_then(Record::live_owner);
        Summary {
            hosts: record.as_ref().map(|record| record.options.hosts),
            daemons: state::daemons(&name).len(),
            whole: record.as_ref().is_some_and(|record| record.built),
            owner: owner.map(|owner| owner.pid),
            abandoned: owner.is_none() && record.is_some_and(|record| record.owner.is_some()),
            name,
        }
    };
    state::names().into_iter().map(summary).collect()
}
