//! Runs the fuzz targets over their corpora, and over mutations from a fixed seed. So every test
//! run finds again what a fuzzer has found once.

#[path = "fuzz/targets/mod.rs"]
#[allow(unreachable_pub)]
mod targets;

use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

/// Number of mutations for each target.
const MUTATIONS: usize = 20_000;

#[test]
fn targets_survive_their_corpus_and_mutations() {
    for (name, target) in targets::TARGETS {
        let corpus = corpus(name);
        assert!(!corpus.is_empty(), "tests/fuzz/corpus/{name} is empty");
        for (path, input) in &corpus {
            assert!(catch_unwind(|| target(input)).is_ok(), "{name} fails on {}", path.display());
        }
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for round in 0..MUTATIONS {
            let input = mutate(&corpus, &mut random);
            assert!(catch_unwind(|| target(&input)).is_ok(), "{name} fails in round {round} on {input:02x?}");
        }
    }
}

fn corpus(name: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(name);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files.into_iter().map(|path| (path.clone(), fs::read(&path).expect("readable"))).collect()
}

/// Makes an input: changes a few bytes of one in the corpus, removes or repeats a part of it, or
/// appends another.
fn mutate(corpus: &[(PathBuf, Vec<u8>)], random: &mut Random) -> Vec<u8> {
    let mut input = corpus[random.below(corpus.len())].1.clone();
    for _ in 0..=random.below(4) {
        let (from, to) = (random.below(input.len() + 1), random.below(input.len() + 1));
        let (from, to) = (from.min(to), from.max(to));
        match random.below(6) {
            0 if !input.is_empty() => {
                let at = random.below(input.len());
                input[at] ^= 1 << random.below(8);
            }
            1 if !input.is_empty() => {
                let at = random.below(input.len());
                input[at] = [0, 1, 0x7f, 0x80, 0xff][random.below(5)];
            }
            2 => drop(input.drain(from..to)),
            3 => {
                let piece = input[from..to].to_vec();
                input.splice(from..from, piece);
            }
            4 => input.extend(&corpus[random.below(corpus.len())].1),
            _ => input.truncate(to),
        }
        input.truncate(70_000);
    }
    input
}

/// A pseudo-random generator (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).expect("31 bits") % bound
    }
}
