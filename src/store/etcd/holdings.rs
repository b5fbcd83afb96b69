//! What one list of all keys says: the network configuration, and which node holds which
//! subnet.
#![forbid(unsafe_code)]

use ipnet::IpNet;

use super::record::{Reading, Record, read};
use crate::store::error::{ErrorCode, StoreError};
use crate::store::flannel::{Keys, Network};
use crate::store::watch::{Kv, Listing};

/// Leases in a list, whether they fit the network configuration or not.
#[derive(Debug, Default)]
pub(crate) struct Holdings {
    pub(crate) records: Vec<Record>,
    /// Subnets that have a key, even if its value is invalid.
    pub(crate) taken: Vec<IpNet>,
}

impl Holdings {
    pub(crate) fn of(keys: &Keys, kvs: &[Kv]) -> Self {
        let mut holdings = Self::default();
        for kv in kvs {
            match read(keys, None, kv) {
                Reading::Lease(record) => {
                    holdings.taken.extend(&record.subnets);
                    holdings.records.push(record);
                }
                Reading::Invalid(subnets, _) => holdings.taken.extend(subnets.unwrap_or_default()),
                Reading::Config | Reading::Other => {}
            }
        }
        holdings
    }

    /// Whether no key overlaps `subnets`.
    pub(crate) fn is_free(&self, subnets: &[IpNet]) -> bool {
        !subnets.iter().any(|ours| self.taken.iter().any(|net| net.contains(ours) || ours.contains(net)))
    }
}

/// The network configuration in a list, and its text.
pub(crate) fn network_of(keys: &Keys, listing: &Listing) -> Result<(Network, String), StoreError> {
    let key = keys.config();
    let Some(kv) = listing.kvs.iter().find(|kv| kv.key == key) else {
        return Err(StoreError::new(
            ErrorCode::NetworkMissing,
            format!("etcd has no network configuration ({key}): write one with `hopsack network init`"),
        ));
    };
    let text = String::from_utf8_lossy(&kv.value).into_owned();
    let network = Network::parse(&text).map_err(|error| {
        StoreError::new(
            ErrorCode::NetworkInvalid,
            format!("the network configuration in etcd ({key}) is wrong: {error}"),
        )
    })?;
    if network.backend != "udp" {
        return Err(StoreError::new(
            ErrorCode::BackendUnsupported,
            format!(
                "the network configuration in etcd ({key}) names the backend {}, but this version of hopsack has only \
                 udp: set Backend.Type to \"udp\"",
                network.backend
            ),
        ));
    }
    Ok((network, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_or_unusable_network_is_refused() {
        let keys = Keys::new("/p");
        let code = |text: Option<&str>| {
            let config = |text: &str| Kv {
                key: "/p/config".into(),
                value: text.into(),
                create_revision: 1,
                mod_revision: 1,
                lease: 0,
            };
            let kvs = text.map(config).into_iter().collect();
            network_of(&keys, &Listing { revision: 1, kvs }).map(drop).map_err(|error| error.code)
        };
        assert_eq!(code(None), Err(ErrorCode::NetworkMissing));
        assert_eq!(code(Some("{}")), Err(ErrorCode::NetworkInvalid));
        let vxlan = r#"{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}"#;
        assert_eq!(code(Some(vxlan)), Err(ErrorCode::BackendUnsupported));
        assert_eq!(code(Some(r#"{"Network":"10.1.0.0/16"}"#)), Ok(()));
    }
}
