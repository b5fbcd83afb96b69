//! The demo: what an overlay is for, shown in a minute and on one screen.
//!
//! Three hosts come up, all pods ping each other, TCP moves between two of them, one daemon is killed while packets flow
//! and started again, two hosts begin to encrypt, and everything is removed. Invariant: [`run`] returns `Ok` only if every step held, and whichever
//! way it returns, the lab is gone.

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
use crate::packet::Family;
use crate::sys::process::own_session;
use capture::{TIMES, WORDS, overhear};

/// The matrix of pings has to fit a screen.
pub const MAX_HOSTS: u8 = 9;

/// What systemd waits before it starts a service again, unless told otherwise (`systemd.service(5)`, RestartSec=).
const RESTART_AFTER: Duration = Duration::from_millis(100);

/// Time between two pings while a daemon is killed: the resolution of "what was lost".
const TICK: Duration = Duration::from_millis(10);

/// Runs the demo in a lab that `options` describe, and tells about it on `out`. TCP runs for `time` in each family.
///
/// # Errors
/// The first step that did not hold, or [`LabError::Interrupted`].
pub fn run(options: Options, time: Duration, out: &mut dyn Write) -> Result<(), LabError> {
    let (interrupt, family) = (options.interrupt.clone(), options.underlay);
    let said = LabError::io("write to the terminal");
    let inside = if family == Family::V4 { "IPv4" } else { "IPv6" };
    let header = format!("hopsack lab demo: {} hosts, {inside} outside, IPv4 and IPv6 inside", options.hosts);
    writeln!(out, "{header}\n").map_err(said)?;

    let mut show = Show { out, step: 0 };
    let begin = Instant::now();
    show.step("hosts, pods and daemons")?;
    // A lab that fails to come up is removed by the time that we know.
    let lab = Lab::up(options).inspect_err(|error| show.failure(error))?;
    show.result(&format!("ready in {:.2} s", begin.elapsed().as_secs_f64()))?;

    let shown = steps(&lab, &interrupt, time, family, &mut show).inspect_err(|error| show.failure(error));
    // Whatever happened, and even if it cannot be told, the lab is removed.
    let telling = show.step("remove everything");
    let removed = lab.down().inspect_err(|error| show.failure(error));
    let told = removed.as_ref().map(|removed| {
        show.result(&format!("{} processes, {} namespaces", removed.processes, removed.namespaces))
    });
    shown?;
    telling?;
    told.unwrap_or(Ok(()))?;
    removed?;
    show.line(&format!("\nEvery step held, in {:.0} s.", begin.elapsed().as_secs_f64()))
}

fn steps(
    lab: &Lab,
    interrupt: &Interrupt,
    time: Duration,
    family: Family,
    show: &mut Show<'_>,
) -> Result<(), LabError> {
    interrupt.check()?;
    show.step("ping every pod from every pod, ms IPv4/IPv6")?;
    let (table, answered, asked) = ping_matrix(lab)?;
    show.result(&format!("{answered} of {asked} answered"))?;
    show.block(&table)?;
    hold(answered == asked, || format!("{} pings of {asked} were lost", asked - answered))?;

    for (inner, name) in [(Family::V4, "IPv4"), (Family::V6, "IPv6")] {
        show.step(&format!("TCP from p1 to p2, {name}, {} s", time.as_secs()))?;
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
        show.result(&format!("{}, {} bytes right", rate(moved.bits_per_second()), grouped(moved.bytes)))?;
        hold(moved.bytes > 0, || "no byte arrived".into())?;
    }

    for command in ["routes", "status"] {
        show.step(&format!("hopsack {command}, asked on h1"))?;
        let told = tell(lab, &[command])?;
        show.result("")?;
        show.block(&told)?;
    }
    interrupt.check()?;
    kill_and_restart(lab, interrupt, family, show)?;
    // In a cluster file somebody has to write down what a lease tells by itself; and who encrypts from the start has shown it.
    let can_turn_on = matches!(lab.options().store, Store::Etcd { .. });
    let encrypts = lab.options().extra_config.contains("[security]");
    if can_turn_on && !encrypts { encrypt(lab, interrupt, show) } else { Ok(()) }
}

/// Kills h2's daemon while p1 talks to p2, starts it again, and counts.
fn kill_and_restart(
    lab: &Lab,
    interrupt: &Interrupt,
    family: Family,
    show: &mut Show<'_>,
) -> Result<(), LabError> {
    let (from, to, daemon) = (lab.pod(1), lab.pod(2), lab.daemon(2));
    show.step("kill -9 the daemon of h2 while TCP and ping run, start it again")?;
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
    // What lay in the socket's queue when the daemon died may still arrive; a tenth of a second later it is news.
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

    show.result(&format!("ready {:.0} ms after its death", ready.as_secs_f64() * 1e3))?;
    let pid = |pid: Option<u32>| pid.map_or("?".into(), |pid| pid.to_string());
    let lost = pinged.sent.saturating_sub(pinged.received);
    let mut table = String::new();
    let _ = writeln!(table, "daemon  process {} killed, process {} serves", pid(first), pid(daemon.pid()));
    let gone = (TICK * lost).as_secs_f64();
    let _ = writeln!(table, "ping    {} sent, {lost} lost: {gone:.2} s without a router", pinged.sent);
    match &moved {
        Some(Ok(moved)) => {
            let (mb, stall) = (moved.bytes / 1_000_000, moved.longest_stall.as_secs_f64());
            let _ = writeln!(
                table,
                "TCP     the same connection, {mb} MB, stood still for {stall:.2} s, 0 bytes wrong"
            );
        }
        Some(Err(error)) => drop(writeln!(table, "TCP     {error}")),
        None => drop(writeln!(table, "TCP     stands still: {before} bytes before, none since")),
    }
    let _ = writeln!(table, "after   {} of {} pings answered", again.received, again.sent);
    show.block(&table)?;

    hold(flowed, || "TCP did not go on after the restart".into())?;
    moved.transpose()?;
    hold(again.is_whole(), || format!("pings were lost after the restart:\n{}", again.output))?;
    hold(daemon.pid().is_some() && daemon.pid() != first, || "the daemon of h2 was not replaced".into())
}

/// Turns on encryption between h1 and h2 while TCP runs, with somebody on the cable before and after.
fn encrypt(lab: &Lab, interrupt: &Interrupt, show: &mut Show<'_>) -> Result<(), LabError> {
    show.step(&format!("send {WORDS:?} from p1 to p2, and listen on the cable"))?;
    let clear = overhear(lab, interrupt)?;
    show.result(&clear.to_string())?;
    hold(clear.arrived == TIMES && clear.shown > 0, || "the cable was not listened to".into())?;

    show.step("security.mode = \"sealed\" on h1, then on h2; restart each while TCP runs")?;
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
    let question = format!(r#"{{"command":"explain","address":"{}"}}"#, lab.pod(2).v4);
    while lab.daemon(1).ask(&question)?["keys"].is_null() && begin.elapsed() < READY_TIMEOUT {
        interrupt.sleep(TICK)?;
    }
    let (sealed, before) = (begin.elapsed(), transfer.received());
    while transfer.received() == before && !transfer.is_done() && begin.elapsed() < READY_TIMEOUT {
        interrupt.sleep(TICK)?;
    }
    transfer.finish();
    let moved = transfer.wait()?;
    show.result(&format!("keys {:.0} ms after the second start", sealed.as_secs_f64() * 1e3))?;
    let (mb, stall) = (moved.bytes / 1_000_000, moved.longest_stall.as_secs_f64());
    show.block(&format!(
        "TCP     the same connection, {mb} MB, stood still for {stall:.2} s, 0 bytes wrong"
    ))?;

    show.step("send it again")?;
    let sealed = overhear(lab, interrupt)?;
    show.result(&sealed.to_string())?;
    hold(sealed.arrived == TIMES && sealed.frames > 0, || "the words did not arrive".into())?;
    hold(sealed.shown == 0, || "the cable shows what should be sealed".into())?;
    for command in [&["peers"][..], &["explain", &lab.pod(2).v4.to_string()]] {
        show.step(&format!("hopsack {}, asked on h1", command.join(" ")))?;
        let told = tell(lab, command)?;
        show.result("")?;
        show.block(&told)?;
    }
    Ok(())
}

/// All pairs, both families, at the same time. Returns the table, and pings answered and asked.
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

/// What an operator's command prints on h1.
fn tell(lab: &Lab, command: &[&str]) -> Result<String, LabError> {
    let mut hopsack = Command::new(&lab.options().binary);
    hopsack.args(command).arg("--config").arg(lab.daemon(1).config_path()).stdin(Stdio::null());
    let said = format!("hopsack {}", command.join(" "));
    let output = own_session(&mut hopsack).output().map_err(LabError::io(format!("run {said}")))?;
    programs::succeed(&said, &output)?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn hold(held: bool, otherwise: impl FnOnce() -> String) -> Result<(), LabError> {
    if held { Ok(()) } else { Err(LabError::Demo(otherwise())) }
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

/// Tells each step before it is done, and its result after, on the same line.
struct Show<'a> {
    out: &'a mut dyn Write,
    step: u32,
}

impl Show<'_> {
    fn step(&mut self, what: &str) -> Result<(), LabError> {
        self.step += 1;
        self.write(&format!("{}. {what} ... ", self.step))
    }

    fn result(&mut self, what: &str) -> Result<(), LabError> {
        self.line(what)
    }

    /// Ends the line of a step that did not hold; the error itself is told by who gets it.
    fn failure(&mut self, error: &LabError) {
        let word = if matches!(error, LabError::Interrupted) { "interrupted" } else { "FAILED" };
        // Whether the terminal takes it changes nothing: there is an error already.
        let _ = self.line(word);
    }

    /// Lines below a step, indented.
    fn block(&mut self, text: &str) -> Result<(), LabError> {
        text.trim_end().lines().try_for_each(|line| self.line(&format!("     {line}")))
    }

    fn line(&mut self, text: &str) -> Result<(), LabError> {
        self.write(&format!("{text}\n"))
    }

    fn write(&mut self, text: &str) -> Result<(), LabError> {
        // A reader that went away (`| head`) is a failure like any other: the lab is removed on the way out.
        let written = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
        written.map_err(LabError::io("write to the terminal"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(rate(2.345e9), "2.35 Gbit/s");
        assert_eq!(rate(87.4e6), "87 Mbit/s");
    }
}
