//! What outlives the process: the node's id, and the last map with our lease in it, so that a node whose etcd is away
//! can start and forward.
//!
//! It does not decide whether a saved map may be used; it only vouches for it being the one that was written.
//!
//! Invariant: a file is either whole and as written, or refused: it is renamed into place, carries its version and a
//! checksum, and is synced before the name is.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::Write;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::acquire::Own;
use super::client::{Kv, Listing};
use crate::store::error::SnapshotError;

const MAP: &str = "map";
const NODE_ID: &str = "node-id";
/// First word of the file; a format that this code cannot read has another.
const MAGIC: &str = "hopsack-map-1";

/// The last map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    /// Of all keys; a map of another cluster is none.
    pub(crate) prefix: String,
    pub(crate) node_id: String,
    pub(crate) revision: i64,
    /// The network configuration, as it is in etcd.
    pub(crate) config: String,
    /// Seconds since 1970.
    written: u64,
    /// The kernel's name for the time since the host was started; a map without is of another.
    #[serde(default)]
    boot: String,
    own: SavedKv,
    subnets: Vec<IpNet>,
    granted: Duration,
    /// Seconds since 1970; `None`: a reservation.
    expires: Option<u64>,
    leases: Vec<SavedKv>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SavedKv {
    key: String,
    value: String,
    mod_revision: i64,
    lease: i64,
}

impl SavedKv {
    fn of(kv: &Kv) -> Self {
        Self {
            key: kv.key.clone(),
            value: String::from_utf8_lossy(&kv.value).into_owned(),
            mod_revision: kv.mod_revision,
            lease: kv.lease,
        }
    }

    fn kv(&self) -> Kv {
        Kv {
            key: self.key.clone(),
            value: self.value.clone().into_bytes(),
            mod_revision: self.mod_revision,
            lease: self.lease,
        }
    }
}

impl Snapshot {
    pub(crate) fn new<'a>(
        prefix: &str,
        node_id: &str,
        config: &str,
        own: &Own,
        (revision, written): (i64, SystemTime),
        leases: impl Iterator<Item = &'a Kv>,
    ) -> Self {
        let since_1970 =
            |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        Self {
            prefix: prefix.to_owned(),
            node_id: node_id.to_owned(),
            revision,
            config: config.to_owned(),
            written: since_1970(written),
            boot: boot_id(),
            own: SavedKv::of(&own.kv()),
            subnets: own.subnets.clone(),
            granted: own.granted,
            expires: own.expires.map(since_1970),
            leases: leases.map(SavedKv::of).collect(),
        }
    }

    pub(crate) fn own(&self) -> Own {
        Own {
            key: self.own.key.clone(),
            subnets: self.subnets.clone(),
            value: self.own.value.clone(),
            mod_revision: self.own.mod_revision,
            lease: self.own.lease,
            granted: self.granted,
            expires: self.expires.map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)),
        }
    }

    /// Our lease has run out by `now`.
    pub(crate) fn ran_out(&self, now: SystemTime) -> bool {
        self.own().expires.is_some_and(|expires| expires < now)
    }

    /// The host runs by this map again.
    pub(crate) fn taken_up(mut self, dir: &Path) -> Self {
        let boot = boot_id();
        if self.boot != boot {
            self.boot = boot;
            if let Err(problem) = self.store(dir) {
                tracing::warn!("the map could not be saved for another start without etcd: {problem}");
            }
        }
        self
    }

    /// The host has not been started anew since: pods with addresses of our subnet may run.
    pub(crate) fn is_of_boot(&self, boot: &str) -> bool {
        !boot.is_empty() && self.boot == boot
    }

    pub(crate) fn written(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.written)
    }

    pub(crate) fn listing(&self) -> Listing {
        Listing { revision: self.revision, kvs: self.leases.iter().map(SavedKv::kv).collect() }
    }

    /// Reads the last map. `None`: there is none. The error says what is wrong with the file.
    pub(crate) fn load(dir: &Path) -> Result<Option<Self>, SnapshotError> {
        let path = dir.join(MAP);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error(&path, &error)),
        };
        unpack(&path, &bytes).map(Some)
    }

    /// Writes the map in place of the last one.
    pub(crate) fn store(&self, dir: &Path) -> Result<(), SnapshotError> {
        replace(dir, MAP, &pack(self)).map_err(|error| io_error(&dir.join(MAP), &error))
    }
}

fn pack(saved: &Snapshot) -> Vec<u8> {
    let body = serde_json::to_vec(saved).expect("strings and numbers are plain JSON");
    let mut out = format!("{MAGIC} {:016x} {}\n", checksum(&body), body.len()).into_bytes();
    out.extend(body);
    out
}

fn io_error(path: &Path, error: &std::io::Error) -> SnapshotError {
    SnapshotError::Io { path: path.display().to_string(), error: error.to_string() }
}

fn unpack(path: &Path, bytes: &[u8]) -> Result<Snapshot, SnapshotError> {
    let path = || path.display().to_string();
    let damaged = || SnapshotError::Damaged { path: path() };
    let line = bytes.iter().position(|byte| *byte == b'\n').ok_or_else(damaged)?;
    let (head, body) = (std::str::from_utf8(&bytes[..line]).map_err(|_| damaged())?, &bytes[line + 1..]);
    match head.split(' ').collect::<Vec<_>>().as_slice() {
        [MAGIC, sum, len] => {
            let whole = *len == body.len().to_string() && *sum == format!("{:016x}", checksum(body));
            if !whole {
                return Err(damaged());
            }
            serde_json::from_slice(body)
                .map_err(|error| SnapshotError::NotAMap { path: path(), error: error.to_string() })
        }
        [other, ..] if other.starts_with("hopsack-map-") => {
            Err(SnapshotError::OtherVersion { path: path(), format: (*other).to_owned() })
        }
        _ => Err(damaged()),
    }
}

/// FNV-1a, 64 bits: against a torn write or a bad disk, not against a forger (who could write the file anyway).
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum: u64, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn replace(dir: &Path, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let new = dir.join(format!("{name}.new"));
    let mut file = File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&new, dir.join(name))?;
    File::open(dir)?.sync_all()
}

/// Another one each time that the host is started; empty if the kernel does not tell.
pub(crate) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// This installation's id; made at the first start.
pub(crate) fn node_id(dir: &Path) -> Result<String, String> {
    let path = dir.join(NODE_ID);
    let failed = |error: std::io::Error| {
        format!("{}: {error}: this node cannot keep its identity; set node.state_dir", path.display())
    };
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let id = text.trim();
            let good = (8..=64).contains(&id.len())
                && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
            if good { Ok(id.to_owned()) } else { Err(format!("{}: no node id: delete it", path.display())) }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let id = std::fs::read_to_string("/proc/sys/kernel/random/uuid").map_err(failed)?;
            replace(dir, NODE_ID, id.as_bytes()).map_err(failed)?;
            Ok(id.trim().to_owned())
        }
        Err(error) => Err(failed(error)),
    }
}

/// The subnets in Flannel's environment file, as a lease would hold them; `None` if it is not there or says none.
pub(crate) fn subnet_env(path: &Path) -> Option<Vec<IpNet>> {
    let text = std::fs::read_to_string(path).ok()?;
    let value = |name: &str| text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix('='));
    let v4 = value("FLANNEL_SUBNET").and_then(|text| text.parse::<Ipv4Net>().ok());
    let v6 = value("FLANNEL_IPV6_SUBNET").and_then(|text| text.parse::<Ipv6Net>().ok());
    // The file has the first usable address, the lease the network.
    let subnets: Vec<IpNet> = v4
        .map(|net| IpNet::V4(net.trunc()))
        .into_iter()
        .chain(v6.map(|net| IpNet::V6(net.trunc())))
        .collect();
    (!subnets.is_empty()).then_some(subnets)
}

/// What this host is called.
pub(crate) fn host_name(addresses: &[IpAddr]) -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => addresses.first().map(ToString::to_string).unwrap_or_default(),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saved() -> Snapshot {
        let own = Own {
            key: "/p/subnets/10.1.2.0-24".into(),
            subnets: vec!["10.1.2.0/24".parse().expect("net")],
            value: "{}".into(),
            mod_revision: 7,
            lease: 9,
            granted: Duration::from_secs(86_400),
            expires: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)),
        };
        Snapshot::new(
            "/p",
            "id",
            "{\"Network\":\"10.1.0.0/16\"}",
            &own,
            (8, SystemTime::now()),
            [own.kv()].iter(),
        )
    }

    #[test]
    fn a_map_comes_back_as_it_was() {
        let dir = tempfile::tempdir().expect("a folder");
        assert_eq!(Snapshot::load(dir.path()), Ok(None));
        saved().store(dir.path()).expect("written");
        let back = Snapshot::load(dir.path()).expect("good").expect("there");
        assert_eq!(Snapshot { written: 0, ..back.clone() }, Snapshot { written: 0, ..saved() });
        assert_eq!((back.own().key, back.listing().kvs.len()), ("/p/subnets/10.1.2.0-24".into(), 1));
    }

    #[test]
    fn who_was_started_anew_is_another_boot() {
        let (saved, old) = (saved(), Snapshot { boot: String::new(), ..saved() });
        assert!(saved.is_of_boot(&boot_id()) && !saved.is_of_boot("another"));
        assert!(!old.is_of_boot(&boot_id()) && !old.is_of_boot(""));
        let then = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        assert!(!saved.ran_out(then(1_799_999_999)) && saved.ran_out(then(1_800_000_001)));
    }

    #[test]
    fn every_damage_is_noticed() {
        let whole = saved();
        let good = pack(&whole);
        let unpack = |bytes: &[u8]| unpack(Path::new("map"), bytes);
        assert_eq!(unpack(&good), Ok(whole));
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert!(unpack(&bad).is_err(), "byte {at}");
            assert!(unpack(&good[..at]).is_err(), "cut at {at}");
        }
        assert!(unpack(&[good.as_slice(), b"x"].concat()).is_err());
        let later = String::from_utf8(good).expect("text").replacen("map-1", "map-2", 1);
        assert!(matches!(unpack(later.as_bytes()), Err(SnapshotError::OtherVersion { .. })));
    }

    #[test]
    fn a_node_keeps_its_id() {
        let dir = tempfile::tempdir().expect("a folder");
        let state = dir.path().join("new/state");
        let id = node_id(&state).expect("made");
        assert_eq!(node_id(&state), Ok(id));
        std::fs::write(state.join(NODE_ID), "two words").expect("written");
        assert!(node_id(&state).expect_err("refused").contains("delete it"));
    }

    #[test]
    fn flannels_environment_file_is_read() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("subnet.env");
        assert_eq!(subnet_env(&path), None);
        std::fs::write(&path, "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1472\n")
            .expect("written");
        assert_eq!(subnet_env(&path), Some(vec!["10.1.74.0/24".parse().expect("net")]));
    }
}
