//! The dependency direction of DESIGN.md, kept by reading the source: a module may use what stands below it, never what
//! stands above or beside it. And: `unsafe` stands in `src/sys` only, one module names netlink's crate, files stay small.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Top-level modules, lowest first. Those in one row don't know each other.
const LAYERS: &[&[&str]] = &[
    &["time"],
    &["packet"],
    &["seal"],
    &["route"],
    &["forward"],
    &["api"],
    &["control"],
    &["observe"],
    &["config", "pki"],
    &["store"],
    &["sys"],
    &["netlink", "engine"],
    &["quic"],
    &["backend"],
    &["node", "cni", "lab"],
    &["cli"],
    &["main", "hopsack-cni", "hopsack-lab"],
];

/// Pure modules: bytes and tables. They may not even use the standard library's doors to the world.
const PURE: &[&str] = &["time", "packet", "seal", "route", "forward", "api"];
const DOORS: &[&str] = &[
    "std::fs",
    "std::net::Udp",
    "std::net::Tcp",
    "std::time",
    "std::thread",
    "std::io",
    "std::env",
    "tokio",
    "libc",
    "tracing",
];

#[test]
fn arrows_never_go_up() {
    let level: BTreeMap<&str, usize> =
        LAYERS.iter().enumerate().flat_map(|(n, row)| row.iter().map(move |name| (*name, n))).collect();
    let mut wrong = Vec::new();
    for (path, module, text) in sources() {
        let Some(own) = level.get(module.as_str()) else {
            panic!("{}: give the module {module:?} its place in LAYERS", path.display());
        };
        for used in uses(&text) {
            let Some(other) = level.get(used.as_str()) else { continue };
            if used != module && other >= own {
                wrong.push(format!("{}: {module} uses {used}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn pure_modules_have_no_doors() {
    let mut wrong = Vec::new();
    for (path, module, text) in sources().into_iter().filter(|(_, module, _)| PURE.contains(&module.as_str()))
    {
        // A file of tests is not part of the module.
        if path.ends_with("tests.rs") {
            continue;
        }
        let code = without_tests(&text);
        if !text.contains("#![forbid(unsafe_code)]") {
            wrong.push(format!("{}: {module} is pure and lacks #![forbid(unsafe_code)]", path.display()));
        }
        wrong.extend(
            DOORS
                .iter()
                .filter(|door| code.contains(**door))
                .map(|door| format!("{}: {door}", path.display())),
        );
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn unsafe_stands_in_sys_only() {
    let sites = sources().into_iter().filter(|(_, module, text)| module != "sys" && has_unsafe(text));
    let wrong: Vec<PathBuf> = sites.map(|(path, ..)| path).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn one_module_names_each_crate_that_breaks_often() {
    for (name, owner) in [("rtnetlink", "netlink"), ("tun_tap", "sys"), ("io_uring", "sys")] {
        for (path, module, text) in sources() {
            assert!(module == owner || !text.contains(&format!("{name}::")), "{}: {name}", path.display());
        }
    }
}

#[test]
fn files_stay_small() {
    /// "Near 400" (the aim) leaves room for a file that is one thing.
    const MOST: usize = 500;
    let long: Vec<String> = sources()
        .into_iter()
        .map(|(path, _, text)| (path, without_tests(&text).lines().count()))
        .filter(|(_, lines)| *lines > MOST)
        .map(|(path, lines)| {
            format!("{}: {lines} lines before its tests; make it a folder of its name", path.display())
        })
        .collect();
    assert!(long.is_empty(), "{long:#?}");
}

/// Each source file with its top-level module.
fn sources() -> Vec<(PathBuf, String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![root.clone()];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("src is there") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            if path.extension().is_none_or(|extension| extension != "rs") {
                continue;
            }
            let relative = path.strip_prefix(&root).expect("below src").with_extension("");
            let mut parts = relative.iter().map(|part| part.to_string_lossy().into_owned());
            let first = parts.next().expect("a name");
            let module = if first == "bin" { parts.next().expect("a name") } else { first };
            if module != "lib" {
                found.push((path.clone(), module, fs::read_to_string(&path).expect("UTF-8")));
            }
        }
    }
    assert!(found.len() > 20, "the walk found only {} files", found.len());
    found
}

/// Modules named behind `crate::` or `hopsack::`, in code and not in prose.
fn uses(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
        for root in ["crate::", "hopsack::"] {
            for (at, _) in line.match_indices(root) {
                let rest = &line[at + root.len()..];
                let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                found.push(name);
            }
        }
    }
    found
}

fn without_tests(text: &str) -> &str {
    text.split_once("#[cfg(test)]\nmod tests").map_or(text, |(code, _)| code)
}

fn has_unsafe(text: &str) -> bool {
    text.lines().any(|line| {
        let code = line.trim_start();
        !code.starts_with("//")
            && ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"]
                .iter()
                .any(|word| code.contains(word))
    })
}
