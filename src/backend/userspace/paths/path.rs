//! The state of the path to one peer: outstanding requests, answers, and the search for its MTU.
//!
//! It sends nothing. Invariant: an answer counts only if its nonce is that of an outstanding
//! request.

use std::collections::VecDeque;
use std::time::Duration;

use super::answers::Answers;
use super::fragments::Fragments;
use super::probing::{Probe, Probing, Usage};
use crate::packet::control::{Control, Kind, LEN};
use crate::time::Nanos;

/// Time between two keep-alives to a peer.
const INTERVAL: Duration = Duration::from_secs(2);
/// A request without an answer is lost after this time.
const TIMEOUT: Duration = Duration::from_secs(1);
/// Lost keep-alives in a row after which a peer cannot be reached.
const LOSSES: u32 = 3;
/// A peer has traffic for this long after its last packet.
const IDLE_AFTER: Duration = Duration::from_secs(10);
/// A connection with packets in this time is expected to be made again if it is lost.
const EXPECTED_FOR: Duration = Duration::from_secs(20);
/// Requests that wait for an answer at most.
const OUTSTANDING: usize = 256;
/// Keep-alives that the loss is counted over.
const WINDOW: u32 = 32;

/// What is known of a path.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(in crate::backend::userspace) struct PathHealth {
    /// Smoothed round-trip time; `None` before the first answer.
    pub(in crate::backend::userspace) rtt: Option<Duration>,
    /// Whether probes have shown what the path takes.
    pub(in crate::backend::userspace) is_probed: bool,
    /// Share of the last keep-alives that were not answered, in percent.
    pub(in crate::backend::userspace) loss_percent: u8,
    /// For how long the peer has not answered, if it cannot be reached.
    pub(in crate::backend::userspace) silent_for: Option<Duration>,
    /// Whether the peer has never answered, and need not: it may run another version.
    pub(in crate::backend::userspace) is_unheard: bool,
    /// Why datagrams to the peer are refused: an error number.
    pub(in crate::backend::userspace) refused: Option<i32>,
}

/// The path to one peer.
#[derive(Debug)]
pub(super) struct Path {
    answers: Answers,
    probing: Probing,
    fragments: Fragments,
    outstanding: VecDeque<Request>,
    asked_at: Nanos,
    used_at: Option<Nanos>,
    /// Whether the kernel fast path may carry packets to the peer, which nobody sees.
    may_be_used: bool,
    /// When the last answer came, or when the path was new.
    heard_at: Nanos,
    /// Whether the peer must answer: its own lease says so, or it has answered before. A map file
    /// does not say which version a host runs.
    must_answer: bool,
    rtt: Option<Duration>,
    /// Whether the peer receives by the kernel fast path, by its last answer. Silence changes
    /// nothing: if the daemon of the peer has ended, the fast path still carries packets.
    is_fast: Option<bool>,
    /// The last keep-alives, one bit each, the last one lowest: 1 is lost.
    lost: u32,
    /// How many keep-alives are in `lost`.
    counted: u32,
    refused: Option<(i32, Nanos)>,
}

/// A request that waits for its answer.
#[derive(Debug, Clone, Copy)]
struct Request {
    nonce: u64,
    at: Nanos,
    purpose: Purpose,
}

/// Why a request is sent.
#[derive(Debug, Clone, Copy)]
enum Purpose {
    KeepAlive,
    Probe(Probe),
    /// It shows whether fragments arrive.
    Fragments,
}

impl Path {
    pub(super) fn new(top: u16, now: Nanos) -> Self {
        Self {
            answers: Answers::new(now),
            probing: Probing::new(top, now),
            fragments: Fragments::default(),
            outstanding: VecDeque::new(),
            asked_at: Nanos::ZERO,
            used_at: None,
            may_be_used: false,
            heard_at: now,
            must_answer: false,
            rtt: None,
            is_fast: None,
            lost: 0,
            counted: 0,
            refused: None,
        }
    }

    /// The links at the ends of the path take datagrams of this length.
    pub(super) fn set_top(&mut self, top: u16) {
        self.probing.set_top(top);
    }

    /// The lease of the peer says that it answers.
    pub(super) fn set_announced(&mut self) {
        self.must_answer = true;
    }

    /// Whether a request of the peer is answered.
    pub(super) fn may_answer(&mut self, port: u16, now: Nanos) -> bool {
        self.answers.allow(port, now)
    }

    /// A packet was sent to the peer.
    pub(super) fn used(&mut self, now: Nanos) {
        if !self.is_used(now) {
            self.probing.used_again(now);
            self.fragments.used_again();
        }
        self.used_at = Some(now);
    }

    /// The kernel fast path may carry packets to the peer, or cannot.
    pub(super) fn set_may_be_used(&mut self, may_be_used: bool) {
        self.may_be_used = may_be_used;
    }

    /// Whether the peer has had no traffic lately.
    pub(super) fn is_idle(&self, now: Nanos) -> bool {
        self.usage(now) == Usage::Idle
    }

    fn usage(&self, now: Nanos) -> Usage {
        match self.may_be_used {
            _ if self.is_used(now) => Usage::Used,
            true => Usage::Unknown,
            false => Usage::Idle,
        }
    }

    fn is_used(&self, now: Nanos) -> bool {
        self.used_at.is_some_and(|used| now.since(used) <= IDLE_AFTER)
    }

    pub(super) fn is_due(&self, now: Nanos) -> bool {
        now.since(self.asked_at) >= INTERVAL
    }

    pub(super) fn asked_at(&self) -> Nanos {
        self.asked_at
    }

    /// The next keep-alive.
    pub(super) fn keep_alive(&mut self, now: Nanos) -> Control {
        self.asked_at = now;
        self.request(Purpose::KeepAlive, 0, now)
    }

    fn request(&mut self, purpose: Purpose, length: u16, now: Nanos) -> Control {
        let mut random = [0; 8];
        // Without randomness the nonce is guessable, as any number would be.
        let _ = aws_lc_rs::rand::fill(&mut random);
        let nonce = u64::from_ne_bytes(random);
        if self.outstanding.len() == OUTSTANDING {
            self.outstanding.pop_front();
        }
        self.outstanding.push_back(Request { nonce, at: now, purpose });
        let length = length.max(u16::try_from(LEN).unwrap_or(0));
        Control { kind: Kind::Request, is_fast: false, length, nonce }
    }

    /// A reply has come from this port.
    pub(super) fn answered(&mut self, reply: Control, port: u16, now: Nanos) {
        let Some(at) = self.outstanding.iter().position(|request| request.nonce == reply.nonce) else {
            return;
        };
        let Some(request) = self.outstanding.remove(at) else { return };
        self.answers.know(port);
        (self.heard_at, self.must_answer, self.is_fast) = (now, true, Some(reply.is_fast));
        self.refused = None;
        match request.purpose {
            Purpose::Probe(probe) => self.probing.answered(probe, now),
            Purpose::Fragments => self.fragments.answered(),
            Purpose::KeepAlive => {
                self.count(false);
                let rtt = now.since(request.at);
                // It falls quickly: the first answers of a peer that is just starting come late.
                let smoothed =
                    |before| if rtt < before { (before + rtt) / 2 } else { (before * 3 + rtt) / 4 };
                self.rtt = Some(self.rtt.map_or(rtt, smoothed));
            }
        }
        self.probing.heard(now);
    }

    /// Counts requests that have waited too long as lost.
    pub(super) fn expire(&mut self, now: Nanos) {
        while let Some(oldest) = self.outstanding.front().copied()
            && now.since(oldest.at) >= TIMEOUT
        {
            self.outstanding.pop_front();
            if matches!(oldest.purpose, Purpose::KeepAlive) {
                self.count(true);
                // It was lost, but not refused.
                self.refused = self.refused.filter(|(_, at)| *at >= oldest.at);
            }
        }
    }

    /// Looks whether there is a connection to a peer that is not sent keep-alives. To be called
    /// when [`Path::is_due`]. A connection that is not needed may be closed.
    pub(super) fn connected(&mut self, is_connected: bool, now: Nanos) {
        self.asked_at = now;
        let was_used = self.used_at.is_some_and(|used| now.since(used) < EXPECTED_FOR);
        let was_lost = self.counted > 0 && self.lost & 1 == 1;
        if is_connected {
            self.heard_at = now;
            self.count(false);
        } else if was_used || was_lost {
            self.must_answer = true;
            self.count(true);
        }
    }

    fn count(&mut self, is_lost: bool) {
        self.lost = self.lost << 1 | u32::from(is_lost);
        self.counted = (self.counted + 1).min(WINDOW);
    }

    /// The kernel has refused a datagram, or an ICMP message says that the peer has. This is known
    /// until the peer answers, or a later keep-alive is lost without being refused.
    pub(super) fn refused(&mut self, errno: i32, now: Nanos) {
        // A full queue of an interface refuses nothing for long.
        if errno != libc::ENOBUFS {
            self.refused = Some((errno, now));
        }
    }

    /// Whether the peer receives by the kernel fast path; `None` before its first answer.
    pub(super) fn is_fast(&self) -> Option<bool> {
        self.is_fast
    }

    /// Whether keep-alives are lost, and nothing else was answered meanwhile.
    fn is_silent(&self, now: Nanos) -> bool {
        let are_lost = self.counted >= LOSSES && self.lost.trailing_ones() >= LOSSES;
        are_lost && now.since(self.heard_at) >= INTERVAL
    }

    pub(super) fn health(&self, now: Nanos) -> PathHealth {
        let window = if self.counted == 0 { 0 } else { u32::MAX >> (WINDOW - self.counted) };
        let lost = (self.lost & window).count_ones() * 100 / self.counted.max(1);
        PathHealth {
            rtt: self.rtt,
            is_probed: self.probing.is_known(),
            loss_percent: u8::try_from(lost).unwrap_or(100),
            silent_for: (self.must_answer && self.is_silent(now)).then(|| now.since(self.heard_at)),
            is_unheard: !self.must_answer && self.is_silent(now),
            refused: self.refused.map(|(errno, _)| errno),
        }
    }

    /// The longest datagram that the path takes, if that has changed since the last call.
    pub(super) fn take_change(&mut self) -> Option<Option<u16>> {
        self.probing.take_change()
    }

    /// The probes that are due: a round, if the last one is over, and a pair. To be called every
    /// 100 ms.
    pub(super) fn probes(&mut self, now: Nanos) -> Vec<Control> {
        let mut probes = Vec::new();
        if self.probing.ends_round(now) {
            let (usage, is_silent) = (self.usage(now), self.is_silent(now));
            self.probing.end_round(self.heard_at, usage, now);
            probes.extend(self.probing.begin_round(self.rtt, (usage, is_silent), now));
        }
        probes.extend(self.probing.pair(now).into_iter().flatten());
        let request = |probe: Probe| self.request(Purpose::Probe(probe), probe.length, now);
        probes.into_iter().map(request).collect()
    }

    /// The next probe that must be fragmented, if the path is narrower than `needed` bytes and a
    /// probe is due.
    pub(super) fn fragment_probe(&mut self, needed: u16, now: Nanos) -> Option<Control> {
        if self.probing.in_force() >= needed {
            self.fragments.forget();
            return None;
        }
        let is_due = !self.is_silent(now) && self.fragments.is_due(self.is_idle(now), now);
        is_due.then(|| self.request(Purpose::Fragments, needed, now))
    }

    /// Whether fragments arrive, if that has changed since the last call.
    pub(super) fn take_fragments_change(&mut self) -> Option<bool> {
        self.fragments.take_change()
    }

    /// Whether [`Path::probes`] has something to do.
    pub(super) fn has_probes(&self, now: Nanos) -> bool {
        self.probing.ends_round(now) || self.probing.has_pair()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn at(millis: u64) -> Nanos {
        Nanos(SECOND + millis * 1_000_000)
    }

    /// Lets time pass in steps of 100 ms. The path takes datagrams of `takes` bytes; 0: nothing
    /// arrives. Returns the reported path MTUs.
    fn pass(path: &mut Path, millis: std::ops::Range<u64>, takes: u16) -> Vec<Option<u16>> {
        pass_by(path, millis, takes, true)
    }

    /// As [`pass`], without traffic.
    fn pass_idle(path: &mut Path, millis: std::ops::Range<u64>, takes: u16) -> Vec<Option<u16>> {
        pass_by(path, millis, takes, false)
    }

    fn pass_by(path: &mut Path, millis: std::ops::Range<u64>, takes: u16, is_used: bool) -> Vec<Option<u16>> {
        let mut reports = Vec::new();
        for millis in millis.step_by(100) {
            let now = at(millis);
            path.expire(now);
            if is_used {
                path.used(now);
            }
            let mut asked = Vec::new();
            if path.is_due(now) {
                asked.push(path.keep_alive(now));
            }
            asked.extend(path.probes(now));
            reports.extend(path.take_change());
            let arrived = asked.into_iter().filter(|request| request.length <= takes);
            arrived.for_each(|request| path.answered(request.reply(false), 8285, at(millis + 5)));
        }
        reports
    }

    #[test]
    fn path_mtu_is_found_and_followed() {
        let mut path = Path::new(1472, at(0));
        assert_eq!(pass(&mut path, 0..3000, 9000), [Some(1472)]);
        assert_eq!(path.health(at(3000)).rtt, Some(Duration::from_millis(5)));
        let narrow = pass(&mut path, 3000..12_000, 1272);
        assert_eq!(narrow, [Some(1272)], "within 10 s");
        assert_eq!(path.health(at(12_000)).silent_for, None);
        assert_eq!(pass(&mut path, 12_000..120_000, 1272), []);
        assert_eq!(pass(&mut path, 120_000..190_000, 1400), [Some(1400)], "less than the top");
        assert_eq!(pass(&mut path, 190_000..220_000, 9000), [Some(1472)], "soon after a change");
    }

    /// A path without traffic is tried again when it is used.
    #[test]
    fn idle_path_is_raised_when_it_is_used() {
        let mut path = Path::new(1472, at(0));
        pass(&mut path, 0..12_000, 972);
        pass(&mut path, 12_000..40_000, 972);
        assert_eq!(path.health(at(40_000)).silent_for, None);
        assert_eq!(pass_idle(&mut path, 40_000..41_000, 1400), []);
        assert_eq!(pass(&mut path, 60_000..62_000, 1400), [Some(1400)]);
    }

    #[test]
    fn silent_peer_is_unreachable_and_says_nothing_about_the_path() {
        let mut path = Path::new(1472, at(0));
        pass(&mut path, 0..3000, 9000);
        assert_eq!(pass(&mut path, 3000..60_000, 0), []);
        let health = path.health(at(60_000));
        assert!(health.silent_for.is_some_and(|silent| silent > Duration::from_secs(50)), "{health:?}");
        assert!(health.loss_percent > 80);
        assert_eq!(pass(&mut path, 60_000..70_000, 9000), []);
        assert_eq!(path.health(at(70_000)).silent_for, None);
    }

    /// Keep-alives to many dead peers are rare. In between, the reason stays known.
    #[test]
    fn refusal_is_known_until_a_later_loss_or_an_answer() {
        let mut path = Path::new(1472, at(0));
        let refused = |path: &Path, millis| path.health(at(millis)).refused;
        path.keep_alive(at(0));
        path.refused(libc::ECONNREFUSED, at(1));
        path.expire(at(1000));
        assert_eq!(refused(&path, 90_000), Some(libc::ECONNREFUSED));
        path.keep_alive(at(90_000));
        path.expire(at(91_000));
        assert_eq!(refused(&path, 91_000), None, "it was lost, but not refused");
        path.refused(libc::EPERM, at(92_000));
        let request = path.keep_alive(at(93_000));
        path.answered(request.reply(false), 8285, at(93_001));
        assert_eq!(refused(&path, 93_001), None);
    }

    /// An idle connection may end. One with packets must not, until it is there again.
    #[test]
    fn lost_connection_is_silence_only_if_it_was_used() {
        let mut path = Path::new(1472, at(0));
        let silent = |path: &Path, seconds: u64| path.health(at(seconds * 1000)).silent_for.is_some();
        (0..10).for_each(|n| path.connected(true, at(n * 2000)));
        (10..30).for_each(|n| path.connected(false, at(n * 2000)));
        assert!(!silent(&path, 60), "it was idle");
        path.connected(true, at(60_000));
        path.used(at(61_000));
        (31..34).for_each(|n| path.connected(false, at(n * 2000)));
        assert!(silent(&path, 68));
        (34..99).for_each(|n| path.connected(false, at(n * 2000)));
        assert!(silent(&path, 200), "the cause lasts");
        path.connected(true, at(200_000));
        assert!(!silent(&path, 200));
    }

    #[test]
    fn foreign_replies_are_ignored() {
        let mut path = Path::new(1472, at(0));
        let request = path.keep_alive(at(0));
        path.answered(Control { nonce: !request.nonce, ..request.reply(false) }, 8285, at(1));
        assert_eq!(path.health(at(1)).rtt, None);
        path.answered(request.reply(false), 8285, at(2));
        assert_eq!(path.health(at(2)).rtt, Some(Duration::from_millis(2)));
    }

    #[test]
    fn last_answer_says_whether_the_peer_is_fast() {
        let mut path = Path::new(1472, at(0));
        for is_fast in [true, false, true] {
            let request = path.keep_alive(at(0));
            path.answered(request.reply(is_fast), 8285, at(1));
            assert_eq!(path.is_fast(), Some(is_fast));
        }
        path.keep_alive(at(2));
        path.expire(at(9000));
        assert_eq!(path.is_fast(), Some(true), "silence changes nothing");
    }
}
