//! State of the agent: what it knows about etcd, and what it must do when it connects next.
#![forbid(unsafe_code)]

/// State of the agent. Each operator-visible transition (trouble, recovery) is derived from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// The map and our lease are as in etcd, and the watch is open or about to be opened.
    Current,
    /// This host has a new address, and our lease in etcd still has the old one.
    Moved,
    /// etcd does not answer: the last map stays in use, and our lease must be checked when etcd is
    /// back.
    Outage,
    /// etcd does not answer, and our lease there still has an old address.
    OutageMoved,
    /// etcd has not answered since this process started: the map comes from disk and must be read
    /// again.
    FromDisk,
    /// The map comes from disk, and our lease in etcd still has an old address.
    FromDiskMoved,
}

impl State {
    /// Whether the operator was told about an outage that is not over.
    pub(crate) fn is_outage(self) -> bool {
        match self {
            Self::Outage | Self::OutageMoved | Self::FromDisk | Self::FromDiskMoved => true,
            Self::Current | Self::Moved => false,
        }
    }

    /// Whether a new connection must read the whole list before it watches.
    pub(crate) fn needs_list(self) -> bool {
        matches!(self, Self::FromDisk | Self::FromDiskMoved)
    }

    /// Whether our lease in etcd has an old address.
    pub(crate) fn has_moved(self) -> bool {
        matches!(self, Self::Moved | Self::OutageMoved | Self::FromDiskMoved)
    }

    /// After a failed call or a broken watch.
    pub(crate) fn failed(self) -> Self {
        match self {
            Self::Current => Self::Outage,
            Self::Moved => Self::OutageMoved,
            Self::Outage | Self::OutageMoved | Self::FromDisk | Self::FromDiskMoved => self,
        }
    }

    /// After a change of our address.
    pub(crate) fn moved(self) -> Self {
        match self {
            Self::Current => Self::Moved,
            Self::Outage => Self::OutageMoved,
            Self::FromDisk => Self::FromDiskMoved,
            Self::Moved | Self::OutageMoved | Self::FromDiskMoved => self,
        }
    }

    /// After our lease was written with our present address.
    pub(crate) fn lease_written(self) -> Self {
        match self {
            Self::Moved => Self::Current,
            Self::OutageMoved => Self::Outage,
            Self::FromDiskMoved => Self::FromDisk,
            Self::Current | Self::Outage | Self::FromDisk => self,
        }
    }

    /// After the whole list was read.
    pub(crate) fn listed(self) -> Self {
        match self {
            Self::FromDisk => Self::Outage,
            Self::FromDiskMoved => Self::OutageMoved,
            Self::Current | Self::Moved | Self::Outage | Self::OutageMoved => self,
        }
    }

    /// After the watch was opened: an outage is over.
    pub(crate) fn watching(self) -> Self {
        match self {
            Self::Outage | Self::FromDisk => Self::Current,
            Self::OutageMoved | Self::FromDiskMoved => Self::Moved,
            Self::Current | Self::Moved => self,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outage_ends_when_the_watch_opens() {
        let state = State::Current.failed();
        assert!(state.is_outage() && !state.needs_list() && !state.has_moved());
        assert_eq!(state.failed(), State::Outage, "a second failure is the same outage");
        assert_eq!(state.lease_written().watching(), State::Current);
    }

    #[test]
    fn new_address_outlives_an_outage() {
        let state = State::Current.failed().moved();
        assert!(state.is_outage() && state.has_moved());
        assert_eq!(state.failed(), State::OutageMoved);
        assert_eq!(state.lease_written(), State::Outage);
    }

    #[test]
    fn map_from_disk_is_listed_once() {
        let state = State::FromDisk.failed().moved();
        assert!(state.needs_list() && state.has_moved());
        let state = state.lease_written().listed();
        assert!(!state.needs_list() && state.is_outage());
        assert_eq!(state.watching(), State::Current);
        assert_eq!(State::Outage.failed().listed(), State::Outage);
    }
}
