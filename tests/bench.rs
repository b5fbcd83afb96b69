//! The measuring machine, run whole for moments: every cell gets a value, every system its traffic, and nothing is left.
//! How fast anything is, is not asserted: the machine is busy with other tests.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hopsack::lab::bench::{self, Metric, Plan, System, Underlay};
use hopsack::lab::{LabError, Options, soak};
use hopsack::sys::process::{Process, Signal};

const HOPSACK: &str = env!("CARGO_BIN_EXE_hopsack");

/// What a lab leaves: its namespaces and its directory.
fn is_gone(name: &str) -> bool {
    let names = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let mut names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let directory = Path::new("/run/hopsack-lab").join(name);
    !names.any(|netns| netns.starts_with(&format!("hs-{name}-"))) && !directory.exists()
}

#[test]
fn every_cell_gets_a_value_and_nothing_is_left() {
    let options = Options::unique("bench", HOPSACK);
    let name = options.name.clone();
    let plan = Plan {
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
        workloads: Plan::full().workloads,
        repeats: 1,
        seconds: 0.2,
        awake: false,
    };
    let report = bench::run(options, &plan, &mut |_| ()).expect("root, tun, ethtool: run scripts/test");
    assert!(is_gone(&name));
    assert!(report.broken().is_empty(), "{:?}", report.broken());
    let out: Vec<_> = report.unmeasured.iter().map(|unmeasured| unmeasured.system).collect();
    // A flanneld and a WireGuard are no part of the project: without one, that is said.
    for (variable, system) in [("FLANNELD", System::Flannel), ("WIREGUARD_GO", System::WireguardGo)] {
        assert!(std::env::var_os(variable).is_none() || !out.contains(&system), "{out:?}");
    }
    let theirs = |system: &System| [System::Flannel, System::WireguardGo].contains(system);
    assert!(out.iter().all(theirs), "{out:?}");

    for underlay in plan.underlays {
        for system in [System::Raw, System::Vxlan, System::Simple, System::Floor] {
            for metric in Metric::ALL {
                let cell = report.cell(underlay, system, metric);
                // A busy machine may lose 1 % of whatever is offered.
                let may_be_none = metric.title().contains("<= 1 %");
                let Some(cell) = cell else {
                    assert!(may_be_none, "{underlay:?} {system:?} {metric:?} has no value");
                    continue;
                };
                let plausible = match metric {
                    Metric::Tcp1 | Metric::Tcp4 => 1e6..1e12,
                    // Requests may starve it for the fraction of a second that they take.
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
                };
                assert!(plausible.contains(&cell.median), "{underlay:?} {system:?} {metric:?}: {cell:?}");
                assert_eq!(cell.samples.len(), 1);
            }
        }
        // One is at most an MTU and its Ethernet header; the other carries what TCP sends whole.
        let wire = |system| {
            let limits = report.limits.iter();
            let mut limits = limits.filter(|limit| limit.underlay == underlay && limit.system == system);
            limits.next().and_then(|limit| limit.wire_packet_bytes).expect("TCP was measured")
        };
        for system in [System::Raw, System::Vxlan] {
            let whole = wire(system) > 2000.0;
            assert_eq!(whole, underlay == Underlay::Pass, "{underlay:?} {system:?}: {} B", wire(system));
        }
        assert!(wire(System::Simple) < 1515.0, "{}", wire(System::Simple));
    }
    let simple = report.limits.iter().find(|limit| limit.system == System::Simple).expect("it was measured");
    let [read, ..] = simple.packets_per_call.expect("its daemons count");
    assert!((0.9..1.1).contains(&read), "one packet a read, and not {read}");
    assert!(simple.daemon_cpus.iter().sum::<f64>() > 0.0);
}

/// The bounds that a missed target is judged by.
#[test]
fn the_floor_carries_what_comes_alone_asleep_or_not() {
    let options = Options::unique("bench-floor", HOPSACK);
    let plan = Plan {
        systems: vec![System::Floor, System::FloorSpin],
        underlays: vec![Underlay::Pass],
        workloads: vec![bench::Workload::Rtt, bench::Workload::Connects],
        repeats: 1,
        seconds: 0.2,
        awake: false,
    };
    let report = bench::run(options, &plan, &mut |_| ()).expect("root, tun, ethtool: run scripts/test");
    assert!(report.broken().is_empty(), "{:?}", report.broken());
    for system in plan.systems {
        for metric in [Metric::RttP50, Metric::Connects] {
            assert!(report.cell(Underlay::Pass, system, metric).is_some(), "{system:?} {metric:?}");
        }
    }
}

#[test]
fn cables_can_be_switched_forth_and_back() {
    let options = Options::unique("bench-cables", "/bin/false");
    let plan = Plan {
        systems: vec![System::Raw],
        underlays: vec![Underlay::NosegNocsum, Underlay::NosegGro, Underlay::Pass, Underlay::Noseg],
        workloads: vec![bench::Workload::Tcp1],
        repeats: 2,
        seconds: 0.1,
        awake: false,
    };
    let report = bench::run(options, &plan, &mut |_| ()).expect("root, tun, ethtool: run scripts/test");
    for limit in &report.limits {
        let whole = limit.wire_packet_bytes.expect("TCP flowed") > 2000.0;
        assert_eq!(whole, limit.underlay == Underlay::Pass, "{limit:?}");
    }
    assert_eq!(report.limits.len(), 4);
}

#[test]
fn a_daemon_that_does_not_come_up_is_told_and_does_not_stop_the_others() {
    let options = Options::unique("bench-broken", "/bin/false");
    let name = options.name.clone();
    let plan = Plan {
        systems: vec![System::Simple, System::Raw],
        workloads: vec![bench::Workload::Rtt],
        repeats: 1,
        seconds: 0.05,
        ..Plan::short()
    };
    let report = bench::run(options, &plan, &mut |_| ()).expect("root, tun, ethtool: run scripts/test");
    assert!(is_gone(&name));
    assert_eq!(report.broken().len(), 1, "{:?}", report.unmeasured);
    assert!(report.cell(Underlay::Pass, System::Raw, Metric::RttP50).is_some());
    assert!(report.cell(Underlay::Pass, System::Simple, Metric::RttP50).is_none());
}

#[test]
fn an_interrupt_ends_it_and_leaves_nothing() {
    let name = format!("bench-int-{}", std::process::id());
    let mut command = Command::new(HOPSACK);
    command.args(["lab", "bench", "--name", &name, "--systems", "simple", "--workloads", "tcp1"]);
    command.args(["--seconds", "60"]).stdout(Stdio::null()).stderr(Stdio::piped());
    let child = command.spawn().expect("it was built");
    // It has begun to measure when it has a daemon.
    let start = Instant::now();
    let daemon = Path::new("/run/hopsack-lab").join(&name).join("h2/daemon.json");
    while !daemon.exists() {
        assert!(start.elapsed() < Duration::from_secs(20), "no daemon came up");
        std::thread::sleep(Duration::from_millis(20));
    }
    Process::open(child.id()).and_then(|process| process.signal(Signal::Interrupt)).expect("it runs");
    let output = child.wait_with_output().expect("it ends");
    assert!(start.elapsed() < Duration::from_secs(40));
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(&LabError::Interrupted.to_string()), "{said}");
    assert!(is_gone(&name));
}

#[test]
fn a_short_soak_holds_and_leaves_nothing() {
    let options = Options::unique("soak", HOPSACK);
    let name = options.name.clone();
    let plan = soak::Plan {
        time: Duration::from_secs(3),
        packets: u64::MAX,
        every: Duration::from_secs(1),
        rate: 200,
        underlay: Underlay::NosegGro,
    };
    let mut told = Vec::new();
    let soaked = soak::run(options, &plan, &mut told);
    let told = String::from_utf8_lossy(&told);
    soaked.unwrap_or_else(|error| panic!("{error}\n{told}"));
    assert!(told.contains("underlay noseg+gro") && told.contains("It held"), "{told}");
    assert!(is_gone(&name));
}
