//! Tests of sealing, opening, rekeying and replays over two sessions that share their secrets.

use super::super::error::{OpenError, SealError};
use super::super::header::{Header, OVERHEAD};
use super::super::limits::MOST_PACKETS;
use super::super::role::Role;
use super::Suite::{Aes256Gcm, ChaCha20Poly1305};
use super::*;
use crate::packet::Train;

const START: Nanos = Nanos::from_secs(1_000);

fn later(seconds: u64) -> Nanos {
    START + Duration::from_secs(seconds)
}

/// Both ends of a session, and the number of their handshakes, each of which has a secret of its
/// own.
struct Pair {
    here: Session,
    there: Session,
    handshakes: u8,
}

impl Pair {
    fn new() -> Self {
        let pair = || Session::new(Lifetime::default());
        Self { here: pair(), there: pair(), handshakes: 0 }
    }

    /// Makes a handshake up to the installation of the keys.
    fn install(&mut self, suite: Suite, now: Nanos) -> u8 {
        self.handshakes += 1;
        let hello = |session: &Session, workers| Hello { aes: suite == Aes256Gcm, ..session.hello(workers) };
        let (ours, theirs) = (hello(&self.here, 2), hello(&self.there, 3));
        let secret = || Secret::new([self.handshakes; 32], [0; 32]);
        let here = Agreement::of(&ours, &theirs, Role::Initiator);
        self.here.install(here, &secret(), now).expect("new");
        let there = Agreement::of(&theirs, &ours, Role::Responder);
        self.there.install(there, &secret(), now).expect("new");
        assert_eq!(here.suite, suite);
        here.epoch
    }

    fn handshake(&mut self, suite: Suite, now: Nanos) -> u8 {
        let epoch = self.install(suite, now);
        self.here.activate(epoch, now);
        self.there.activate(epoch, now);
        epoch
    }
}

/// Seals one packet on a worker.
fn seal(session: &Session, worker: usize, packet: &[u8], now: Nanos) -> Result<Vec<u8>, SealError> {
    let mut out = vec![0xaa; packet.len() + OVERHEAD];
    session.keys().seal(worker, Train::single(packet), &mut out, now).map(|train| train.bytes.to_vec())
}

fn open(session: &Session, datagram: &[u8], now: Nanos) -> Result<Vec<u8>, OpenError> {
    let mut out = [0; 2000];
    session.keys().open(datagram, &mut out, now).map(<[u8]>::to_vec)
}

#[test]
fn a_sealed_packet_opens_once() {
    for suite in [Aes256Gcm, ChaCha20Poly1305] {
        let mut pair = Pair::new();
        assert_eq!(seal(&pair.here, 0, b"early", START), Err(SealError::NoKey));
        pair.handshake(suite, START);
        for (from, to, workers) in [(&pair.here, &pair.there, 2), (&pair.there, &pair.here, 3)] {
            for worker in 0..workers {
                for packet in [&b""[..], b"x", &[7; 1444]] {
                    let datagram = seal(from, worker, packet, START).expect("keys");
                    assert_eq!(datagram.len(), packet.len() + OVERHEAD);
                    assert!(packet.len() < 2 || !datagram.windows(packet.len()).any(|part| part == packet));
                    assert_eq!(open(to, &datagram, START).as_deref(), Ok(packet));
                    assert_eq!(open(to, &datagram, START), Err(OpenError::Replayed));
                    assert!(open(from, &datagram, START).is_err(), "the sender cannot open its own datagram");
                }
            }
            assert_eq!(seal(from, workers, b"x", START), Err(SealError::NoKey), "no such worker");
        }
        let status = pair.here.status(later(9)).expect("keys");
        let age = Duration::from_secs(9);
        assert_eq!((status.suite, status.epoch, status.age, status.packets), (suite, 1, age, 6));
        assert_eq!(status.name, pair.there.status(START).expect("keys").name);
    }
}

#[test]
fn a_train_is_sealed_packet_by_packet() {
    let mut pair = Pair::new();
    pair.handshake(Aes256Gcm, START);
    let (packet, short) = ([1u8; 100], [2u8; 40]);
    let bytes = [&packet[..], &packet, &short].concat();
    let train = Train { bytes: &bytes, stride: 100 };
    let mut out = vec![0xaa; 240 + 3 * OVERHEAD];
    assert_eq!(
        pair.here.keys().seal(1, train, &mut out[1..], START).map(drop),
        Err(SealError::NoRoom),
        "one byte too few"
    );
    let sealed = pair.here.keys().seal(1, train, &mut out, START).map(|train| train.stride);
    assert_eq!(sealed, Ok(100 + OVERHEAD));
    let opened: Vec<_> = out.chunks(100 + OVERHEAD).map(|one| open(&pair.there, one, START)).collect();
    assert_eq!(opened, [Ok(packet.to_vec()), Ok(packet.to_vec()), Ok(short.to_vec())]);
    let counters = out.chunks(100 + OVERHEAD).map(|one| Header::parse(one).expect("whole").counter);
    assert_eq!(counters.collect::<Vec<_>>(), [1, 2, 3]);
}

#[test]
fn flipped_bits_are_refused_and_move_no_window() {
    for suite in [Aes256Gcm, ChaCha20Poly1305] {
        let mut pair = Pair::new();
        pair.handshake(suite, START);
        let datagram = seal(&pair.here, 0, &[9; 60], START).expect("keys");
        for bit in 0..datagram.len() * 8 {
            let mut flipped = datagram.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let expected = match bit / 8 {
                0 | 3 => &[OpenError::Malformed][..],
                1 => &[OpenError::NoKey],
                2 => &[OpenError::NoKey, OpenError::Unauthentic],
                4..12 => &[OpenError::Unauthentic, OpenError::Replayed],
                _ => &[OpenError::Unauthentic],
            };
            let refused = open(&pair.there, &flipped, START).expect_err("one bit is wrong");
            assert!(expected.contains(&refused), "bit {bit}: {refused:?}");
        }
        for length in 0..datagram.len() {
            assert!(open(&pair.there, &datagram[..length], START).is_err(), "{length} bytes");
        }
        assert!(open(&pair.there, &[&datagram[..], &[0]].concat(), START).is_err(), "one byte more");
        assert_eq!(open(&pair.there, &datagram, START), Ok(vec![9; 60]), "forgeries moved no window");
    }
}

#[test]
fn replays_are_refused_across_reorder_and_rekey() {
    let mut pair = Pair::new();
    pair.handshake(Aes256Gcm, START);
    let number = |datagram: usize| datagram.to_be_bytes().to_vec();
    let recorded: Vec<_> =
        (0..10_000).map(|n| seal(&pair.here, 0, &number(n), START).expect("keys")).collect();
    // Every seventh datagram is delayed on its way.
    let first: Vec<_> = (0..10_000).filter(|n| n % 7 != 0).collect();
    for n in &first {
        assert_eq!(open(&pair.there, &recorded[*n], START), Ok(number(*n)));
    }
    for n in (0..10_000).rev() {
        let is_late = n % 7 == 0 && n + 8192 > 9_999;
        let result = open(&pair.there, &recorded[n], START);
        assert_eq!(result, if is_late { Ok(number(n)) } else { Err(OpenError::Replayed) }, "{n}");
    }
    pair.handshake(Aes256Gcm, later(1));
    for seconds in [1, 30] {
        let all = recorded.iter().map(|datagram| open(&pair.there, datagram, later(seconds)));
        assert!(all.into_iter().all(|result| result == Err(OpenError::Replayed)));
    }
    assert_eq!(open(&pair.there, &recorded[0], later(31)), Err(OpenError::NoKey));
    // A restarted receiver has other keys in every epoch.
    let mut after = Pair::new();
    after.handshakes = 100;
    after.handshake(Aes256Gcm, later(2));
    assert!(
        recorded.iter().all(|datagram| open(&after.there, datagram, later(2)) == Err(OpenError::Unauthentic))
    );
}

#[test]
fn rekey_loses_nothing_and_ends_the_old_epoch() {
    let mut pair = Pair::new();
    let first = pair.handshake(Aes256Gcm, START);
    let late = seal(&pair.here, 0, b"late", START).expect("keys");
    let too_late = seal(&pair.here, 0, b"too late", START).expect("keys");

    let second = pair.install(ChaCha20Poly1305, later(10));
    assert_ne!(first, second);
    let between = seal(&pair.here, 0, b"between", later(10)).expect("keys");
    assert_eq!(
        Header::parse(&between).expect("whole").epoch,
        first,
        "the peer has not confirmed the new keys"
    );
    assert_eq!(open(&pair.there, &between, later(10)).as_deref(), Ok(&b"between"[..]));
    pair.here.activate(second, later(10));
    let new = seal(&pair.here, 0, b"new", later(10)).expect("keys");
    assert_eq!(Header::parse(&new).expect("whole"), Header { epoch: second, key: 0, counter: 1 });
    assert_eq!(open(&pair.there, &new, later(10)).as_deref(), Ok(&b"new"[..]));

    // Our confirmation was lost, but our sealed datagrams confirm the keys too.
    pair.there.tick(later(11));
    let answer = seal(&pair.there, 0, b"answer", later(11)).expect("keys");
    assert_eq!(Header::parse(&answer).expect("whole").epoch, second);
    assert_eq!(open(&pair.there, &late, later(40)).as_deref(), Ok(&b"late"[..]));
    assert_eq!(open(&pair.there, &too_late, later(41)), Err(OpenError::NoKey));
    pair.there.tick(later(41));
    assert_eq!(pair.there.hello(1).epochs, [second]);
    assert_eq!(pair.there.status(later(41)).map(|status| status.rekeys), Some(1));
}

#[test]
fn frequent_rekeys_keep_few_epochs() {
    let mut pair = Pair::new();
    for second in 0..600 {
        pair.handshakes = u8::try_from(second % 200).expect("small");
        if second >= 200 {
            // The same secrets come again because of a bug: they are refused.
            let (ours, theirs) = (pair.here.hello(1), pair.there.hello(1));
            let agreement = Agreement::of(&ours, &theirs, Role::Initiator);
            let secret = Secret::new([pair.handshakes + 1; 32], [0; 32]);
            assert_eq!(pair.here.install(agreement, &secret, later(second)), Err(InstallError::Known));
            continue;
        }
        let datagram = seal(&pair.here, 0, b"before", later(second));
        pair.handshake(Aes256Gcm, later(second));
        if let Ok(datagram) = datagram {
            assert_eq!(open(&pair.there, &datagram, later(second)).as_deref(), Ok(&b"before"[..]));
        }
        assert!(pair.here.hello(1).epochs.len() <= MOST_OPEN);
    }
}

#[test]
fn an_epoch_in_use_is_not_replaced() {
    let mut pair = Pair::new();
    let epoch = pair.handshake(Aes256Gcm, START);
    let again = Agreement { suite: Aes256Gcm, epoch, role: Role::Initiator, ours: 1, theirs: 1 };
    let refused = pair.here.install(again, &Secret::new([99; 32], [0; 32]), START);
    assert_eq!(refused, Err(InstallError::EpochInUse(epoch)));
    pair.here.activate(epoch.wrapping_add(1), START);
    assert!(
        seal(&pair.here, 0, b"x", START).is_ok(),
        "activating an epoch that is not installed changes nothing"
    );
}

#[test]
fn a_key_ends_by_packets_and_by_age() {
    let mut pair = Pair::new();
    assert!(pair.here.rekey_due(START), "there is no key yet");
    pair.handshake(Aes256Gcm, START);
    assert!(!pair.here.rekey_due(later(3599)) && pair.here.rekey_due(later(3600)));
    let use_up = |packets| pair.here.keys().sealing().expect("keys").use_up(packets);
    use_up(REKEY_PACKETS);
    assert!(pair.here.rekey_due(START));
    use_up(MOST_PACKETS - 2);
    let mut out = [0; 3 * (OVERHEAD + 1)];
    let train = Train { bytes: b"abc", stride: 1 };
    let sealed = pair.here.keys().seal(0, train, &mut out, START).map(drop);
    assert_eq!(sealed, Err(SealError::Exhausted), "a train is sealed as a whole or not at all");
    assert!(seal(&pair.here, 0, b"a", START).is_ok());
    let last = seal(&pair.here, 0, b"b", START).expect("this is the last packet of the key");
    assert_eq!(open(&pair.there, &last, START).as_deref(), Ok(&b"b"[..]));
    for _ in 0..3 {
        assert_eq!(seal(&pair.here, 0, b"c", START), Err(SealError::Exhausted));
    }
    use_up(u64::MAX);
    assert_eq!(seal(&pair.here, 0, b"c", START), Err(SealError::Exhausted));
    assert!(seal(&pair.there, 0, b"x", later(7199)).is_ok());
    assert_eq!(seal(&pair.there, 0, b"x", later(7200)), Err(SealError::Exhausted), "the key is too old");
}

#[test]
fn a_worn_key_is_removed_before_its_limit() {
    let mut pair = Pair::new();
    pair.handshake(Aes256Gcm, START);
    assert!(!pair.here.tick(later(6299)) && pair.here.keys().sealing().is_some());
    assert!(pair.here.tick(later(6300)) && pair.here.keys().sealing().is_none());
    assert!(!pair.here.tick(later(6301)), "tick reports the loss once");
    assert!(pair.here.rekey_due(later(6301)) && pair.here.status(later(6301)).is_none());
    let datagram = seal(&pair.there, 0, b"x", later(6301)).expect("keys");
    assert!(
        open(&pair.here, &datagram, later(6301)).is_ok(),
        "datagrams that the peer still seals are opened"
    );
    pair.there.keys().sealing().expect("keys").use_up(MOST_PACKETS / 8 * 7 - 1);
    assert!(!pair.there.tick(START));
    seal(&pair.there, 1, b"x", START).expect("keys");
    pair.there.keys().sealing().expect("keys").use_up(MOST_PACKETS / 8 * 7);
    assert!(pair.there.tick(START), "the packet limit removes a key too");

    // The next handshake has a new epoch, and the session has keys again.
    let epoch = pair.handshake(Aes256Gcm, later(6302));
    assert_eq!(pair.here.status(later(6302)).map(|status| status.epoch), Some(epoch));
    assert!(open(&pair.there, &seal(&pair.here, 0, b"y", later(6302)).expect("keys"), later(6302)).is_ok());
}

#[test]
fn a_forgotten_session_has_no_keys() {
    let mut pair = Pair::new();
    pair.handshake(Aes256Gcm, START);
    let datagram = seal(&pair.there, 0, b"x", START).expect("keys");
    pair.here.forget();
    assert_eq!(seal(&pair.here, 0, b"x", START), Err(SealError::NoKey));
    assert_eq!(open(&pair.here, &datagram, START), Err(OpenError::NoKey));
    assert!(pair.here.rekey_due(START));
    assert_eq!(pair.here.status(START), None);
    pair.handshake(Aes256Gcm, START);
    assert!(seal(&pair.here, 0, b"x", START).is_ok(), "a new handshake gives keys again");
}

#[test]
fn threads_never_share_a_counter() {
    let mut pair = Pair::new();
    pair.handshake(Aes256Gcm, START);
    let counters = || -> Vec<u64> {
        let one = |_| Header::parse(&seal(&pair.here, 0, b"x", START).expect("keys")).expect("whole").counter;
        (0..20_000).map(one).collect()
    };
    let mut all: Vec<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(counters)).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect()
    });
    all.sort_unstable();
    assert!(all.into_iter().eq(1..=80_000));
}

/// Compares with RustCrypto's AEADs and with the test vector of src/seal/README.md.
#[test]
fn datagrams_match_an_independent_aead() {
    use aes_gcm::aead::{Aead, KeyInit, Payload};

    let secret = || Secret::new(std::array::from_fn(|n| u8::try_from(n).expect("small")), [0; 32]);
    let hkdf = hkdf::Hkdf::<sha2::Sha256>::new(
        Some(b"hopsack sealed 1"),
        &std::array::from_fn::<u8, 32, _>(|n| u8::try_from(n).expect("small")),
    );
    let packet = [0x45, 0, 0, 20, 0, 0, 0, 0, 64, 1, 0, 0, 10, 1, 1, 2, 10, 1, 2, 2];
    for suite in [Aes256Gcm, ChaCha20Poly1305] {
        let session = Session::default();
        let agreement = Agreement { suite, epoch: 1, role: Role::Initiator, ours: 2, theirs: 1 };
        session.install(agreement, &secret(), START).expect("new");
        session.activate(1, START);
        for (worker, counter) in [(0u8, 1u64), (0, 2), (1, 1)] {
            let ours = seal(&session, worker.into(), &packet, START).expect("keys");
            let context = [suite as u8, 0, 1, worker];
            let (mut key, mut nonce) = ([0; 32], [0; 12]);
            hkdf.expand(&[b"key", &context[..]].concat(), &mut key).expect("short");
            hkdf.expand(&[b"iv", &context[..]].concat(), &mut nonce).expect("short");
            for (byte, other) in nonce[4..].iter_mut().zip(counter.to_be_bytes()) {
                *byte ^= other;
            }
            let aad = [&[0x10, 1, worker, 0][..], &counter.to_be_bytes()].concat();
            let payload = Payload { msg: &packet, aad: &aad };
            let theirs = match suite {
                Aes256Gcm => aes_gcm::Aes256Gcm::new(&key.into()).encrypt(&nonce.into(), payload),
                ChaCha20Poly1305 => {
                    chacha20poly1305::ChaCha20Poly1305::new(&key.into()).encrypt(&nonce.into(), payload)
                }
            };
            assert_eq!(ours, [aad, theirs.expect("sealed")].concat(), "{suite:?} {worker} {counter}");
            if (suite, worker, counter) == (Aes256Gcm, 0, 1) {
                let hex: String = ours.iter().map(|byte| format!("{byte:02x}")).collect();
                let line = format!("datagram = {hex}");
                assert!(include_str!("../README.md").contains(&line), "src/seal/README.md lacks {line:?}");
            }
        }
    }
}

#[test]
fn forgotten_session_activates_no_pending_keys() {
    let mut pair = Pair::new();
    let epoch = pair.install(Aes256Gcm, START);
    pair.there.activate(epoch, START);
    let datagram = seal(&pair.there, 0, b"x", START).expect("keys");
    assert!(open(&pair.here, &datagram, START).is_ok(), "keys open before they seal");
    pair.here.forget();
    // The confirmation of the handshake comes late, or the peer already seals.
    pair.here.activate(epoch, START);
    pair.here.tick(START);
    assert_eq!(seal(&pair.here, 0, b"x", START), Err(SealError::NoKey));
    assert_eq!(pair.here.status(START), None);
}

/// Threads open the same datagram at the same time. Each begins before any has ended, because it
/// takes long to open so many bytes. So the window decides, not the check before the datagram is
/// opened.
#[test]
fn only_one_thread_opens_a_datagram() {
    const THREADS: usize = 4;
    let mut pair = Pair::new();
    pair.handshake(ChaCha20Poly1305, START);
    let packet = vec![7; 60_000];
    for _ in 0..50 {
        let datagram = seal(&pair.here, 0, &packet, START).expect("keys");
        let (start, there) = (std::sync::Barrier::new(THREADS), &pair.there);
        let opened: usize = std::thread::scope(|scope| {
            let open = || {
                let mut out = vec![0; 65_536];
                start.wait();
                usize::from(there.keys().open(&datagram, &mut out, START).is_ok())
            };
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(open)).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).sum()
        });
        assert_eq!(opened, 1);
    }
}

#[test]
fn keys_of_a_revoked_certificate_are_gone() {
    let (old, new) = ([1; 32], [2; 32]);
    let (here, there) = (Session::new(Lifetime::default()), Session::new(Lifetime::default()));
    let handshake = |number: u8, certificate, until_active: bool| {
        let (ours, theirs) = (here.hello(1), there.hello(1));
        let secret = || Secret::new([number; 32], certificate);
        let agreement = Agreement::of(&ours, &theirs, Role::Initiator);
        here.install(agreement, &secret(), START).expect("new");
        there.install(Agreement::of(&theirs, &ours, Role::Responder), &secret(), START).expect("new");
        there.activate(agreement.epoch, START);
        if until_active {
            here.activate(agreement.epoch, START);
        }
        seal(&there, 0, b"x", START).expect("keys")
    };
    let by_old = handshake(1, old, true);
    let by_new = handshake(2, new, true);
    assert!(here.depends_on(&old) && here.depends_on(&new));
    here.revoke(&old);
    assert!(!here.depends_on(&old) && here.depends_on(&new));
    assert_eq!(open(&here, &by_old, START), Err(OpenError::NoKey));
    assert_eq!(open(&here, &by_new, START).as_deref(), Ok(&b"x"[..]));
    assert!(seal(&here, 0, b"x", START).is_ok() && here.status(START).is_some());

    // Keys that are installed but not in use are revoked too, and never come into use.
    let pending = handshake(3, old, false);
    here.revoke(&old);
    assert_eq!(open(&here, &pending, START), Err(OpenError::NoKey));
    here.activate(3, START);
    assert_eq!(here.keys().sealing().map(SealingKeys::epoch), Some(2));
    here.revoke(&new);
    assert_eq!(seal(&here, 0, b"x", START), Err(SealError::NoKey));
    assert!(here.status(START).is_none() && !here.depends_on(&new));
}
