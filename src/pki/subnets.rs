//! The subnets of a node in its certificate: the extension of RFC 3779 (id-pe-ipAddrBlocks).
//!
//! openssl writes it as `sbgp-ipAddrBlock`. It is not critical: the TLS library refuses critical
//! extensions that it does not know. A range of addresses is read as the prefixes that it consists
//! of. Blocks that are inherited from the issuer are not supported.
//!
//! It does not decide which node may have a subnet: [`Trust`](super::Trust) does. Invariant: what
//! [`encode`] writes, [`decode`] reads as the same subnets (property test).
#![forbid(unsafe_code)]

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv4Subnets, Ipv6Net, Ipv6Subnets};
use rcgen::CustomExtension;
use rustls::pki_types::CertificateDer;
use yasna::tags::TAG_BITSTRING;
use yasna::{ASN1Error, ASN1ErrorKind, ASN1Result, BERReader};

/// id-pe-ipAddrBlocks (RFC 3779 section 2.2.1).
const OID: [u64; 9] = [1, 3, 6, 1, 5, 5, 7, 1, 7];
/// Address families of the IANA, as in the extension.
const IPV4: [u8; 2] = [0, 1];
const IPV6: [u8; 2] = [0, 2];

/// The extension for these subnets.
pub(super) fn extension(subnets: &[IpNet]) -> CustomExtension {
    CustomExtension::from_oid_content(&OID, encode(subnets))
}

/// The subnets in a certificate, in ascending order, IPv4 first; `None` if it has no such
/// extension, or one that cannot be read.
pub(super) fn of(certificate: &CertificateDer<'_>) -> Option<Vec<IpNet>> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let is_blocks = |id: &x509_parser::der_parser::oid::Oid<'_>| id.iter().is_some_and(|id| id.eq(OID));
    let extension = parsed.extensions().iter().find(|extension| is_blocks(&extension.oid))?;
    decode(extension.value).ok()
}

fn encode(subnets: &[IpNet]) -> Vec<u8> {
    let mut subnets = subnets.to_vec();
    subnets.sort_unstable();
    subnets.dedup();
    let families = [(IPV4, true), (IPV6, false)].map(|(family, is_v4)| {
        let is_of_it = |subnet: &&IpNet| matches!(subnet, IpNet::V4(_)) == is_v4;
        (family, subnets.iter().filter(is_of_it).copied().collect::<Vec<IpNet>>())
    });
    yasna::construct_der(|writer| {
        writer.write_sequence(|writer| {
            for (family, subnets) in families.iter().filter(|(_, subnets)| !subnets.is_empty()) {
                writer.next().write_sequence(|writer| {
                    writer.next().write_bytes(family);
                    writer.next().write_sequence(|writer| {
                        for subnet in subnets {
                            let (bytes, bits) = prefix_bits(*subnet);
                            writer.next().write_bitvec_bytes(&bytes, bits);
                        }
                    });
                });
            }
        });
    })
}

/// The bytes of a prefix, and the number of its bits.
fn prefix_bits(subnet: IpNet) -> (Vec<u8>, usize) {
    let bits = usize::from(subnet.prefix_len());
    let mut bytes = match subnet.network() {
        std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
        std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    bytes.truncate(bits.div_ceil(8));
    (bytes, bits)
}

fn decode(der: &[u8]) -> ASN1Result<Vec<IpNet>> {
    let families = yasna::parse_der(der, |reader| reader.collect_sequence_of(read_family))?;
    let mut subnets = families.concat();
    subnets.sort_unstable();
    Ok(subnets)
}

fn invalid() -> ASN1Error {
    ASN1Error::new(ASN1ErrorKind::Invalid)
}

fn read_family(reader: BERReader<'_, '_>) -> ASN1Result<Vec<IpNet>> {
    reader.read_sequence(|reader| {
        let family = reader.next().read_bytes()?;
        // A third byte would be a kind of use, such as multicast, which no subnet of a node is.
        let is_v4 = match <[u8; 2]>::try_from(family) {
            Ok(IPV4) => true,
            Ok(IPV6) => false,
            _ => return Err(invalid()),
        };
        let blocks = reader.next().collect_sequence_of(|reader| read_block(reader, is_v4))?;
        Ok(blocks.concat())
    })
}

/// Reads a prefix, or a range as prefixes.
fn read_block(reader: BERReader<'_, '_>, is_v4: bool) -> ASN1Result<Vec<IpNet>> {
    if reader.lookahead_tag()? == TAG_BITSTRING {
        let (bytes, bits) = reader.read_bitvec_bytes()?;
        let length = u8::try_from(bits).map_err(|_| invalid())?;
        let subnet = if is_v4 {
            Ipv4Net::new(v4(&bytes, 0)?, length).map(|net| IpNet::V4(net.trunc()))
        } else {
            Ipv6Net::new(v6(&bytes, 0)?, length).map(|net| IpNet::V6(net.trunc()))
        };
        return Ok(vec![subnet.map_err(|_| invalid())?]);
    }
    reader.read_sequence(|reader| {
        let (least, _) = reader.next().read_bitvec_bytes()?;
        let (most, bits) = reader.next().read_bitvec_bytes()?;
        let most = with_ones(most, bits);
        Ok(if is_v4 {
            Ipv4Subnets::new(v4(&least, 0)?, v4(&most, 0xff)?, 0).map(IpNet::V4).collect()
        } else {
            Ipv6Subnets::new(v6(&least, 0)?, v6(&most, 0xff)?, 0).map(IpNet::V6).collect()
        })
    })
}

/// The upper end of a range leaves out its last bits if they are ones.
fn with_ones(mut bytes: Vec<u8>, bits: usize) -> Vec<u8> {
    if let Some(last) = bytes.last_mut()
        && !bits.is_multiple_of(8)
    {
        *last |= 0xff >> (bits % 8);
    }
    bytes
}

/// An address from its first bytes; the others are `fill`.
fn v4(bytes: &[u8], fill: u8) -> ASN1Result<Ipv4Addr> {
    let mut octets = [fill; 4];
    octets.get_mut(..bytes.len()).ok_or_else(invalid)?.copy_from_slice(bytes);
    Ok(octets.into())
}

/// An address from its first bytes; the others are `fill`.
fn v6(bytes: &[u8], fill: u8) -> ASN1Result<Ipv6Addr> {
    let mut octets = [fill; 16];
    octets.get_mut(..bytes.len()).ok_or_else(invalid)?.copy_from_slice(bytes);
    Ok(octets.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_subnet() -> impl Strategy<Value = IpNet> {
        let v4 = (any::<u32>(), 0..=32_u8)
            .prop_map(|(bits, len)| IpNet::V4(Ipv4Net::new(bits.into(), len).expect("a length").trunc()));
        let v6 = (any::<u128>(), 0..=128_u8)
            .prop_map(|(bits, len)| IpNet::V6(Ipv6Net::new(bits.into(), len).expect("a length").trunc()));
        prop_oneof![v4, v6]
    }

    proptest! {
        #[test]
        fn decode_undoes_encode(subnets in proptest::collection::btree_set(any_subnet(), 0..10)) {
            let subnets: Vec<IpNet> = subnets.into_iter().collect();
            prop_assert_eq!(decode(&encode(&subnets)).expect("valid"), subnets);
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = decode(&bytes);
        }

        #[test]
        fn changed_blocks_do_not_panic(
            subnet in any_subnet(),
            changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 1..5),
        ) {
            let mut bytes = encode(&[subnet]);
            for (at, byte) in changes {
                let at = at % bytes.len();
                bytes[at] = byte;
            }
            let _ = decode(&bytes);
        }
    }

    #[test]
    fn ranges_are_read_as_prefixes() {
        // 10.0.0.0 to 10.2.255.255: the lower end has 7 bits, the upper one 16.
        let mut der = vec![0x30, 0x13, 0x30, 0x11, 0x04, 0x02, 0, 1, 0x30, 0x0b, 0x30, 0x09];
        der.extend([0x03, 0x02, 1, 0x0a, 0x03, 0x03, 0, 0x0a, 0x02]);
        let read = decode(&der).expect("valid");
        assert_eq!(read, ["10.0.0.0/15", "10.2.0.0/16"].map(|net| net.parse::<IpNet>().expect("a prefix")));
    }
}
