//! The structure of the source tree, checked by reading the source (see `layers/source.rs`).
//!
//! A module uses only modules in lower layers. No file takes part in an import cycle. `unsafe` is
//! in `src/sys` only; pure modules have no access to the world; one module names each crate that
//! breaks often; functions, files and comment lines stay short. The table `layers/known` lists the
//! violations that still exist, word by word: the test fails on a new one, and also on a row of the
//! table that is no longer true.

#[path = "layers/graph.rs"]
mod graph;
#[path = "layers/source.rs"]
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use source::Source;

/// Top-level modules and programs, lowest layer first. Modules of one layer do not use each other.
const LAYERS: &[&[&str]] = &[
    &["time"],
    &["packet"],
    &["seal", "route"],
    &["forward"],
    &["service", "desired"],
    &["api"],
    &["files"],
    &["control"],
    &["observe"],
    &["config", "pki"],
    &["sys"],
    &["netlink", "nft", "fastpath"],
    &["store", "engine", "docker"],
    &["quic"],
    &["backend", "netfilter", "ingress", "dns"],
    &["reconcile"],
    &["node", "cni"],
    &["cli", "lab"],
    &["lib", "main", "hopsack-cni", "hopsack-lab"],
];

/// Modules that work on bytes and tables, without a clock, a descriptor, a thread or a log.
const PURE: &[&str] = &["time", "packet", "seal", "route", "forward", "service", "desired", "api"];

/// What a pure module must not use.
const WORLD: &[&str] = &[
    "std::fs",
    "std::io",
    "std::env",
    "std::time",
    "std::thread",
    "std::process",
    "std::os",
    "std::net::UdpSocket",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "tokio",
    "libc",
    "tracing",
];

/// Modules that may use these modules only, although more of them are lower.
const ONLY: &[(&str, &[&str])] = &[("observe", &["api", "control", "time"]), ("control", &["api"])];

/// A module that must not use another, although that is lower or not in its layers' way.
const NEVER: &[(&str, &str)] = &[
    ("store", "config"),
    ("store", "backend"),
    ("sys", "seal"),
    ("sys", "forward"),
    ("cli", "store"),
    ("cli", "lab"),
    ("lab", "node"),
];

/// The one module that names a crate with frequent incompatible releases.
const OWNERS: &[(&str, &str)] =
    &[("rtnetlink", "netlink"), ("aya", "fastpath"), ("tun_tap", "sys"), ("io_uring", "sys")];

const MOST_FUNCTION_LINES: usize = 80;
const MOST_FILE_LINES: usize = 500;
const MOST_MEDIAN_LINES: usize = 200;
const MOST_COMMENT_COLUMNS: usize = 100;

#[test]
fn modules_use_lower_layers_only() {
    let layer: BTreeMap<&str, usize> =
        LAYERS.iter().enumerate().flat_map(|(n, row)| row.iter().map(move |name| (*name, n))).collect();
    let mut found = BTreeSet::new();
    for source in outside_tests() {
        let own = source.top();
        let Some(own_layer) = layer.get(own) else {
            panic!("{}: give the module {own:?} its place in LAYERS", source.path);
        };
        for used in used_modules(source) {
            let Some(used_layer) = layer.get(used.as_str()) else {
                panic!("{}: give the module {used:?} its place in LAYERS", source.path);
            };
            let only = ONLY.iter().find(|(name, _)| *name == own);
            let is_too_high = used_layer >= own_layer;
            let is_forbidden = NEVER.contains(&(own, &used)) || used == "node" && own != "cli";
            let is_outside = only.is_some_and(|(_, list)| !list.contains(&used.as_str()));
            if used != own && (is_too_high || is_forbidden || is_outside) {
                found.insert(format!("{} uses {used}", source.path));
            }
        }
    }
    compare("layer", found);
}

#[test]
fn files_do_not_import_each_other_in_a_circle() {
    compare("cycle", graph::cycles(&outside_tests()));
}

#[test]
fn pure_modules_have_no_access_to_the_world() {
    let mut found = BTreeSet::new();
    for source in outside_tests().into_iter().filter(|source| PURE.contains(&source.top())) {
        if !source.forbids_unsafe {
            found.insert(format!("{} lacks #![forbid(unsafe_code)]", source.path));
        }
        for used in source.uses.iter().map(|path| path.join("::")) {
            let starts = |world: &&&str| used == **world || used.starts_with(&format!("{world}::"));
            found.extend(WORLD.iter().find(starts).map(|world| format!("{} uses {world}", source.path)));
        }
    }
    compare("pure", found);
}

#[test]
fn unsafe_stands_in_sys_only() {
    let sites = sources().iter().filter(|source| source.has_unsafe && source.top() != "sys");
    compare("unsafe", sites.map(|source| source.path.clone()).collect());
}

#[test]
fn one_module_names_each_crate_that_breaks_often() {
    let mut found = BTreeSet::new();
    for source in sources() {
        for (name, owner) in OWNERS {
            let names = source.uses.iter().any(|path| path.first().is_some_and(|first| first == name));
            if names && source.top() != *owner {
                found.insert(format!("{} uses {name}", source.path));
            }
        }
    }
    compare("crate", found);
}

#[test]
fn functions_are_short() {
    let long = |source: &'static Source| {
        let long = source.functions.iter().filter(|(_, lines)| *lines > MOST_FUNCTION_LINES);
        long.map(|(name, _)| format!("{} {name}", source.path)).collect::<Vec<_>>()
    };
    compare("function", outside_tests().into_iter().flat_map(long).collect());
}

#[test]
fn files_are_short() {
    let sources = outside_tests();
    let long = sources.iter().filter(|source| source.lines_before_tests > MOST_FILE_LINES);
    compare("file", long.map(|source| source.path.clone()).collect());
    let mut lines: Vec<usize> = sources.iter().map(|source| source.lines_before_tests).collect();
    lines.sort_unstable();
    let median = lines[lines.len() / 2];
    assert!(median < MOST_MEDIAN_LINES, "the median file has {median} lines before its tests");
}

#[test]
fn comment_lines_are_short() {
    let is_long =
        |line: &str| line.trim_start().starts_with("//") && line.chars().count() > MOST_COMMENT_COLUMNS;
    let long = sources().iter().filter(|source| source.text.lines().any(is_long));
    compare("comment", long.map(|source| source.path.clone()).collect());
}

#[test]
fn each_file_says_what_it_is() {
    let is_silent = |text: &str| !text.starts_with("//!") && !text.starts_with("#![doc");
    let silent = sources().iter().filter(|source| is_silent(&source.text));
    compare("opening", silent.map(|source| source.path.clone()).collect());
}

/// All files, read once for all tests.
fn sources() -> &'static [Source] {
    static SOURCES: OnceLock<Vec<Source>> = OnceLock::new();
    SOURCES.get_or_init(source::sources)
}

fn outside_tests() -> Vec<&'static Source> {
    sources().iter().filter(|source| !source.is_test).collect()
}

/// Top-level modules that a file uses.
fn used_modules(source: &Source) -> BTreeSet<String> {
    let inside = source.uses.iter().filter(|path| path.first().is_some_and(|first| first == "crate"));
    // A name of one segment below the root is an item of `lib.rs` or a whole module.
    inside.filter_map(|path| path.get(1).cloned()).collect()
}

/// Fails unless exactly those violations of a rule are found that `layers/known` has.
fn compare(rule: &str, found: BTreeSet<String>) {
    let known = include_str!("layers/known").lines().filter(|line| !line.starts_with('#'));
    let known = known.filter_map(|line| line.split_once(": "));
    let known: BTreeSet<String> =
        known.filter(|(name, _)| *name == rule).map(|(_, violation)| violation.to_owned()).collect();
    let new: Vec<&String> = found.difference(&known).collect();
    let gone: Vec<&String> = known.difference(&found).collect();
    assert!(
        new.is_empty() && gone.is_empty(),
        "against the rule {rule:?}: {new:#?}\nno longer true, take it out of tests/layers/known: {rule}: {gone:#?}"
    );
}

#[test]
fn readme_names_security_tests_that_exist() {
    let table = include_str!("../README.md").lines().skip_while(|line| *line != "## Security");
    let rows = table.take_while(|line| !line.starts_with("## What")).filter(|line| line.starts_with("| "));
    let mut named = 0;
    for row in rows.skip(1) {
        let shown_by = row.trim_end_matches(" |").rsplit(" | ").next().expect("a last column");
        for list in shown_by.split("; ") {
            let (file, names) = list.split_once(": ").unwrap_or_else(|| panic!("{row}"));
            let path = format!("{}/tests/{}", env!("CARGO_MANIFEST_DIR"), file.trim_matches('`'));
            let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
            for name in names.split(", ").map(|name| name.trim_matches('`')) {
                assert!(text.contains(&format!("fn {name}(")), "{path} has no {name}");
                named += 1;
            }
        }
    }
    assert!(named > 10, "the table of README.md was not found");
}
