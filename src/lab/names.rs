//! Names of labs and of their network namespaces. Pure.

use super::error::LabError;

/// Name of a namespace. `site` is `net`, `h1`, `p1`, ...
pub(super) fn namespace(lab: &str, site: &str) -> String {
    format!("hs-{lab}-{site}")
}

/// Name of the lab that a namespace belongs to; none if it belongs to no lab.
pub(super) fn lab_of(namespace: &str) -> Option<&str> {
    let (lab, site) = namespace.strip_prefix("hs-")?.rsplit_once('-')?;
    let numbered = |prefix| {
        let digits = site.strip_prefix(prefix).unwrap_or_default();
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
    };
    let is_site = site == "net" || numbered("h") || numbered("p");
    (check_name(lab).is_ok() && is_site).then_some(lab)
}

/// Checks the name of a lab. The name becomes part of namespace names, of paths, and of the path of
/// a unix socket, which may have at most 107 bytes (`unix(7)`).
pub(super) fn check_name(name: &str) -> Result<(), LabError> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let plain = (1..=32).contains(&name.len()) && name.bytes().all(allowed);
    if plain && !name.starts_with('-') { Ok(()) } else { Err(LabError::Name(name.to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn namespace_name_contains_the_lab_name() {
        assert_eq!(lab_of("hs-lab-net"), Some("lab"));
        assert_eq!(lab_of("hs-a-h1-h12"), Some("a-h1"));
        assert_eq!(lab_of("hs-a-h1-net"), Some("a-h1"));
        for foreign in ["hs-lab", "hs-lab-h", "hs-lab-h1x", "hs--h1", "cni-1234", "hs-LAB-h1"] {
            assert_eq!(lab_of(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn bad_names_are_refused() {
        for name in ["", "-x", "Lab", "a/b", "a b", &"x".repeat(33)] {
            assert!(matches!(check_name(name), Err(LabError::Name(_))), "{name}");
        }
    }
}
