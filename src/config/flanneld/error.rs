//! Reasons why a command line of flanneld is refused.
#![forbid(unsafe_code)]

/// Why a command line of flanneld is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    /// An argument is not a flag. flanneld would ignore it and everything after it.
    #[error("{0:?} is not a flag; write flags as -name=value")]
    NotAFlag(String),
    /// flanneld has no such flag.
    #[error("flanneld has no flag {0}; see `hopsack flanneld --help`")]
    Unknown(String),
    /// The value of a flag is missing.
    #[error("{0} needs a value; write it as {0}=value")]
    NoValue(String),
    /// The value of a flag is of the wrong type or out of range.
    #[error("{given}: write {expected}")]
    BadValue {
        /// The flag as it was given.
        given: String,
        /// What to write.
        expected: &'static str,
    },
    /// hopsack cannot do this.
    #[error("{flag} is refused: {instead}")]
    Refused {
        /// The flag as it was given, without its value if that is a secret.
        flag: String,
        /// What to do.
        instead: &'static str,
    },
    /// None of the interfaces exists.
    #[error("iface: none of {0} is an interface or address of this host; name one that `ip address` lists")]
    NoInterface(String),
    /// No route leads to the address of `iface-can-reach`.
    #[error("iface-can-reach={0}: no route leads to this address; name the interface with iface")]
    NoRoute(String),
    /// Both addresses were given.
    #[error(
        "public-ip and public-ipv6 are given both; write one of them, or none: then hopsack publishes both \
         addresses of the interface"
    )]
    BothAddresses,
}

impl FlagError {
    /// Stable code of the error. The process prints it behind the sentence, in brackets.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotAFlag(_) => "flag_syntax",
            Self::Unknown(_) => "flag_unknown",
            Self::NoValue(_) => "flag_without_value",
            Self::BadValue { .. } => "flag_value",
            Self::Refused { .. } => "flag_refused",
            Self::NoInterface(_) => "flag_no_interface",
            Self::NoRoute(_) => "flag_no_route",
            Self::BothAddresses => "flag_both_addresses",
        }
    }
}
