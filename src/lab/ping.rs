//! Ping: sends pings from a namespace and counts the replies.
//!
//! It runs the `ping` of iputils and reads its summary. It sends nothing itself.

use std::io;
use std::net::IpAddr;
use std::process::{Child, Stdio};
use std::time::Duration;

use super::error::LabError;
use super::programs;
use crate::sys::process::{Process, Signal, own_session};

/// Options of a ping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ping {
    /// Destination address.
    pub to: IpAddr,
    /// Number of requests.
    pub count: u32,
    /// Time between two requests.
    pub interval: Duration,
    /// ICMP payload in bytes. The packet is 28 bytes longer with IPv4, 48 with IPv6.
    pub payload: u16,
    /// Whether fragmentation is forbidden (`-M do`).
    pub dont_fragment: bool,
}

impl Ping {
    /// Three small requests, 20 ms apart.
    #[must_use]
    pub fn to(to: impl Into<IpAddr>) -> Self {
        let interval = Duration::from_millis(20);
        Self { to: to.into(), count: 3, interval, payload: 56, dont_fragment: false }
    }
}

/// Result of a ping.
#[derive(Debug, Clone, PartialEq)]
pub struct Pinged {
    /// Number of requests that were sent.
    pub sent: u32,
    /// Number of replies, without duplicates.
    pub received: u32,
    /// Number of duplicate replies.
    pub duplicates: u32,
    /// Number of ICMP errors that came back.
    pub errors: u32,
    /// Average round trip in milliseconds; none without a reply.
    pub average_ms: Option<f64>,
    /// Complete output of the program.
    pub output: String,
}

impl Pinged {
    /// Whether every request was answered exactly once.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.sent > 0 && self.received == self.sent && self.duplicates == 0 && self.errors == 0
    }

    /// Whether every request but the last was answered.
    fn lacks_only_its_last(&self) -> bool {
        let has_last = self.output.contains(&format!("icmp_seq={} ", self.sent));
        let is_clean = self.duplicates == 0 && self.errors == 0;
        self.received > 0 && self.received + 1 == self.sent && is_clean && !has_last
    }
}

/// Pings from a namespace and waits for the end, which is 2 s after the last request if no reply
/// comes.
///
/// `ping` waits only two of the longest round trips for its last reply, if there were any (ping(8),
/// -W), which may be less than 1 ms. A busy machine takes longer, so a ping that lacks only its
/// last reply is repeated once.
///
/// # Errors
/// `ping` could not run, or could not send. Lost replies are not an error.
pub fn ping(netns: &str, how: Ping) -> Result<Pinged, LabError> {
    let pinged = Pinger::start(netns, how)?.wait()?;
    if pinged.lacks_only_its_last() { Pinger::start(netns, how)?.wait() } else { Ok(pinged) }
}

/// A running ping. It is killed when it is dropped.
#[derive(Debug)]
pub struct Pinger(Option<Child>);

impl Pinger {
    /// Starts pinging from a namespace.
    ///
    /// # Errors
    /// The program could not be run.
    pub fn start(netns: &str, how: Ping) -> Result<Self, LabError> {
        let Ping { to, count, interval, payload, dont_fragment } = how;
        let numbers = [count.to_string(), interval.as_secs_f64().to_string(), payload.to_string()];
        let [count, interval, payload] = numbers.each_ref().map(String::as_str);
        let to = to.to_string();
        let mut argv = vec!["ping", "-n", "-W", "2", "-c", count, "-i", interval, "-s", payload];
        argv.extend(if dont_fragment { ["-M", "do"].as_slice() } else { &[] });
        argv.push(&to);
        let mut command = programs::command_in(netns, &argv);
        command.env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        own_session(&mut command).spawn().map(|child| Self(Some(child))).map_err(LabError::io("run ping"))
    }

    /// Ends the ping early, as Ctrl-C does, and returns its result.
    ///
    /// # Errors
    /// See [`ping`].
    pub fn stop(self) -> Result<Pinged, LabError> {
        if let Some(child) = &self.0 {
            // The child is not reaped yet, so no other process can have its number.
            let interrupted = Process::open(child.id()).and_then(|process| process.signal(Signal::Interrupt));
            interrupted.map_err(LabError::io("stop ping"))?;
        }
        self.wait()
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// See [`ping`].
    pub fn wait(mut self) -> Result<Pinged, LabError> {
        let child = self.0.take().ok_or_else(|| LabError::io("run ping")(io::ErrorKind::NotFound.into()))?;
        let output = child.wait_with_output().map_err(LabError::io("run ping"))?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let printed = printed + &String::from_utf8_lossy(&output.stderr);
        parse(printed).map_err(|printed| LabError::Command { command: "ping".into(), stderr: printed })
    }
}

impl Drop for Pinger {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // This fails if the process has already ended, which is fine.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Reads the summary of iputils' ping. Returns the text as error if it contains no summary.
fn parse(output: String) -> Result<Pinged, String> {
    let Some(line) = output.lines().find(|line| line.contains(" packets transmitted")) else {
        return Err(output.trim().to_owned());
    };
    // "5 packets transmitted, 4 received, +1 duplicates, +2 errors, 20% packet loss, time 81ms"
    let number = |what: &str| -> u32 {
        let part = line.split(", ").find(|part| part.contains(what)).unwrap_or_default();
        let digits = part.trim_start_matches('+').split(' ').next().unwrap_or_default();
        digits.parse().unwrap_or(0)
    };
    let (sent, received) = (number("transmitted"), number("received"));
    let (duplicates, errors) = (number("duplicates"), number("errors"));
    // "rtt min/avg/max/mdev = 0.021/0.027/0.033/0.004 ms"
    let times = output.lines().find_map(|line| line.strip_prefix("rtt ")?.split_once(" = "));
    let average_ms = times.and_then(|(_, times)| times.split('/').nth(1)?.parse().ok());
    Ok(Pinged { sent, received, duplicates, errors, average_ms, output })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ping_summary_is_parsed() {
        let text = "5 packets transmitted, 4 received, +1 duplicates, +2 errors, 20% packet loss, time 81ms\n\
                    rtt min/avg/max/mdev = 0.021/0.027/0.033/0.004 ms\n";
        let pinged = parse(text.into()).unwrap();
        assert_eq!((pinged.sent, pinged.received, pinged.duplicates, pinged.errors), (5, 4, 1, 2));
        assert_eq!(pinged.average_ms, Some(0.027));
        assert!(!pinged.is_whole());
        let lost = parse("3 packets transmitted, 0 received, 100% packet loss, time 40ms".into()).unwrap();
        assert_eq!((lost.received, lost.average_ms), (0, None));
        assert_eq!(parse("ping: unknown host".into()), Err("ping: unknown host".into()));
    }

    #[test]
    fn only_a_ping_without_its_last_reply_is_repeated() {
        let summary = "3 packets transmitted, 2 received, 33% packet loss, time 40ms";
        let ping = |replies: &str| parse(format!("{replies}\n{summary}")).expect("a summary");
        assert!(ping("icmp_seq=1 ttl=62\nicmp_seq=2 ttl=62").lacks_only_its_last());
        assert!(!ping("icmp_seq=1 ttl=62\nicmp_seq=3 ttl=62").lacks_only_its_last());
    }
}
