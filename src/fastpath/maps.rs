//! The maps of a loaded program: what the daemon writes and reads.
//!
//! It decides nothing about routes, and attaches nothing.
//!
//! Invariant: the settings in force are never changed in place, so no packet meets half of new
//! ones. If a route cannot be written, the program is suspended: the daemon's path has the whole
//! table.

use std::fmt;
use std::time::Duration;

use aya::Ebpf;
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, LpmTrie, Map, MapData, MapError, PerCpuArray};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::counters::{self, Counters};
use super::error::FastPathError;
use super::layout::{LAYOUT, LIVE_BYTES, Live, ROUTE_BYTES, Route, SETTINGS_BYTES, Settings, USED_SHIFT};
use super::routes::{Routes, Step, steps};
use crate::sys;

type Trie<const N: usize> = LpmTrie<MapData, [u8; N], [u8; ROUTE_BYTES]>;

/// The maps of a loaded program.
pub(super) struct Maps {
    live: Array<MapData, [u8; LIVE_BYTES]>,
    settings: Array<MapData, [u8; SETTINGS_BYTES]>,
    routes4: Trie<4>,
    routes6: Trie<16>,
    counters: PerCpuArray<MapData, [u64; counters::ALL]>,
    /// What is in `live`.
    state: Live,
    /// What is in the tries.
    routes: Routes,
}

impl fmt::Debug for Maps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let routes = self.routes.len();
        f.debug_struct("Maps").field("state", &self.state).field("routes", &routes).finish_non_exhaustive()
    }
}

impl Maps {
    /// Takes the maps out of a loaded object, and reads what an earlier process has left in them.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, FastPathError> {
        let mut maps = Self {
            live: take(ebpf, "live")?,
            settings: take(ebpf, "config")?,
            routes4: take(ebpf, "routes4")?,
            routes6: take(ebpf, "routes6")?,
            counters: take(ebpf, "counters")?,
            state: Live::default(),
            routes: Routes::new(),
        };
        maps.state = Live::from_bytes(maps.live.get(&0, 0).map_err(FastPathError::map("live"))?);
        maps.read_routes()?;
        Ok(maps)
    }

    /// Version of the process that wrote the maps; 0: they are new.
    pub(super) fn layout(&self) -> u32 {
        self.state.layout
    }

    pub(super) fn routes(&self) -> &Routes {
        &self.routes
    }

    /// Puts new settings into force: all at once.
    pub(super) fn set(&mut self, settings: &Settings) -> Result<(), FastPathError> {
        let inactive = (self.state.active & 1) ^ 1;
        let bytes = settings.to_bytes();
        self.settings.set(inactive, bytes, 0).map_err(FastPathError::map("config"))?;
        self.write_live(Live { active: inactive, layout: LAYOUT, ..self.state })
    }

    /// Lets the program work for this long from now on.
    pub(super) fn renew(&mut self, valid_for: Duration) -> Result<(), FastPathError> {
        let nanoseconds = u64::try_from(valid_for.as_nanos()).unwrap_or(u64::MAX);
        let expires = sys::now().0.saturating_add(nanoseconds);
        self.write_live(Live { expires, ..self.state })
    }

    /// Ends the work of the program, until it is renewed.
    pub(super) fn suspend(&mut self) -> Result<(), FastPathError> {
        self.write_live(Live { expires: 0, ..self.state })
    }

    /// Changes the routes. Returns the number of changes.
    pub(super) fn apply(&mut self, new: &Routes) -> Result<usize, FastPathError> {
        let steps = steps(&self.routes, new);
        for step in &steps {
            if let Err(error) = self.make(*step) {
                // A missing longer prefix gives its packets to the peer of a shorter one.
                self.suspend()?;
                return Err(error);
            }
            step.make(&mut self.routes);
        }
        Ok(steps.len())
    }

    pub(super) fn counters(&self) -> Result<Counters, FastPathError> {
        let cpus = self.counters.get(&0, 0).map_err(FastPathError::map("counters"))?;
        Ok(Counters::sum(cpus.iter()))
    }

    /// Whether the program has sent a packet by the route of exactly this prefix in the last two
    /// or three seconds.
    pub(super) fn is_used(&self, prefix: IpNet) -> Result<bool, FastPathError> {
        let value = match prefix {
            IpNet::V4(net) => self.routes4.get(&key4(net), 0),
            IpNet::V6(net) => self.routes6.get(&key6(net), 0),
        };
        let value = match value {
            Ok(value) => value,
            Err(MapError::KeyNotFound) => return Ok(false),
            Err(error) => return Err(FastPathError::map("routes")(error)),
        };
        let now = u32::try_from(sys::now().0 >> USED_SHIFT).unwrap_or(u32::MAX);
        Ok(Route::used(value).saturating_add(2) >= now)
    }

    fn write_live(&mut self, state: Live) -> Result<(), FastPathError> {
        self.live.set(0, state.to_bytes(), 0).map_err(FastPathError::map("live"))?;
        self.state = state;
        Ok(())
    }

    fn make(&mut self, step: Step) -> Result<(), FastPathError> {
        match step {
            Step::Set(IpNet::V4(net), route) => self.routes4.insert(&key4(net), route.to_bytes(), 0),
            Step::Set(IpNet::V6(net), route) => self.routes6.insert(&key6(net), route.to_bytes(), 0),
            Step::Remove(IpNet::V4(net)) => ignore_missing(self.routes4.remove(&key4(net))),
            Step::Remove(IpNet::V6(net)) => ignore_missing(self.routes6.remove(&key6(net))),
        }
        .map_err(FastPathError::map(match step {
            Step::Set(IpNet::V4(_), _) | Step::Remove(IpNet::V4(_)) => "routes4",
            Step::Set(IpNet::V6(_), _) | Step::Remove(IpNet::V6(_)) => "routes6",
        }))
    }

    fn read_routes(&mut self) -> Result<(), FastPathError> {
        for entry in self.routes4.iter() {
            let (key, value) = entry.map_err(FastPathError::map("routes4"))?;
            if let Ok(net) = Ipv4Net::new(key.data().into(), length(key.prefix_len())) {
                self.routes.insert(net.into(), Route::from_bytes(value));
            }
        }
        for entry in self.routes6.iter() {
            let (key, value) = entry.map_err(FastPathError::map("routes6"))?;
            if let Ok(net) = Ipv6Net::new(key.data().into(), length(key.prefix_len())) {
                self.routes.insert(net.into(), Route::from_bytes(value));
            }
        }
        Ok(())
    }
}

fn length(bits: u32) -> u8 {
    u8::try_from(bits).unwrap_or(u8::MAX)
}

fn key4(net: Ipv4Net) -> Key<[u8; 4]> {
    Key::new(net.prefix_len().into(), net.network().octets())
}

fn key6(net: Ipv6Net) -> Key<[u8; 16]> {
    Key::new(net.prefix_len().into(), net.network().octets())
}

fn ignore_missing(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn take<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, FastPathError> {
    let map = ebpf.take_map(name).ok_or(FastPathError::Missing(name))?;
    T::try_from(map).map_err(FastPathError::map(name))
}
