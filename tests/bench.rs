//! The bench and the soak, run completely for a short time: every cell gets a value, every system
//! carries traffic, and nothing is left. No test asserts on speed, because the machine is busy with
//! other tests.

use std::ops::Range;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hopsack::lab::bench::{self, BenchPlan, Metric, System, Underlay};
use hopsack::lab::soak::{self, SoakPlan};
use hopsack::lab::{LabError, Options};
use hopsack::sys::process::{Process, Signal};

const HOPSACK: &str = env!("CARGO_BIN_EXE_hopsack");
const HOPSACK_LAB: &str = env!("CARGO_BIN_EXE_hopsack-lab");
const NEEDS: &str = "these tests need root, /dev/net/tun and ethtool: run scripts/test";

/// Whether the lab's namespaces and its directory are removed.
fn is_gone(name: &str) -> bool {
    let names = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let mut names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let directory = Path::new("/run/hopsack-lab").join(name);
    !names.any(|netns| netns.starts_with(&format!("hs-{name}-"))) && !directory.exists()
}

/// Values that a metric can have on any machine, in base units.
fn plausible(metric: Metric) -> Range<f64> {
    match metric {
        Metric::Tcp1 | Metric::Tcp4 => 1e6..1e12,
        // The round trips at the same time may starve the stream during this short run.
        Metric::BulkTcp | Metric::Bulk16Tcp => 0.0..1e12,
        Metric::CpuPerGb => 0.01..1e4,
        Metric::RttP50
        | Metric::RttP99
        | Metric::BulkRttP50
        | Metric::BulkRttP99
        | Metric::Bulk16RttP50
        | Metric::Bulk16RttP99 => 1e-6..1.0,
        Metric::Connects => 1.0..1e6,
        Metric::Udp64Highest
        | Metric::Udp64Carried
        | Metric::Udp64x32Highest
        | Metric::Udp64x32Carried
        | Metric::Udp1400Highest
        | Metric::Udp1400Carried
        | Metric::Udp1400x32Highest
        | Metric::Udp1400x32Carried => 10.0..1e8,
    }
}

#[test]
fn every_cell_gets_a_value() {
    let options = Options::unique("bench", HOPSACK);
    let name = options.name.clone();
    let plan = BenchPlan {
        systems: [
            System::Raw,
            System::Vxlan,
            System::Flannel,
            System::WireguardGo,
            System::Simple,
            System::Floor,
        ]
        .into(),
        underlays: vec![Underlay::Pass, Underlay::NosegGro],
        workloads: BenchPlan::full().workloads,
        repeats: 1,
        seconds: 0.2,
        awake: false,
    };
    let report = bench::run(options, &plan, &mut |_| ()).expect(NEEDS);
    assert!(is_gone(&name));
    assert!(report.broken().is_empty(), "{:?}", report.broken());
    let out: Vec<_> = report.unmeasured.iter().map(|unmeasured| unmeasured.system).collect();
    // flanneld and WireGuard are not part of the project. Without their programs they are left out.
    for (variable, system) in [("FLANNELD", System::Flannel), ("WIREGUARD_GO", System::WireguardGo)] {
        assert!(std::env::var_os(variable).is_none() || !out.contains(&system), "{out:?}");
    }
    let foreign = |system: &System| [System::Flannel, System::WireguardGo].contains(system);
    assert!(out.iter().all(foreign), "{out:?}");

    for underlay in plan.underlays {
        for system in [System::Raw, System::Vxlan, System::Simple, System::Floor] {
            for metric in Metric::ALL {
                let cell = report.cell(underlay, system, metric);
                // A busy machine may lose 1 % at every rate that is offered.
                let may_be_none = matches!(
                    metric,
                    Metric::Udp64Carried
                        | Metric::Udp64x32Carried
                        | Metric::Udp1400Carried
                        | Metric::Udp1400x32Carried
                );
                let Some(cell) = cell else {
                    assert!(may_be_none, "{underlay:?} {system:?} {metric:?} has no value");
                    continue;
                };
                assert!(
                    plausible(metric).contains(&cell.median),
                    "{underlay:?} {system:?} {metric:?}: {cell:?}"
                );
                assert_eq!(cell.samples.len(), 1);
            }
        }
        // hopsack sends packets of at most the MTU; routing and VXLAN pass on TCP's super packets
        // where the underlay takes them.
        let wire = |system| {
            let limits = report.limits.iter();
            let mut limits = limits.filter(|limit| limit.underlay == underlay && limit.system == system);
            limits.next().and_then(|limit| limit.wire_packet_bytes).expect("the run measured TCP")
        };
        for system in [System::Raw, System::Vxlan] {
            let whole = wire(system) > 2000.0;
            assert_eq!(whole, underlay == Underlay::Pass, "{underlay:?} {system:?}: {} B", wire(system));
        }
        assert!(wire(System::Simple) < 1515.0, "{}", wire(System::Simple));
    }
    let simple = report.limits.iter().find(|limit| limit.system == System::Simple);
    let simple = simple.expect("the run measured the engine simple");
    let [read, ..] = simple.packets_per_call.expect("the daemons count system calls");
    assert!((0.9..1.1).contains(&read), "a read returns one packet, not {read}");
    assert!(simple.daemon_cpus.iter().sum::<f64>() > 0.0);
}

/// The floor tunnels are the bound that missed targets are compared with.
#[test]
fn floor_tunnels_carry_traffic() {
    let options = Options::unique("bench-floor", HOPSACK);
    let plan = BenchPlan {
        systems: vec![System::Floor, System::FloorSpin],
        underlays: vec![Underlay::Pass],
        workloads: vec![bench::Workload::Rtt, bench::Workload::Connects],
        repeats: 1,
        seconds: 0.2,
        awake: false,
    };
    let report = bench::run(options, &plan, &mut |_| ()).expect(NEEDS);
    assert!(report.broken().is_empty(), "{:?}", report.broken());
    for system in plan.systems {
        for metric in [Metric::RttP50, Metric::Connects] {
            assert!(report.cell(Underlay::Pass, system, metric).is_some(), "{system:?} {metric:?}");
        }
    }
}

#[test]
fn links_can_be_switched_back_and_forth() {
    let options = Options::unique("bench-links", "/bin/false");
    let plan = BenchPlan {
        systems: vec![System::Raw],
        underlays: vec![Underlay::NosegNocsum, Underlay::NosegGro, Underlay::Pass, Underlay::Noseg],
        workloads: vec![bench::Workload::Tcp1],
        repeats: 2,
        seconds: 0.1,
        awake: false,
    };
    let report = bench::run(options, &plan, &mut |_| ()).expect(NEEDS);
    for limit in &report.limits {
        let whole = limit.wire_packet_bytes.expect("the run measured TCP") > 2000.0;
        assert_eq!(whole, limit.underlay == Underlay::Pass, "{limit:?}");
    }
    assert_eq!(report.limits.len(), 4);
}

#[test]
fn daemon_that_fails_does_not_stop_others() {
    let options = Options::unique("bench-broken", "/bin/false");
    let name = options.name.clone();
    let plan = BenchPlan {
        systems: vec![System::Simple, System::Raw],
        workloads: vec![bench::Workload::Rtt],
        repeats: 1,
        seconds: 0.05,
        ..BenchPlan::short()
    };
    let report = bench::run(options, &plan, &mut |_| ()).expect(NEEDS);
    assert!(is_gone(&name));
    assert_eq!(report.broken().len(), 1, "{:?}", report.unmeasured);
    assert!(report.cell(Underlay::Pass, System::Raw, Metric::RttP50).is_some());
    assert!(report.cell(Underlay::Pass, System::Simple, Metric::RttP50).is_none());
}

#[test]
fn interrupted_bench_leaves_nothing() {
    let name = format!("bench-int-{}", std::process::id());
    let mut command = Command::new(HOPSACK_LAB);
    command.args(["bench", "--name", &name, "--systems", "simple", "--workloads", "tcp1"]);
    command.args(["--seconds", "60"]).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().expect("cargo built hopsack-lab");
    // The measurement has begun when the second daemon is recorded.
    let start = Instant::now();
    let daemon = Path::new("/run/hopsack-lab").join(&name).join("h2/daemon.json");
    while !daemon.exists() {
        assert!(start.elapsed() < Duration::from_secs(20), "no daemon was started");
        std::thread::sleep(Duration::from_millis(20));
    }
    Process::open(child.id()).and_then(|process| process.signal(Signal::Interrupt)).expect("the bench runs");
    let output = child.wait_with_output().expect("the bench ends");
    assert!(start.elapsed() < Duration::from_secs(40));
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains(&LabError::Interrupted.to_string()), "{stderr}");
    assert!(is_gone(&name));
}

#[test]
fn short_soak_passes() {
    let options = Options { fast_path: false, ..Options::unique("soak", HOPSACK) };
    let name = options.name.clone();
    let plan = SoakPlan {
        time: Duration::from_secs(3),
        packets: u64::MAX,
        every: Duration::from_secs(1),
        rate: 200,
        underlay: Underlay::NosegGro,
    };
    let mut output = Vec::new();
    let result = soak::run(options, &plan, &mut output);
    result.unwrap_or_else(|error| panic!("{error}\n{}", String::from_utf8_lossy(&output)));
    assert!(!output.is_empty());
    assert!(is_gone(&name));
}
