//! How fast a change in etcd becomes part of the route table: 5,000 leases, 1,000 changes a second.
//! It needs root, etcd and an idle machine, and takes 40 s.
//!
//! The first part is pure and measures the compilation of a table. The second part runs a daemon in
//! a lab with a real etcd, changes leases, and reads `hopsack_fib_publish_seconds`: the time from
//! the arrival of an event in the process to the publication of its table. The time that an event
//! waits in the socket while the daemon is busy is not included. The bench also prints the daemon's
//! share of a CPU, which shows whether that time can be long.
//!
//! `cargo bench --bench convergence`; HOPSACK_CHANGES (1000), HOPSACK_LEASES (5000),
//! HOPSACK_SECONDS (20).

use std::collections::BTreeMap;
use std::env;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use etcd_client::{Client, Txn, TxnOp};
use hopsack::forward::Table;
use hopsack::lab::{Lab, Options, Store, exec};
use hopsack::route::{Abilities, Change, Dialect, Lease, Local, Networks, Origin, Policy, Public, Rib};
use hopsack::sys::netns::in_netns;

type Error = Box<dyn std::error::Error + Send + Sync>;

const HOPSACK: &str = env!("CARGO_BIN_EXE_hopsack");
const NETWORK: &str = r#"{"Network":"10.0.0.0/8","SubnetLen":24,"Backend":{"Type":"udp"}}"#;
/// Number of puts at the same time. etcd writes those that arrive together at once.
const WRITERS: u64 = 64;

fn main() -> ExitCode {
    // `cargo test --benches` runs this program too.
    if !env::args().any(|argument| argument == "--bench") {
        println!("convergence: `cargo bench --bench convergence` measures");
        return ExitCode::SUCCESS;
    }
    let number =
        |name: &str, default| env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default);
    let (leases, rate) = (number("HOPSACK_LEASES", 5000), number("HOPSACK_CHANGES", 1000));
    compile(leases);
    match daemon(leases, rate.into(), number("HOPSACK_SECONDS", 20).into()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("convergence: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Prints how long the compilation of a table takes, for up to `most` leases.
fn compile(most: u32) {
    let networks = Networks { v4: Some(("10.0.0.0/8".parse().expect("a prefix"), 24)), v6: None };
    for count in [10, 100, 1000, most] {
        let leases = (0..count)
            .map(|n| Lease {
                name: format!("host-{n}"),
                subnets: vec![subnet(n).replace('-', "/").parse().expect("a prefix")],
                public: Public { v4: Some(address(n, 0).parse().expect("an address")), v6: None },
                dialect: Dialect::Hopsack(Abilities::OURS),
                revision: u64::from(n),
                origin: Origin::default(),
            })
            .collect();
        let mut rib = Rib::default();
        rib.apply(Change::Snapshot { leases, revision: u64::from(count) });
        let public = [192, 0, 2, 1].into();
        let local = Local {
            subnets: vec!["10.255.1.0/24".parse().expect("a prefix")],
            nets: Vec::new(),
            public,
            port: 8285,
            mtu: 1472,
            policy: Policy::default(),
        };
        let mut times: Vec<Duration> = (0..300)
            .map(|generation| {
                let start = Instant::now();
                drop(std::hint::black_box(Table::compile(generation, &rib, &networks, &local)));
                start.elapsed()
            })
            .collect();
        times.sort_unstable();
        println!(
            "table of {count} leases: compiled and dropped in {:?} (median), {:?} (99th percentile)",
            times[150], times[296]
        );
    }
}

fn subnet(n: u32) -> String {
    format!("10.{}.{}.0-24", n / 256, n % 256)
}

fn address(n: u32, turn: u32) -> String {
    format!("172.{}.{}.{}", 16 + turn % 16, n / 250, 1 + n % 250)
}

/// Prints how fast a daemon puts changes into effect.
fn daemon(leases: u32, rate: u64, seconds: u64) -> Result<(), Error> {
    let options =
        Options { hosts: 1, store: Store::Etcd { members: 1 }, ..Options::unique("converge", HOPSACK) };
    let lab = Lab::create(options)?;
    lab.etcd(1).start()?;
    lab.etcd(1).wait_ready(Duration::from_secs(20))?;
    let (url, underlay) = (lab.etcd(1).url(), lab.underlay_netns());
    let init = exec(&underlay, &[HOPSACK, "network", "init", NETWORK, "--store-endpoints", &url])?;
    if !init.status.success() {
        return Err(String::from_utf8_lossy(&init.stderr).into());
    }
    let env = "FLANNEL_NETWORK=10.0.0.0/8\nFLANNEL_SUBNET=10.244.1.1/24\n";
    std::fs::write(lab.host(1).directory.join("subnet.env"), env)?;
    in_netns(&underlay, || block_on(fill(&url, leases)))??;
    lab.daemon(1).start()?;
    let started = Instant::now();
    lab.daemon(1).wait_ready(Duration::from_secs(20))?;
    println!("{leases} leases: the daemon was ready after {:?}", started.elapsed());

    let netns = &lab.host(1).netns;
    let pid = lab.daemon(1).pid().ok_or("the daemon ended")?;
    let (before, cpu_before) = (buckets(netns)?, cpu(pid)?);
    let started = Instant::now();
    let written = in_netns(&underlay, || block_on(change(&url, leases, rate, seconds)))??;
    let took = started.elapsed();
    std::thread::sleep(Duration::from_millis(200));
    let (after, cpu_after) = (buckets(netns)?, cpu(pid)?);

    let grown: Vec<(f64, u64)> = after
        .iter()
        .map(|(edge, count)| (edge.parse().unwrap_or(f64::INFINITY), count - before[edge]))
        .collect();
    let mut grown = grown;
    grown.sort_by(|one, other| one.0.total_cmp(&other.0));
    let total = grown.last().map_or(0, |(_, count)| *count);
    println!(
        "{written} changes written in {took:.1?} ({:.0} a second), {total} deliveries of them published; the daemon \
         used {:.0} % of a CPU",
        written as f64 / took.as_secs_f64(),
        (cpu_after - cpu_before) / took.as_secs_f64(),
    );
    for part in [0.5, 0.9, 0.99, 0.999] {
        let edge = grown
            .iter()
            .find(|(_, count)| *count as f64 >= part * total as f64)
            .map_or(f64::NAN, |(edge, _)| *edge);
        println!("  p{}: at most {} ms", part * 100.0, edge * 1000.0);
    }
    Ok(())
}

fn block_on<T>(future: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

fn value(n: u32, turn: u32) -> String {
    format!(r#"{{"PublicIP":"{}","PublicIPv6":null}}"#, address(n, turn))
}

fn key(n: u32) -> String {
    format!("/coreos.com/network/subnets/{}", subnet(n))
}

async fn fill(url: &str, leases: u32) -> Result<(), Error> {
    let mut client = Client::connect([url], None).await?;
    for chunk in (0..leases).collect::<Vec<_>>().chunks(100) {
        let puts: Vec<TxnOp> = chunk.iter().map(|n| TxnOp::put(key(*n), value(*n, 0), None)).collect();
        client.txn(Txn::new().and_then(puts)).await?;
    }
    Ok(())
}

/// Changes the address of one host after the other, `rate` a second. Returns the number of changes.
async fn change(url: &str, leases: u32, rate: u64, seconds: u64) -> Result<u64, Error> {
    let client = Client::connect([url], None).await?;
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let mut client = client.clone();
        writers.spawn(async move {
            let period = Duration::from_secs_f64(WRITERS as f64 / rate as f64);
            let start = tokio::time::Instant::now() + period.mul_f64(writer as f64 / WRITERS as f64);
            let mut tick = tokio::time::interval_at(start, period);
            let until = Instant::now() + Duration::from_secs(seconds);
            let mut number = writer;
            let mut written = 0u64;
            while Instant::now() < until {
                tick.tick().await;
                let n = u32::try_from(number % u64::from(leases)).unwrap_or(0);
                let turn = u32::try_from(1 + number / u64::from(leases)).unwrap_or(0);
                client.put(key(n), value(n, turn), None).await?;
                (number, written) = (number + WRITERS, written + 1);
            }
            Ok::<u64, etcd_client::Error>(written)
        });
    }
    let mut written = 0;
    while let Some(result) = writers.join_next().await {
        written += result??;
    }
    Ok(written)
}

/// Counts of `hopsack_fib_publish_seconds` by upper bound.
fn buckets(netns: &str) -> Result<BTreeMap<String, u64>, Error> {
    let text = in_netns(netns, || -> std::io::Result<String> {
        let mut stream = TcpStream::connect("127.0.0.1:9285")?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })??;
    let edge = |line: &str| {
        let rest = line.strip_prefix("hopsack_fib_publish_seconds_bucket{le=\"")?;
        let (edge, count) = rest.split_once("\"} ")?;
        Some((edge.to_owned(), count.parse().ok()?))
    };
    Ok(text.lines().filter_map(edge).collect())
}

/// CPU time of a process in hundredths of a second.
fn cpu(pid: u32) -> Result<f64, Error> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    Ok(ticks(11) + ticks(12))
}
