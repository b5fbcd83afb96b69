//! Topology that all systems share. It switches between systems: routes, devices and daemons
//! change, hosts and pods stay.
//!
//! It measures nothing. Invariant: at most one system is active. While a system is active, the
//! route to the other host's pods leads into its device, and a ping has passed.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use super::super::cluster::Lab;
use super::super::daemon::{self, READY_TIMEOUT};
use super::super::error::LabError;
use super::super::options::Store;
use super::super::ping::{Ping, ping};
use super::super::programs;
use super::super::site::{Host, Pod};
use super::super::traffic::{Amount, Flow, Transfer};
use super::flannel::{self, Flanneld};
use super::keep_awake::KeepAwake;
use super::system::{Carrier, System};
use super::tunnel::{Kind, Tunnel};
use super::wireguard::{Program, WireGuard};
use crate::api::{FastPathStatus, Request, Status};
use crate::packet::Family;
use crate::sys::netns::in_netns;

/// Largest super packet of a pod in bytes, for all systems: what hopsack's CNI plugin sets. It has
/// at most 44 segments of 1420 bytes of payload, and 44 packets of 1472 bytes fit into the 65,507
/// bytes of one UDP_SEGMENT send.
const GSO_MAX_BYTES: u32 = 62_000;

/// Kernel settings of the pods: TCP must not reuse metrics that it learned with the previous
/// system.
const POD_SYSCTLS: [(&str, &str); 1] = [("ipv4/tcp_no_metrics_save", "1")];

/// Longest time in which the fast path decides about its veth pair.
const WARM_UP: Duration = Duration::from_secs(6);

/// TCP congestion control for all systems: the default of the kernel, independent of this machine's
/// setting.
const CUBIC: &str = "cubic";

/// Why a system is not measured. The other systems are measured nevertheless.
#[derive(Debug)]
pub(super) enum Refusal {
    /// This build or this machine does not have the system.
    Absent(String),
    /// The system should work, but does not.
    Broken(String),
}

/// A lab in which the bench switches between systems.
#[derive(Debug)]
pub(super) struct SharedTopology<'a> {
    lab: &'a Lab,
    /// Configuration files of the daemons, without the text of a system.
    base_configs: Vec<(PathBuf, String)>,
    congestion_control: String,
    active: Option<System>,
    flannelds: Vec<Flanneld>,
    wireguards: Vec<WireGuard>,
    tunnels: Vec<Tunnel>,
    awake: Option<KeepAwake>,
}

impl<'a> SharedTopology<'a> {
    /// Takes a lab in which no daemon runs.
    pub(super) fn new(lab: &'a Lab, awake: Option<KeepAwake>) -> Result<Self, LabError> {
        let read = |number| {
            let path = lab.daemon(number).config_path();
            let text = fs::read_to_string(&path);
            text.map(|text| (path.clone(), text)).map_err(LabError::io(format!("read {}", path.display())))
        };
        let base_configs = [read(1)?, read(2)?].into();
        for host in lab.hosts() {
            let limit = format!("link set eth0 gso_max_size {GSO_MAX_BYTES}\n");
            programs::ip_batch(Some(&host.pod.netns), &limit, false)?;
            programs::set_sysctls(&host.pod.netns, &POD_SYSCTLS)?;
        }
        if matches!(lab.options().store, Store::Etcd { .. }) {
            lab.start_etcd()?;
            flannel::configure(lab)?;
        }
        let congestion_control = congestion_control(lab.pod(1)).map_err(LabError::io("choose cubic"))?;
        Ok(Self {
            lab,
            base_configs,
            congestion_control,
            active: None,
            flannelds: Vec::new(),
            wireguards: Vec::new(),
            tunnels: Vec::new(),
            awake,
        })
    }

    /// Congestion control for the sender of each TCP stream.
    pub(super) fn congestion_control(&self) -> &str {
        &self.congestion_control
    }

    /// What keeps the CPUs awake; none if they may halt.
    pub(super) fn awake(&self) -> Option<&KeepAwake> {
        self.awake.as_ref()
    }

    pub(super) fn lab(&self) -> &'a Lab {
        self.lab
    }

    /// Pod of the sender and pod of the receiver.
    pub(super) fn pods(&self) -> [&'a Pod; 2] {
        [self.lab.pod(1), self.lab.pod(2)]
    }

    /// Makes `system` carry the packets.
    pub(super) fn activate(&mut self, system: System) -> Result<Result<(), Refusal>, LabError> {
        self.deactivate()?;
        self.active = Some(system);
        let refusal = match system.carrier() {
            Carrier::Raw => self.in_pairs(raw),
            Carrier::Vxlan => self.in_pairs(vxlan),
            Carrier::Flannel => self.start_flannelds(),
            Carrier::WireGuard(program) => self.start_wireguards(program),
            Carrier::Tunnel(kind) => self.start_tunnels(kind),
            Carrier::Hopsack(config) => self.start_daemons(config),
        };
        let refusal = refusal.and_then(|()| self.wait_for_ping(system));
        let refusal = refusal.and_then(|()| self.wait_for_fast_path(system));
        if let Err(refusal) = refusal {
            self.deactivate()?;
            return match refusal {
                Refused::Why(refusal) => Ok(Err(refusal)),
                Refused::Error(error) => Err(error),
            };
        }
        self.check_routes(system)?;
        Ok(Ok(()))
    }

    /// Removes everything that belongs to the active system.
    pub(super) fn deactivate(&mut self) -> Result<(), LabError> {
        let Some(system) = self.active.take() else { return Ok(()) };
        self.flannelds.clear();
        self.wireguards.clear();
        self.tunnels.clear();
        for (host, number) in self.lab.hosts().iter().zip(1..) {
            match system.carrier() {
                Carrier::Raw => {
                    let other = self.other(host);
                    programs::ip_batch(Some(&host.netns), &format!("route del {}\n", other.subnet_v4), true)
                        .or_else(ignore_missing)?;
                }
                Carrier::Vxlan => {
                    programs::ip_batch(Some(&host.netns), "link del flannel.1\n", true)
                        .or_else(ignore_missing)?;
                }
                Carrier::Flannel | Carrier::Tunnel(_) | Carrier::WireGuard(_) => {}
                Carrier::Hopsack(_) => {
                    self.lab.daemon(number).terminate()?;
                    let removed = self.lab.daemon(number).remove();
                    // A program that does not work has left nothing.
                    let device = programs::exec(&host.netns, &["ip", "link", "show", "hopsack0"])?;
                    if device.status.success() {
                        removed?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Processes of the active system's daemons; empty if it has none.
    pub(super) fn daemons(&self) -> Vec<u32> {
        let ours = (1..=self.lab.hosts().len()).filter_map(|number| self.lab.daemon(number).pid());
        let theirs = self.flannelds.iter().map(Flanneld::pid).chain(self.tunnels.iter().map(Tunnel::pid));
        ours.chain(theirs).chain(self.wireguards.iter().map(WireGuard::pid)).collect()
    }

    fn other(&self, host: &Host) -> &'a Host {
        if self.lab.host(1) == host { self.lab.host(2) } else { self.lab.host(1) }
    }

    /// Runs the commands that `batch` returns for each host and its peer, with their numbers.
    fn in_pairs(&self, batch: impl Fn((&Host, u8), (&Host, u8)) -> Commands) -> Result<(), Refused> {
        let [one, two] = [(self.lab.host(1), 1), (self.lab.host(2), 2)];
        for (host, peer) in [(one, two), (two, one)] {
            let Commands { ip, others } = batch(host, peer);
            let run = programs::ip_batch(Some(&host.0.netns), &ip, false);
            run.map_err(|error| Refused::Why(Refusal::Absent(error.to_string())))?;
            for line in others.lines() {
                let argv: Vec<&str> = line.split(' ').collect();
                let output = programs::exec(&host.0.netns, &argv)?;
                programs::succeed(line, &output)?;
            }
        }
        Ok(())
    }

    fn start_flannelds(&mut self) -> Result<(), Refused> {
        let Some(program) = flannel::program() else {
            let why = "the environment variable FLANNELD is not set".to_owned();
            return Err(Refused::Why(Refusal::Absent(why)));
        };
        for number in 1..=self.lab.hosts().len() {
            self.flannelds.push(Flanneld::start(&program, self.lab, number)?);
        }
        Ok(())
    }

    fn start_wireguards(&mut self, program: Program) -> Result<(), Refused> {
        let Some(path) = program.path() else {
            let why = format!("{} is not on the PATH, and {} is not set", program.name, program.variable);
            return Err(Refused::Why(Refusal::Absent(why)));
        };
        self.wireguards = WireGuard::pair(program, &path, self.lab)?;
        Ok(())
    }

    fn start_tunnels(&mut self, kind: Kind) -> Result<(), Refused> {
        for (number, peer) in [(1, 2), (2, 1)] {
            self.tunnels.push(Tunnel::start(self.lab, kind, number, self.lab.host(peer))?);
        }
        Ok(())
    }

    fn start_daemons(&self, config: &str) -> Result<(), Refused> {
        for (path, base) in &self.base_configs {
            let text = format!("{base}\n{config}");
            fs::write(path, text).map_err(LabError::io(format!("write {}", path.display())))?;
        }
        let daemons = [self.lab.daemon(1), self.lab.daemon(2)];
        daemons.iter().try_for_each(|daemon| daemon.start())?;
        let Err(error) = daemons.iter().try_for_each(|daemon| daemon.wait_ready(READY_TIMEOUT)) else {
            return Ok(());
        };
        if let LabError::DaemonDied { status, log, .. } = &error
            && status == "exit status: 2"
        {
            // This build refuses the configuration; the last line of the log says why.
            let why = log.lines().last().unwrap_or_default().trim();
            let why = why.strip_prefix("hopsack: ").unwrap_or(why);
            return Err(Refused::Why(Refusal::Absent(why.to_owned())));
        }
        let failed = matches!(error, LabError::DaemonDied { .. } | LabError::NotReady { .. });
        Err(if failed { Refused::Why(Refusal::Broken(error.to_string())) } else { error.into() })
    }

    /// Sets the pods' MTU to that of the system's device, and waits until a ping passes. By then
    /// leases are read, keys are agreed, and neighbours are resolved.
    fn wait_for_ping(&self, system: System) -> Result<(), Refused> {
        let deadline = Instant::now() + READY_TIMEOUT;
        for (host, number) in self.lab.hosts().iter().zip(1..) {
            let name = system.device(self.lab, number);
            let device = format!("/sys/class/net/{name}/mtu");
            let mtu = loop {
                let output = programs::exec(&host.netns, &["cat", &device])?;
                if output.status.success() {
                    break String::from_utf8_lossy(&output.stdout).trim().to_owned();
                }
                if Instant::now() >= deadline {
                    let why = format!("{} has no device {name}", host.name);
                    return Err(Refused::Why(Refusal::Broken(why)));
                }
                self.lab.options().interrupt.sleep(START_CHECK_INTERVAL)?;
            };
            programs::ip_batch(Some(&host.netns), &format!("link set pod mtu {mtu}\n"), false)?;
            programs::ip_batch(Some(&host.pod.netns), &format!("link set eth0 mtu {mtu}\n"), false)?;
        }
        let [from, to] = self.pods();
        while !ping(&from.netns, Ping { count: 1, ..Ping::to(to.v4) }).is_ok_and(|pinged| pinged.is_whole()) {
            if Instant::now() >= deadline {
                let why = format!("{} does not reach {}", from.name, to.name);
                return Err(Refused::Why(Refusal::Broken(why)));
            }
            self.lab.options().interrupt.sleep(START_CHECK_INTERVAL)?;
        }
        Ok(())
    }

    /// Waits until the kernel fast path carries the packets, if the system uses it.
    fn wait_for_fast_path(&self, system: System) -> Result<(), Refused> {
        let deadline = Instant::now() + READY_TIMEOUT;
        for number in (1..=self.lab.hosts().len()).filter(|_| matches!(system, System::Auto | System::Fast)) {
            loop {
                let FastPathStatus { is_on, peers, reason, .. } =
                    self.lab.daemon(number).query::<Status>(Request::Status)?.fast_path;
                match (is_on, peers) {
                    (true, 1..) => break,
                    (false, _) if system == System::Auto => break,
                    (false, _) => return Err(Refused::Why(Refusal::Absent(reason))),
                    (true, 0) if Instant::now() >= deadline => {
                        let why = "the kernel fast path is on, but carries no packets".to_owned();
                        return Err(Refused::Why(Refusal::Broken(why)));
                    }
                    (true, 0) => self.lab.options().interrupt.sleep(START_CHECK_INTERVAL)?,
                }
            }
        }
        Ok(())
    }

    /// Lets the fast path find out whether TCP arrives in single segments: it looks at a transfer
    /// for a few seconds before it takes its veth pair into use.
    pub(super) fn warm_up(&self, system: System) -> Result<(), LabError> {
        if !matches!(system, System::Auto | System::Fast) {
            return Ok(());
        }
        let ([from, to], begin) = (self.pods(), Instant::now());
        let amount = Amount::Time(WARM_UP);
        let transfer = Transfer::start(Flow { from, to, family: Family::V4, amount, verify: false })?;
        while begin.elapsed() < WARM_UP {
            let fast = self.lab.daemon(2).query::<Status>(Request::Status)?.fast_path;
            if !fast.is_on || fast.gro.is_used {
                break;
            }
            self.lab.options().interrupt.sleep(START_CHECK_INTERVAL)?;
        }
        transfer.finish();
        transfer.wait().map(|_| ())
    }

    fn check_routes(&self, system: System) -> Result<(), LabError> {
        for (host, number) in self.lab.hosts().iter().zip(1..) {
            let (to, wanted) = (self.other(host).pod.v4.to_string(), system.device(self.lab, number));
            let output = programs::exec(&host.netns, &["ip", "route", "get", &to])?;
            let route = String::from_utf8_lossy(&output.stdout).into_owned();
            if !route.contains(&format!(" dev {wanted} ")) {
                let name = &host.name;
                return Err(LabError::Bench(format!("{name} should send to {to} by {wanted}, but: {route}")));
            }
        }
        Ok(())
    }
}

impl Drop for SharedTopology<'_> {
    fn drop(&mut self) {
        // The lab is removed next, with everything in it. This only ends the daemons in order.
        let _ = self.deactivate();
    }
}

/// Failure of an activation: the system is refused, or the bench must end.
enum Refused {
    Why(Refusal),
    Error(LabError),
}

impl From<LabError> for Refused {
    fn from(error: LabError) -> Self {
        Self::Error(error)
    }
}

/// Cubic, or the machine's own setting if the module of cubic is not loaded.
fn congestion_control(pod: &Pod) -> std::io::Result<String> {
    // It is set on sockets, because the default of a namespace must be one that the machine allows
    // for all users.
    let choose = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        match socket.set_tcp_congestion(CUBIC.as_bytes()) {
            Ok(()) => Ok(CUBIC.to_owned()),
            Err(_) => fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control"),
        }
    };
    let chosen = in_netns(&pod.netns, choose).and_then(|chosen| chosen)?;
    Ok(chosen.trim().to_owned())
}

/// Commands for one host, one in each line.
struct Commands {
    ip: String,
    others: String,
}

fn raw(_: (&Host, u8), (peer, _): (&Host, u8)) -> Commands {
    let ip = format!("route add {} via {} dev eth0\n", peer.subnet_v4, peer.public);
    Commands { ip, others: String::new() }
}

/// VXLAN as flannel's backend configures it (pkg/backend/vxlan): id 1, port 8472, no learning. For
/// each peer there is a neighbour, a forwarding entry, and an onlink route by the peer's device
/// address, which is the first address of its subnet.
fn vxlan((host, number): (&Host, u8), (peer, peer_number): (&Host, u8)) -> Commands {
    let (public, first, mac) = (host.public, host.subnet_v4.network(), mac(number));
    let (peer_first, peer_mac) = (peer.subnet_v4.network(), self::mac(peer_number));
    let mut ip = format!(
        "link add flannel.1 address {mac} mtu 1450 type vxlan id 1 local {public} dev eth0 dstport 8472 nolearning\n"
    );
    let _ = write!(
        ip,
        "addr add {first}/32 dev flannel.1\nlink set flannel.1 up\n\
         neigh add {peer_first} lladdr {peer_mac} dev flannel.1 nud permanent\n\
         route add {} via {peer_first} dev flannel.1 onlink\n",
        peer.subnet_v4,
    );
    Commands { ip, others: format!("bridge fdb add {peer_mac} dev flannel.1 dst {}\n", peer.public) }
}

fn mac(number: u8) -> String {
    // The address is locally administered.
    format!("02:00:00:00:00:{number:02x}")
}

/// Ignores the failure of a command that removes something: a system that failed to start may have
/// left less.
fn ignore_missing(error: LabError) -> Result<(), LabError> {
    if matches!(error, LabError::Command { .. }) { Ok(()) } else { Err(error) }
}

/// Time between two checks of a system that starts.
const START_CHECK_INTERVAL: Duration = Duration::from_millis(20);

/// Approximate time for a change of the system, for the estimate.
pub(super) const SWITCH: Duration = Duration::from_millis(300);
const _: () = assert!(SWITCH.as_millis() < daemon::TERM_TIMEOUT.as_millis());
