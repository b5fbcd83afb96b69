//! Runs the program on single frames, without devices: for tests, and for the check whether this
//! kernel runs it as it should (BPF_PROG_TEST_RUN).
//!
//! It attaches nothing, and nothing that it does reaches a network.
//!
//! Invariant: the maps are its own. The object is the one that is attached elsewhere; only the
//! number of bytes before the IP header on the overlay device differs, because the kernel puts an
//! Ethernet header in front of each frame that it is given.

use std::time::Duration;

use aya::Ebpf;
use aya::programs::{TestRun, TestRunOptions};

use super::counters::Counters;
use super::error::{FastPathError, chain};
use super::layout::Settings;
use super::maps::Maps;
use super::object;
use super::routes::Routes;

/// Bytes of an Ethernet header.
const ETHERNET: u32 = 14;
/// Bytes of `struct __sk_buff`, up to and with `gso_size`.
const CONTEXT_BYTES: usize = 180;
/// Offset of `gso_segs` and `gso_size` in it.
const GSO_SEGS: usize = 164;
const GSO_SIZE: usize = 176;

/// Which program runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The program at the overlay device.
    Egress,
    /// The program at the underlay device.
    Ingress,
}

/// What the program did with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The daemon gets the frame.
    Passed,
    /// The program sends the frame on.
    Accepted,
    /// The program drops the frame.
    Dropped,
    /// The program has returned another value, which it never should.
    Unknown(u32),
}

/// A loaded program that is attached nowhere.
#[derive(Debug)]
pub struct Trial {
    ebpf: Ebpf,
    maps: Maps,
    out: Vec<u8>,
}

impl Trial {
    /// Loads the program with these settings and routes.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn load(settings: &Settings, routes: &Routes) -> Result<Self, FastPathError> {
        let mut ebpf = object::load(None, ETHERNET)?;
        let mut maps = Maps::take(&mut ebpf)?;
        maps.set(settings)?;
        maps.apply(routes)?;
        maps.renew(Duration::from_secs(3600))?;
        Ok(Self { ebpf, maps, out: vec![0; 0x1_0100] })
    }

    /// Runs a program on an Ethernet frame. `gso_size` is the payload of each segment of a super
    /// packet, or 0. Returns the frame as the program has left it, too.
    ///
    /// # Errors
    /// The kernel takes no such frame.
    pub fn run(&mut self, way: Way, frame: &[u8], gso_size: u32) -> Result<(Verdict, &[u8]), FastPathError> {
        let mut context = [0; CONTEXT_BYTES];
        context[GSO_SIZE..GSO_SIZE + 4].copy_from_slice(&gso_size.to_le_bytes());
        context[GSO_SEGS..GSO_SEGS + 4].copy_from_slice(&u32::from(gso_size != 0).to_le_bytes());
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut self.out),
            ctx_in: (gso_size != 0).then_some(&context),
            ..TestRunOptions::new()
        };
        let name = match way {
            Way::Egress => object::EGRESS,
            Way::Ingress => object::INGRESS,
        };
        let result = object::program(&mut self.ebpf, name)?
            .test_run(options)
            .map_err(|error| FastPathError::Run(chain(&error)))?;
        let verdict = match result.return_value {
            u32::MAX => Verdict::Passed,
            2 => Verdict::Dropped,
            7 => Verdict::Accepted,
            other => Verdict::Unknown(other),
        };
        Ok((verdict, &self.out[..result.data_size_out as usize]))
    }

    /// Lets the program work for this long from now on; zero suspends it.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn renew(&mut self, valid_for: Duration) -> Result<(), FastPathError> {
        self.maps.renew(valid_for)
    }

    /// What was counted.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn counters(&self) -> Result<Counters, FastPathError> {
        self.maps.counters()
    }
}
