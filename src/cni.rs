//! Answers of the CNI plugin.
//!
//! This version answers VERSION. It refuses ADD, DEL and the other commands with an error of the
//! protocol, so that a container runtime shows the reason.
//!
//! Source: the CNI specification 1.1.0, "Execution Protocol" and "Error".
#![forbid(unsafe_code)]

use serde::Serialize;

/// Newest version of the protocol that the plugin knows.
const VERSION: &str = "1.1.0";

/// Error codes ("Error" in the specification): 4 is an invalid environment, codes from 100 are the
/// plugin's own.
const INVALID_ENVIRONMENT: u32 = 4;
const NOT_IN_THIS_VERSION: u32 = 100;

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

/// The line of JSON for standard output: `Ok` with exit code 0, `Err` with exit code 1. `command`
/// is the value of `CNI_COMMAND`.
pub fn answer(command: Option<&str>) -> Result<String, String> {
    let (code, msg) = match command {
        Some("VERSION") => {
            let versions =
                Versions { cni_version: VERSION, supported_versions: &["0.3.1", "0.4.0", "1.0.0", VERSION] };
            return Ok(json(&versions));
        }
        Some(known @ ("ADD" | "DEL" | "CHECK" | "GC" | "STATUS")) => {
            (NOT_IN_THIS_VERSION, format!("hopsack-cni does not support {known} in this version"))
        }
        Some(other) => {
            (INVALID_ENVIRONMENT, format!("CNI_COMMAND={other:?} is not a command of CNI {VERSION}"))
        }
        None => (INVALID_ENVIRONMENT, "CNI_COMMAND is not set: a container runtime runs this program".into()),
    };
    let details =
        "use the bridge plugin with subnet and MTU of /run/flannel/subnet.env, or the flannel plugin";
    Err(json(&Failure { cni_version: VERSION, code, msg, details }))
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("structs of strings and numbers become JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> serde_json::Value {
        serde_json::from_str(text).expect("JSON")
    }

    #[test]
    fn version_is_answered() {
        let answer = parse(&answer(Some("VERSION")).expect("answered"));
        assert_eq!(answer["cniVersion"], VERSION);
        assert!(answer["supportedVersions"].as_array().is_some_and(|list| list.len() == 4));
    }

    #[test]
    fn other_commands_are_refused_with_a_code() {
        for (command, code) in [
            (Some("ADD"), NOT_IN_THIS_VERSION),
            (Some("NONSENSE"), INVALID_ENVIRONMENT),
            (None, INVALID_ENVIRONMENT),
        ] {
            assert_eq!(parse(&answer(command).expect_err("refused"))["code"], code);
        }
    }
}
