//! The CNI plugin's answers. In this version it knows VERSION; ADD, DEL and the rest are refused in
//! the protocol's own words, so that a runtime shows the reason instead of guessing.
//!
//! Source: the CNI specification 1.1.0, "Execution Protocol" and "Error".
#![forbid(unsafe_code)]

use serde::Serialize;

/// The newest version of the protocol that is spoken.
const VERSION: &str = "1.1.0";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    cni_version: &'static str,
    supported_versions: &'static [&'static str],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Failure {
    cni_version: &'static str,
    code: u32,
    msg: String,
    details: &'static str,
}

/// What goes to standard output, as one line of JSON: `Ok` with exit code 0, `Err` with exit code
/// 1. `command` is `CNI_COMMAND`.
pub fn answer(command: Option<&str>) -> Result<String, String> {
    // Specification, "Error": 4 is an invalid environment, 100 and above are the plugin's own.
    let (code, msg) = match command {
        Some("VERSION") => {
            let versions =
                Versions { cni_version: VERSION, supported_versions: &["0.3.1", "0.4.0", "1.0.0", VERSION] };
            return Ok(json(&versions));
        }
        Some(known @ ("ADD" | "DEL" | "CHECK" | "GC" | "STATUS")) => {
            (100, format!("hopsack-cni does not do {known} in this version"))
        }
        Some(other) => (4, format!("CNI_COMMAND={other:?} is no command of CNI {VERSION}")),
        None => (4, "CNI_COMMAND is not set: this program is run by a container runtime".into()),
    };
    let details = "until it does, use the bridge plugin with the subnet and MTU of /run/flannel/subnet.env, or the flannel plugin";
    Err(json(&Failure { cni_version: VERSION, code, msg, details }))
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("plain structs of strings and numbers")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_answered_and_the_rest_refused() {
        assert!(answer(Some("VERSION")).is_ok_and(|text| text.contains("\"supportedVersions\":[")));
        for (command, code) in [(Some("ADD"), "100"), (Some("NONSENSE"), "4"), (None, "4")] {
            let text = answer(command).expect_err("refused");
            assert!(text.contains(&format!("\"code\":{code}")), "{text}");
        }
    }
}
