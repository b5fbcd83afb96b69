//! Which file imports which, and where that goes in a circle.

use std::collections::{BTreeMap, BTreeSet};

use super::source::Source;

/// Edges from a file to the files that it uses.
type Graph<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

/// The cycles, as a few lines that an edit can remove one by one.
///
/// An import of the own folder's root from below it is a line of its own if it closes a cycle,
/// since it is the edge to remove. What is still cyclic without these is a line for each group of
/// files.
pub(crate) fn cycles(sources: &[&Source]) -> BTreeSet<String> {
    let mut graph = graph(sources);
    let module: BTreeMap<&str, &[String]> =
        sources.iter().map(|source| (source.path.as_str(), source.module.as_slice())).collect();
    let mut found = BTreeSet::new();
    for group in groups(&graph) {
        for file in &group {
            let is_upward =
                |used: &&str| group.contains(used) && file != used && module[file].starts_with(module[used]);
            let upward: Vec<&str> = graph[file].iter().copied().filter(is_upward).collect();
            for used in upward {
                found.insert(format!("{file} imports from {used}, which imports from it"));
                graph.get_mut(file).expect("a file of the graph").remove(used);
            }
        }
    }
    found.extend(groups(&graph).iter().map(|group| group.iter().copied().collect::<Vec<_>>().join(" <-> ")));
    found
}

fn graph<'a>(sources: &[&'a Source]) -> Graph<'a> {
    let files: BTreeMap<&[String], &'a str> = sources
        .iter()
        .filter(|source| source.path.starts_with("src/") && !source.path.starts_with("src/bin/"))
        .map(|source| (source.module.as_slice(), source.path.as_str()))
        .collect();
    let edges = |source: &Source| -> BTreeSet<&'a str> {
        let inside = source.uses.iter().filter(|path| path.first().is_some_and(|first| first == "crate"));
        let file = |path: &Vec<String>| {
            // The longest prefix that is a module: the rest names an item in it.
            (1..path.len()).rev().find_map(|length| files.get(&path[1..=length]).copied())
        };
        inside.filter_map(file).filter(|file| *file != source.path).collect()
    };
    sources.iter().map(|source| (source.path.as_str(), edges(source))).collect()
}

/// Groups of more than one file in which each file reaches each other (strongly connected
/// components).
fn groups<'a>(graph: &Graph<'a>) -> Vec<BTreeSet<&'a str>> {
    let reach: BTreeMap<&str, BTreeSet<&str>> =
        graph.keys().map(|file| (*file, reachable(graph, file))).collect();
    let mut seen = BTreeSet::new();
    let mut groups = Vec::new();
    for file in graph.keys().copied() {
        if seen.contains(file) {
            continue;
        }
        let mut group: BTreeSet<&str> =
            reach[file].iter().copied().filter(|other| reach[other].contains(file)).collect();
        group.insert(file);
        seen.extend(group.iter().copied());
        if group.len() > 1 {
            groups.push(group);
        }
    }
    groups
}

fn reachable<'a>(graph: &Graph<'a>, from: &str) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    let mut open: Vec<&str> = graph[from].iter().copied().collect();
    while let Some(file) = open.pop() {
        if found.insert(file) {
            open.extend(&graph[file]);
        }
    }
    found
}
