//! Commands that make, use and remove a lab: `up`, `down --all`, `exec`.

use std::convert::Infallible;
use std::os::unix::process::CommandExt as _;
use std::time::Instant;

use super::super::cluster::Lab;
use super::super::error::LabError;
use super::super::interrupt::Interrupt;
use super::super::names::check_name;
use super::super::options::{Options, Store};
use super::super::removal::down;
use super::super::{programs, state};
use super::args::{self, UpArgs};
use super::print::{family, print, removal, summary};

/// `hopsack lab up`
pub(super) fn up(args: UpArgs) -> Result<(), LabError> {
    let mut options = args::options(&args.lab.name, args.hosts, args.ipv6, args.store)?;
    options.extra_config = args.security.toml().into();
    match Lab::open(&args.lab.name) {
        Ok(mut lab) => return start_stopped_daemons(&mut lab, &options),
        Err(LabError::Absent(_)) => {}
        Err(error) => return Err(error),
    }
    options.interrupt = Interrupt::on_signals()?;
    let begin = Instant::now();
    let mut lab = Lab::create(options)?;
    let namespaces = 2 * args.hosts as usize + 1;
    print(&format!("{namespaces} namespaces made in {:.2} s\n", begin.elapsed().as_secs_f64()))?;
    lab.start()?;
    print(&format!("{} daemons ready after {:.2} s\n\n", args.hosts, begin.elapsed().as_secs_f64()))?;
    print(&summary(&lab))?;
    lab.keep()
}

/// What `up` does if the lab exists.
fn start_stopped_daemons(lab: &mut Lab, wanted: &Options) -> Result<(), LabError> {
    let Options { name, hosts, underlay, store, extra_config, .. } = lab.options();
    let same_config = *extra_config == wanted.extra_config;
    if !same_config || (*hosts, *underlay, *store) != (wanted.hosts, wanted.underlay, wanted.store) {
        let store = if matches!(store, Store::File) { "file" } else { "etcd" };
        let encryption = if same_config { "" } else { " and another --security" };
        let has =
            format!("{hosts} hosts on an {} underlay and --store {store}{encryption}", family(*underlay));
        return Err(LabError::Differs { name: name.clone(), has });
    }
    let stopped = lab.hosts().iter().zip(1..).filter(|(_, number)| lab.daemon(*number).pid().is_none());
    let stopped: Vec<String> = stopped.map(|(host, _)| host.name.clone()).collect();
    let name = name.clone();
    lab.start()?;
    lab.keep()?;
    match stopped.as_slice() {
        [] => print(&format!("lab {name} is up already\n\n"))?,
        stopped => print(&format!("lab {name} was up; started the daemon of {}\n\n", stopped.join(", ")))?,
    }
    print(&summary(lab))
}

/// `hopsack lab down --all`
pub(super) fn down_all() -> Result<(), LabError> {
    programs::privileged()?;
    let mut failed = Ok(());
    let labs = state::names();
    if labs.is_empty() {
        print("this machine has no lab\n")?;
    }
    for name in labs {
        match down(&name) {
            Ok(removed) => print(&removal(&name, removed))?,
            Err(error) => failed = Err(error),
        }
    }
    failed
}

/// `hopsack lab exec`: this process becomes the command, so it returns only on failure.
pub(super) fn exec(lab: &str, site: &str, command: &[String]) -> Result<Infallible, LabError> {
    let lab = Lab::open(lab)?;
    let netns = lab.netns_of(site)?;
    Err(LabError::io("run ip netns exec")(programs::command_in(netns, command).exec()))
}

/// Prepares a lab that one command makes and removes: `demo`, `bench` or `soak`. From now on Ctrl-C
/// interrupts in order. If an earlier run was killed and left its lab, that lab is removed.
pub(super) fn prepare(options: &mut Options, command: &str) -> Result<(), LabError> {
    check_name(&options.name)?;
    options.interrupt = Interrupt::on_signals()?;
    if let Some(removal) = remove_abandoned(&options.name)? {
        eprint!("a killed {command} left a lab: {removal}");
    }
    Ok(())
}

/// Removes a lab if its owner ended without removing it. No other process uses such a lab.
fn remove_abandoned(name: &str) -> Result<Option<String>, LabError> {
    let Some(owner) = state::record(name).and_then(|record| record.owner) else { return Ok(None) };
    if owner.alive() {
        return Err(LabError::Busy { name: name.to_owned(), pid: owner.pid });
    }
    Ok(Some(removal(name, down(name)?)))
}
