//! Errors of opening a store and of operator commands: a stable code, and a sentence for the
//! operator.
//!
//! The code decides the exit code of the process and is what tests assert on. The sentence says
//! what failed, why, and how to fix it; its wording may change.
#![forbid(unsafe_code)]

/// A store that cannot be opened, or an operator command that was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct StoreError {
    /// Which error this is.
    pub code: ErrorCode,
    /// One sentence for the operator.
    pub text: String,
    /// Why the map on disk could not be used in place of etcd, if there was one.
    pub snapshot: Option<SnapshotError>,
}

impl StoreError {
    /// An error that has nothing to do with the map on disk.
    pub fn new(code: ErrorCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into(), snapshot: None }
    }

    /// Stable code of the error. The process prints it behind the sentence, in brackets.
    #[must_use]
    pub fn code(&self) -> &'static str {
        self.code.label()
    }

    /// Adds why the map on disk could not be used.
    pub(super) fn with_snapshot(mut self, refused: Option<SnapshotError>) -> Self {
        if let Some(problem) = &refused {
            self.text += &format!("; the map on disk was refused: {problem}");
        }
        self.snapshot = refused;
        self
    }

    /// Whether only an edit of the configuration or of the map can fix this (exit code 2). Other
    /// errors may go away by themselves, so that the caller may try again (exit code 1).
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        self.code.is_permanent()
    }
}

/// Stable codes of store errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// A certificate, key or password file cannot be read, or other users can read a secret.
    Credentials,
    /// The list of endpoints is empty.
    NoEndpoints,
    /// This host has no address at which other hosts reach it.
    NoAddress,
    /// The node id cannot be read or written.
    NodeId,
    /// etcd refuses our user or certificate.
    Denied,
    /// No endpoint answers.
    Unreachable,
    /// etcd has no network configuration.
    NetworkMissing,
    /// The network configuration is wrong.
    NetworkInvalid,
    /// The network configuration names a backend that this version does not have.
    BackendUnsupported,
    /// There is another network configuration already.
    NetworkExists,
    /// The network configuration was changed at the same moment.
    NetworkChanged,
    /// Every subnet is taken.
    NetworkFull,
    /// Another hopsack holds a lease with our address.
    AddressTaken,
    /// The configured name is no name of a host.
    NodeName,
    /// Our address cannot be an underlay address in this cluster.
    AddressUnfit,
    /// A living node has our node id: the state directory was copied.
    StateCopied,
    /// A subnet outside the configured range is reserved for this host.
    ReservationOutside,
    /// The subnets in our certificate are none that we can lease.
    CertificateSubnets,
    /// Another lease holds a subnet of our certificate.
    CertificateSubnetsTaken,
    /// No lease holds the subnet.
    NoSuchLease,
    /// The lease is a reservation.
    Reserved,
    /// The lease was written at the same moment.
    LeaseChanged,
    /// The cluster file cannot be read.
    FileUnreadable,
    /// The cluster file is wrong.
    FileInvalid,
    /// The cluster file does not list this host.
    HostNotListed,
}

impl ErrorCode {
    /// The code as the process prints it.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Credentials => "store_credentials",
            Self::NoEndpoints => "store_no_endpoints",
            Self::NoAddress => "store_no_address",
            Self::NodeId => "node_id",
            Self::Denied => "store_denied",
            Self::Unreachable => "store_unreachable",
            Self::NetworkMissing => "network_missing",
            Self::NetworkInvalid => "network_invalid",
            Self::BackendUnsupported => "backend_unsupported",
            Self::NetworkExists => "network_exists",
            Self::NetworkChanged => "network_changed",
            Self::NetworkFull => "network_full",
            Self::AddressTaken => "address_taken",
            Self::NodeName => "node_name",
            Self::AddressUnfit => "address_unfit",
            Self::StateCopied => "state_copied",
            Self::ReservationOutside => "reservation_outside",
            Self::CertificateSubnets => "certificate_subnets",
            Self::CertificateSubnetsTaken => "certificate_subnets_taken",
            Self::NoSuchLease => "no_such_lease",
            Self::Reserved => "lease_reserved",
            Self::LeaseChanged => "lease_changed",
            Self::FileUnreadable => "cluster_file_unreadable",
            Self::FileInvalid => "cluster_file_invalid",
            Self::HostNotListed => "host_not_listed",
        }
    }

    /// See [`StoreError::is_permanent`].
    #[must_use]
    pub fn is_permanent(self) -> bool {
        match self {
            Self::Unreachable
            | Self::NetworkMissing
            | Self::NetworkChanged
            | Self::NetworkFull
            | Self::CertificateSubnetsTaken
            | Self::LeaseChanged => false,
            Self::Credentials
            | Self::NoEndpoints
            | Self::NoAddress
            | Self::NodeId
            | Self::Denied
            | Self::NetworkInvalid
            | Self::BackendUnsupported
            | Self::NetworkExists
            | Self::CertificateSubnets
            | Self::AddressTaken
            | Self::AddressUnfit
            | Self::NodeName
            | Self::StateCopied
            | Self::ReservationOutside
            | Self::NoSuchLease
            | Self::Reserved
            | Self::FileUnreadable
            | Self::FileInvalid
            | Self::HostNotListed => true,
        }
    }
}

/// Why the map on disk is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// The map is of a time when this host had other subnets than its certificate contains.
    #[error("it is of a time when this host had other subnets than its certificate is for")]
    OtherSubnets,
    /// The file cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// Path of the file.
        path: String,
        /// What the kernel says.
        error: String,
    },
    /// The checksum or the length is wrong.
    #[error("{path}: the file is damaged: delete it")]
    Damaged {
        /// Path of the file.
        path: String,
    },
    /// The content is not a map.
    #[error("{path}: the file is not a map ({error}): delete it")]
    NotAMap {
        /// Path of the file.
        path: String,
        /// What the JSON parser says.
        error: String,
    },
    /// Another version of hopsack wrote the file.
    #[error("{path}: another version of hopsack wrote the file (format {format}): delete it")]
    OtherVersion {
        /// Path of the file.
        path: String,
        /// First word of the file.
        format: String,
    },
    /// The map belongs to another node id or another prefix.
    #[error("the map belongs to another node or another store.prefix")]
    OtherNode,
    /// Our lease has expired and the host has been rebooted since.
    #[error(
        "the lease of this node has expired and the host was rebooted since, so that another node may have its subnet"
    )]
    LeaseExpired,
    /// The network configuration in the map is wrong.
    #[error("the network configuration in the map is wrong: {0}")]
    Network(String),
}
