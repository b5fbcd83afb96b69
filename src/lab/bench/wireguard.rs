//! WireGuard in userspace on each host: wireguard-go or boringtun.
//!
//! The environment variables WIREGUARD_GO and BORINGTUN name the programs; otherwise they are
//! looked for on the PATH. hopsack does not contain or need them. Keys and peers are set over
//! WireGuard's configuration socket, so `wg` is not needed. The inner MTU is 1420, as `wg-quick`
//! sets it.
//!
//! Invariant: when a [`WireGuard`] is dropped, its process has ended and its socket is removed.
//!
//! Source: <https://www.wireguard.com/xplatform/>

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use aws_lc_rs::agreement::{PrivateKey, X25519};
use aws_lc_rs::encoding::{AsBigEndian, Curve25519SeedBin};

use super::super::cluster::Lab;
use super::super::daemon::{self, READY_TIMEOUT};
use super::super::error::LabError;
use super::super::programs;
use super::super::site::Host;
use crate::sys::process::{Process, own_session};

const PORT: u16 = 51820;
const MTU: u16 = 1420;

/// A WireGuard program and its arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Program {
    /// Environment variable with the path of the program.
    pub(super) variable: &'static str,
    /// Name of the program on the PATH.
    pub(super) name: &'static str,
    /// Arguments before the name of the interface.
    pub(super) arguments: &'static [&'static str],
}

impl Program {
    /// wireguard-go, by the authors of WireGuard.
    pub(super) const GO: Self =
        Self { variable: "WIREGUARD_GO", name: "wireguard-go", arguments: &["--foreground"] };
    /// boringtun, in Rust, by Cloudflare.
    pub(super) const BORINGTUN: Self = Self {
        variable: "BORINGTUN",
        name: "boringtun-cli",
        arguments: &["--foreground", "--disable-drop-privileges"],
    };

    /// Path of the program; none if it is not installed.
    pub(super) fn path(self) -> Option<OsString> {
        std::env::var_os(self.variable).or_else(|| programs::installed(self.name).then(|| self.name.into()))
    }
}

/// Name of the device on host `number`. The sockets of all namespaces are in one directory, so each
/// lab needs its own names.
pub(super) fn device(lab: &Lab, number: usize) -> String {
    let mut hasher = DefaultHasher::new();
    lab.options().name.hash(&mut hasher);
    // The name of an interface has at most 15 bytes.
    format!("wg{:08x}{number}", hasher.finish() & 0xffff_ffff)
}

/// A running WireGuard program.
#[derive(Debug)]
pub(super) struct WireGuard {
    process: Child,
    socket: PathBuf,
}

impl WireGuard {
    /// Starts one program on each of the two hosts and makes them peers.
    pub(super) fn pair(program: Program, path: &OsString, lab: &Lab) -> Result<Vec<Self>, LabError> {
        let failed = || LabError::io("make keys for WireGuard");
        let refused = |_| failed()(io::Error::other("refused"));
        let keys = [
            PrivateKey::generate(&X25519).map_err(refused)?,
            PrivateKey::generate(&X25519).map_err(refused)?,
        ];
        let mut running = Vec::new();
        for number in [1, 2] {
            running.push(Self::start(program, path, lab, number)?);
        }
        for (number, tunnel) in [1, 2].into_iter().zip(&running) {
            let (own, other) = (&keys[number - 1], &keys[2 - number]);
            let own: Curve25519SeedBin<'_> = own.as_be_bytes().map_err(refused)?;
            let other = other.compute_public_key().map_err(refused)?;
            let peer = lab.host(3 - number);
            let mut text = String::from("set=1\n");
            let _ =
                writeln!(text, "private_key={}\nlisten_port={PORT}\nreplace_peers=true", hex(own.as_ref()));
            let _ = writeln!(text, "public_key={}\nendpoint={}:{PORT}", hex(other.as_ref()), peer.public);
            let _ = writeln!(text, "replace_allowed_ips=true\nallowed_ip={}\n", peer.subnet_v4);
            tunnel.configure(&text)?;
            let device = device(lab, number);
            let ip = format!("link set {device} mtu {MTU} up\nroute add {} dev {device}\n", peer.subnet_v4);
            programs::ip_batch(Some(&lab.host(number).netns), &ip, false)?;
        }
        Ok(running)
    }

    fn start(program: Program, path: &OsString, lab: &Lab, number: usize) -> Result<Self, LabError> {
        let (host, device): (&Host, _) = (lab.host(number), device(lab, number));
        let what = || LabError::io(format!("start the {} of {}", program.name, host.name));
        let log = File::create(host.directory.join(format!("{}.log", program.name))).map_err(what())?;
        let mut argv = vec![path.clone()];
        argv.extend(program.arguments.iter().map(OsString::from));
        argv.push(device.clone().into());
        let mut command = programs::command_in(&host.netns, &argv);
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(what())?).stderr(log);
        let process = own_session(&mut command).spawn().map_err(what())?;
        let socket = PathBuf::from("/var/run/wireguard").join(format!("{device}.sock"));
        let tunnel = Self { process, socket };
        let deadline = Instant::now() + READY_TIMEOUT;
        while UnixStream::connect(&tunnel.socket).is_err() {
            if Instant::now() >= deadline {
                return Err(what()(io::ErrorKind::TimedOut.into()));
            }
            lab.options().interrupt.sleep(Duration::from_millis(20))?;
        }
        Ok(tunnel)
    }

    /// Sends a configuration request and checks the answer.
    fn configure(&self, request: &str) -> Result<(), LabError> {
        let what = || LabError::io(format!("configure WireGuard by {}", self.socket.display()));
        let mut stream = UnixStream::connect(&self.socket).map_err(what())?;
        stream.set_read_timeout(Some(READY_TIMEOUT)).map_err(what())?;
        stream.write_all(request.as_bytes()).map_err(what())?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).map_err(what())?;
        match answer.trim() {
            "errno=0" => Ok(()),
            other => Err(what()(io::Error::other(other.to_owned()))),
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for WireGuard {
    fn drop(&mut self) {
        // The device goes with the process. This fails if it has already ended; then the
        // measurement has failed too.
        let process = Process::open(self.pid()).ok();
        let _ = daemon::end_all(process.as_slice(), daemon::TERM_TIMEOUT);
        let _ = self.process.wait();
        // Most programs remove the socket themselves.
        let _ = fs::remove_file(&self.socket);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
