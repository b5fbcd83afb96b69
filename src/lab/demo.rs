//! Demo: shows the overlay at work in a minute, on one screen.
//!
//! Hosts come up, all pods ping each other, and TCP moves data between two of them. A daemon is
//! killed while packets flow and started again. Two hosts begin to encrypt. Then everything is
//! removed.
//!
//! Invariant: [`run`] returns `Ok` only if every step succeeded, and it always removes the lab.

mod capture;

use std::fmt::Write as _;
use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::cluster::Lab;
use super::daemon::READY_TIMEOUT;
use super::error::LabError;
use super::interrupt::Interrupt;
use super::options::{Options, Store};
use super::ping::{Ping, Pinger, ping};
use super::programs;
use super::traffic::{Amount, Flow, Transfer};
use crate::api::{Explanation, Request};
use crate::packet::Family;
use crate::sys::process::own_session;
use capture::{TEXT, TEXT_COUNT, send_and_capture};

/// Largest number of hosts. The matrix of pings must fit a screen.
pub const MAX_HOSTS: u8 = 9;

/// Default time after which systemd starts a service again (`systemd.service(5)`, RestartSec=).
const RESTART_AFTER: Duration = Duration::from_millis(100);

/// Time between two pings while a daemon is killed. It is the resolution of the measured outage.
const TICK: Duration = Duration::from_millis(10);

/// Runs the demo in a lab with these options and prints its progress to `out`. TCP runs for `time`
/// in each family.
///
/// # Errors
/// The first step that failed, or [`LabError::Interrupted`].
pub fn run(options: Options, time: Duration, out: &mut dyn Write) -> Result<(), LabError> {
    let (interrupt, family) = (options.interrupt.clone(), options.underlay);
    let failed = LabError::io("write to the terminal");
    let outer = if family == Family::V4 { "IPv4" } else { "IPv6" };
    let header = format!(
        "hopsack lab demo: {} hosts, {outer} between hosts, IPv4 and IPv6 between pods",
        options.hosts
    );
    writeln!(out, "{header}\n").map_err(failed)?;

    let mut progress = Progress { out, step: 0 };
    let begin = Instant::now();
    progress.step("make hosts, pods and daemons")?;
    // A lab that fails to come up has already removed itself.
    let lab = Lab::up(options).inspect_err(|error| progress.failure(error))?;
    progress.result(&format!("ready in {:.2} s", begin.elapsed().as_secs_f64()))?;

    let result =
        steps(&lab, &interrupt, time, family, &mut progress).inspect_err(|error| progress.failure(error));
    // The lab is removed in any case, even if the output cannot be written.
    let step = progress.step("remove everything");
    let removed = lab.down().inspect_err(|error| progress.failure(error));
    let printed = removed.as_ref().map(|removed| {
        progress.result(&format!("{} processes, {} namespaces", removed.processes, removed.namespaces))
    });
    result?;
    step?;
    printed.unwrap_or(Ok(()))?;
    removed?;
    progress.line(&format!("\nAll steps succeeded in {:.0} s.", begin.elapsed().as_secs_f64()))
}

fn steps(
    lab: &Lab,
    interrupt: &Interrupt,
    time: Duration,
    family: Family,
    progress: &mut Progress<'_>,
) -> Result<(), LabError> {
    interrupt.check()?;
    progress.step("ping every pod from every pod, round trip in ms, IPv4/IPv6")?;
    let (table, answered, asked) = ping_matrix(lab)?;
    progress.result(&format!("{answered} of {asked} answered"))?;
    progress.block(&table)?;
    require(answered == asked, || format!("{} pings of {asked} were lost", asked - answered))?;

    for (inner, name) in [(Family::V4, "IPv4"), (Family::V6, "IPv6")] {
        progress.step(&format!("TCP from p1 to p2, {name}, {} s", time.as_secs()))?;
        let flow = Flow {
            from: lab.pod(1),
            to: lab.pod(2),
            family: inner,
            amount: Amount::Time(time),
            verify: true,
        };
        let transfer = Transfer::start(flow)?;
        while !transfer.is_done() {
            interrupt.sleep(Duration::from_millis(20))?;
        }
        let moved = transfer.wait()?;
        progress.result(&format!(
            "{}, {} bytes, all correct",
            rate(moved.bits_per_second()),
            grouped(moved.bytes)
        ))?;
        require(moved.bytes > 0, || "no byte arrived".into())?;
    }

    for command in ["routes", "status"] {
        progress.step(&format!("hopsack {command}, on h1"))?;
        let output = run_on_h1(lab, &[command])?;
        progress.result("")?;
        progress.block(&output)?;
    }
    interrupt.check()?;
    kill_and_restart(lab, interrupt, family, progress)?;
    // This step needs leases, which announce encryption. It is left out if the hosts already
    // encrypt.
    let can_turn_on = matches!(lab.options().store, Store::Etcd { .. });
    let encrypts = lab.options().extra_config.contains("[security]");
    if can_turn_on && !encrypts { encrypt(lab, interrupt, progress) } else { Ok(()) }
}

/// Kills h2's daemon while p1 sends to p2, starts it again, and counts what was lost.
fn kill_and_restart(
    lab: &Lab,
    interrupt: &Interrupt,
    family: Family,
    progress: &mut Progress<'_>,
) -> Result<(), LabError> {
    let (from, to, daemon) = (lab.pod(1), lab.pod(2), lab.daemon(2));
    progress.step("kill -9 the daemon of h2 while TCP and ping run, then start it again")?;
    let flow = Flow { from, to, family, amount: Amount::Time(Duration::from_secs(120)), verify: true };
    let transfer = Transfer::start(flow)?;
    let endless = Ping { count: 100_000, interval: TICK, ..Ping::to(to.address(family)) };
    let pinger = Pinger::start(&from.netns, endless)?;
    interrupt.sleep(Duration::from_secs(1))?;

    let (first, before) = (daemon.pid(), transfer.received());
    daemon.kill9()?;
    let killed = Instant::now();
    interrupt.sleep(RESTART_AFTER)?;
    daemon.start()?;
    daemon.wait_ready(Duration::from_secs(10))?;
    let ready = killed.elapsed();
    // Data that was in the socket's queue when the daemon ended may still arrive. After 0.1 s, new
    // data means that TCP continues.
    interrupt.sleep(Duration::from_millis(100))?;
    let at_ready = transfer.received();
    let flows = || transfer.received() > at_ready;
    while !flows() && !transfer.is_done() && killed.elapsed() < Duration::from_secs(30) {
        interrupt.sleep(TICK)?;
    }
    let flowed = flows();
    interrupt.sleep(Duration::from_secs(1))?;

    let pinged = pinger.stop()?;
    transfer.finish();
    if flowed {
        while !transfer.is_done() {
            interrupt.sleep(TICK)?;
        }
    }
    let moved = if flowed { Some(transfer.wait()) } else { None };
    let again = ping(&from.netns, Ping { count: 10, ..Ping::to(to.address(family)) })?;

    progress.result(&format!("ready {:.0} ms after the kill", ready.as_secs_f64() * 1e3))?;
    let pid = |pid: Option<u32>| pid.map_or("?".into(), |pid| pid.to_string());
    let lost = pinged.sent.saturating_sub(pinged.received);
    let mut table = String::new();
    let _ = writeln!(table, "daemon  process {} killed, process {} runs", pid(first), pid(daemon.pid()));
    let outage = (TICK * lost).as_secs_f64();
    let _ = writeln!(table, "ping    {} sent, {lost} lost: an outage of {outage:.2} s", pinged.sent);
    match &moved {
        Some(Ok(moved)) => {
            let (mb, stall) = (moved.bytes / 1_000_000, moved.longest_stall.as_secs_f64());
            let _ = writeln!(
                table,
                "TCP     the same connection, {mb} MB, paused for {stall:.2} s, 0 bytes wrong"
            );
        }
        Some(Err(error)) => drop(writeln!(table, "TCP     {error}")),
        None => drop(writeln!(table, "TCP     stopped: {before} bytes before the kill, none after it")),
    }
    let _ = writeln!(table, "after   {} of {} pings answered", again.received, again.sent);
    progress.block(&table)?;

    require(flowed, || "TCP did not continue after the restart".into())?;
    moved.transpose()?;
    require(again.is_whole(), || format!("pings were lost after the restart:\n{}", again.output))?;
    require(daemon.pid().is_some() && daemon.pid() != first, || "no new daemon runs on h2".into())
}

/// Turns on encryption between h1 and h2 while TCP runs, and captures frames before and after.
fn encrypt(lab: &Lab, interrupt: &Interrupt, progress: &mut Progress<'_>) -> Result<(), LabError> {
    progress.step(&format!("send {TEXT:?} from p1 to p2, and capture the frames between the hosts"))?;
    let clear = send_and_capture(lab, interrupt)?;
    progress.result(&clear.to_string())?;
    require(clear.arrived == TEXT_COUNT && clear.with_text > 0, || {
        "the capture saw no frame with the text".into()
    })?;

    progress.step("set security.mode = \"sealed\" on h1, then on h2; restart each while TCP runs")?;
    let amount = Amount::Time(Duration::from_secs(120));
    let flow = Flow { from: lab.pod(1), to: lab.pod(2), family: Family::V4, amount, verify: true };
    let transfer = Transfer::start(flow)?;
    for daemon in [lab.daemon(1), lab.daemon(2)] {
        let path = daemon.config_path();
        let what = || LabError::io(format!("write {}", path.display()));
        let config = std::fs::read_to_string(&path).map_err(what())?;
        std::fs::write(&path, config + "\n[security]\nmode = \"sealed\"\n").map_err(what())?;
        daemon.terminate()?;
        daemon.start()?;
        daemon.wait_ready(READY_TIMEOUT)?;
    }
    let begin = Instant::now();
    let explain = Request::Explain { address: lab.pod(2).v4.into() };
    while lab.daemon(1).query::<Explanation>(explain)?.keys.is_none() && begin.elapsed() < READY_TIMEOUT {
        interrupt.sleep(TICK)?;
    }
    let (sealed, before) = (begin.elapsed(), transfer.received());
    while transfer.received() == before && !transfer.is_done() && begin.elapsed() < READY_TIMEOUT {
        interrupt.sleep(TICK)?;
    }
    transfer.finish();
    let moved = transfer.wait()?;
    progress.result(&format!("keys agreed {:.0} ms after the second start", sealed.as_secs_f64() * 1e3))?;
    let (mb, stall) = (moved.bytes / 1_000_000, moved.longest_stall.as_secs_f64());
    progress
        .block(&format!("TCP     the same connection, {mb} MB, paused for {stall:.2} s, 0 bytes wrong"))?;

    progress.step("send the text again")?;
    let sealed = send_and_capture(lab, interrupt)?;
    progress.result(&sealed.to_string())?;
    require(sealed.arrived == TEXT_COUNT && sealed.frames > 0, || "the text did not arrive".into())?;
    require(sealed.with_text == 0, || {
        "a frame between the hosts contains the text, which should be encrypted".into()
    })?;
    for command in [&["peers"][..], &["explain", &lab.pod(2).v4.to_string()]] {
        progress.step(&format!("hopsack {}, on h1", command.join(" ")))?;
        let output = run_on_h1(lab, command)?;
        progress.result("")?;
        progress.block(&output)?;
    }
    Ok(())
}

/// Pings between all pairs of pods in both families, at the same time for each sender. Returns the
/// table, the number of replies and the number of requests.
fn ping_matrix(lab: &Lab) -> Result<(String, u32, u32), LabError> {
    let pods: Vec<_> = lab.hosts().iter().map(|host| &host.pod).collect();
    let mut table = String::from("       ");
    for pod in &pods {
        let _ = write!(table, "{:>12}", format!("to {}", pod.name));
    }
    let (mut answered, mut asked) = (0, 0);
    for from in &pods {
        let row = thread::scope(|scope| {
            let families = [Family::V4, Family::V6];
            let ping_to = |address| scope.spawn(move || ping(&from.netns, Ping::to(address)));
            let running: Vec<_> =
                pods.iter().map(|to| families.map(|family| ping_to(to.address(family)))).collect();
            let joined = running.into_iter().map(|pair| pair.map(|ping| ping.join()));
            joined.collect::<Vec<_>>()
        });
        let _ = write!(table, "\n{:<7}", from.name);
        for pair in row {
            let mut cell = Vec::new();
            for pinged in pair {
                let panicked = |_| LabError::Demo("a ping panicked".into());
                let pinged = pinged.map_err(panicked)??;
                answered += pinged.received;
                asked += pinged.sent;
                let average = pinged.average_ms.filter(|_| pinged.is_whole());
                cell.push(average.map_or("LOST".into(), |average| format!("{average:.2}")));
            }
            let _ = write!(table, "{:>12}", cell.join("/"));
        }
    }
    Ok((table, answered, asked))
}

/// Output of an operator's command on h1.
fn run_on_h1(lab: &Lab, command: &[&str]) -> Result<String, LabError> {
    let mut hopsack = Command::new(&lab.options().binary);
    hopsack.args(command).arg("--config").arg(lab.daemon(1).config_path()).stdin(Stdio::null());
    let line = format!("hopsack {}", command.join(" "));
    let output = own_session(&mut hopsack).output().map_err(LabError::io(format!("run {line}")))?;
    programs::succeed(&line, &output)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn require(condition: bool, otherwise: impl FnOnce() -> String) -> Result<(), LabError> {
    if condition { Ok(()) } else { Err(LabError::Demo(otherwise())) }
}

fn rate(bits_per_second: f64) -> String {
    match bits_per_second {
        fast if fast >= 1e9 => format!("{:.2} Gbit/s", fast / 1e9),
        slow => format!("{:.0} Mbit/s", slow / 1e6),
    }
}

/// `1234567` as `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Prints each step before it runs, and its result on the same line.
struct Progress<'a> {
    out: &'a mut dyn Write,
    step: u32,
}

impl Progress<'_> {
    fn step(&mut self, what: &str) -> Result<(), LabError> {
        self.step += 1;
        self.write(&format!("{}. {what} ... ", self.step))
    }

    fn result(&mut self, what: &str) -> Result<(), LabError> {
        self.line(what)
    }

    /// Ends the line of a step that failed. The caller prints the error.
    fn failure(&mut self, error: &LabError) {
        let word = if matches!(error, LabError::Interrupted) { "interrupted" } else { "FAILED" };
        // A failed write changes nothing, because there already is an error.
        let _ = self.line(word);
    }

    /// Prints indented lines below a step.
    fn block(&mut self, text: &str) -> Result<(), LabError> {
        text.trim_end().lines().try_for_each(|line| self.line(&format!("     {line}")))
    }

    fn line(&mut self, text: &str) -> Result<(), LabError> {
        self.write(&format!("{text}\n"))
    }

    fn write(&mut self, text: &str) -> Result<(), LabError> {
        // A closed output (`| head`) is an error like any other: the lab is removed on the way out.
        let written = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
        written.map_err(LabError::io("write to the terminal"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_formatted() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(rate(2.345e9), "2.35 Gbit/s");
        assert_eq!(rate(87.4e6), "87 Mbit/s");
    }
}
