//! Holds the structure of `src/`: a lower layer never names a higher one, only the edges name
//! runtimes, sockets, files, threads and clocks, and every file has a head and a readable size.
//!
//! It reads the source as lines: comments are skipped, and so is what follows `#[cfg(test)] mod` (test
//! modules stand at the end of a file, or in files and folders named `tests`). Two of this file's own tests
//! show that a violation is found.

use std::path::{Path, PathBuf};

/// Layers by rank: a module may name modules of a lower rank and itself. Those of one rank are
/// strangers to each other.
const RANKS: &[(&str, u32)] = &[
    ("base", 0),
    ("disk", 1),
    ("array", 2),
    ("store", 3),
    ("volume", 4),
    ("iscsi", 5),
    ("scsi", 5),
    ("mirror", 5),
    ("cluster", 5),
    ("pair", 6),
    ("rpc", 7),
    ("peer", 7),
    ("sim", 7),
    ("daemon", 8),
    // The set-up in a browser is made of the console's parts.
    ("cli", 9),
    ("witness", 9),
    ("bin", 10),
];

/// What only some modules may name. Beside these, tests and `sim` are free to use what they need.
const RESERVED: &[(&str, &[&str])] = &[
    ("tokio", EDGES),
    ("tokio_stream", EDGES),
    ("tonic", EDGES),
    ("tonic_prost", EDGES),
    ("prost", EDGES),
    ("axum", EDGES),
    ("redb", EDGES),
    ("socket2", EDGES),
    ("io_uring", &["disk"]),
    ("libc", &["disk", "daemon", "cli", "witness"]),
    ("std::net", EDGES),
    ("std::env", EDGES),
    ("std::process", EDGES),
    ("std::fs", &["disk", "peer", "daemon", "witness", "cli"]),
    ("std::os", &["disk", "peer", "daemon", "witness", "cli"]),
    ("std::thread", &["disk", "peer", "daemon", "witness", "cli"]),
    ("std::time::Instant", EDGES),
    ("std::time::SystemTime", EDGES),
    ("rcgen", &["peer"]),
    ("webpki", &["peer"]),
    ("getrandom", EDGES),
];
const EDGES: &[&str] = &["rpc", "peer", "daemon", "witness", "cli", "bin"];

/// Lines above which a file has to say why it is not split, in a line that starts with this marker.
const LONGEST_FILE_LINES: usize = 800;
const LONG_FILE_MARKER: &str = "// Longer than others because ";

#[test]
fn no_layer_names_a_higher_one() {
    report(sources().iter().flat_map(layer_violations).collect());
}

#[test]
fn only_the_edges_name_the_world() {
    report(sources().iter().flat_map(reserved_violations).collect());
}

#[test]
fn files_have_a_head_and_a_readable_size() {
    report(sources().iter().flat_map(style_violations).collect());
}

#[test]
fn an_upward_name_is_found() {
    let source = |module: &[&str], text: &str| Source::new("x.rs".into(), module, text);
    let found = |module: &[&str], text: &str| layer_violations(&source(module, text)).len();
    assert_eq!(found(&["store", "log"], "use crate::scsi::sense::Sense;"), 1);
    assert_eq!(found(&["store", "log"], "use crate::{base::units, daemon::engine};"), 1);
    assert_eq!(found(&["store", "log"], "let x = super::super::scsi::run();"), 1);
    assert_eq!(found(&["iscsi", "pdu"], "use crate::scsi::Command;"), 1, "strangers of one rank");
    assert_eq!(found(&["store", "log"], "use crate::array::Array; // not crate::scsi"), 0);
    assert_eq!(found(&["store", "log"], "use super::map::Map;"), 0);
    assert_eq!(found(&["store"], "fn f() {}\n#[cfg(test)]\nmod tests {\n use crate::sim::Disk;\n}"), 0);
}

#[test]
fn a_reserved_name_is_found() {
    let source = |module: &[&str], text: &str| Source::new("x.rs".into(), module, text);
    let found = |module: &[&str], text: &str| reserved_violations(&source(module, text)).len();
    assert_eq!(found(&["scsi"], "use std::time::{Duration, Instant};"), 1);
    assert_eq!(found(&["scsi"], "use std::time::Duration;"), 0);
    assert_eq!(found(&["iscsi"], "let stream = tokio::net::TcpStream::connect(a);"), 1);
    assert_eq!(found(&["volume"], "use std::{fs::File, rc::Rc};"), 1);
    assert_eq!(found(&["disk"], "use std::fs::File;"), 0);
    assert_eq!(style_violations(&source(&["base"], "fn f() {}\n")).len(), 1);
}

/// One file of `src/`.
struct Source {
    path: PathBuf,
    /// Path of modules, such as `["store", "log"]`.
    module: Vec<String>,
    text: String,
    /// Every path named outside comments and test modules, with its line number.
    names: Vec<(usize, Vec<String>)>,
}

impl Source {
    fn new(path: PathBuf, module: &[&str], text: &str) -> Self {
        let module: Vec<String> = module.iter().map(|part| (*part).to_owned()).collect();
        Self { path, module, text: text.to_owned(), names: names_in(text) }
    }

    fn layer(&self) -> &str {
        self.module.first().map_or("lib", String::as_str)
    }

    fn violation(&self, line: usize, what: &str) -> String {
        format!("{}:{line}: {what}", self.path.display())
    }
}

fn layer_violations(source: &Source) -> Vec<String> {
    let Some(own) = rank(source.layer()) else {
        return if source.layer() == "lib" { vec![] } else { vec![source.violation(1, "has no rank")] };
    };
    let upward = |(line, name): &(usize, Vec<String>)| {
        let named = top_module(&source.module, name)?;
        let higher = named != source.layer() && rank(&named)? >= own;
        higher.then(|| source.violation(*line, &format!("{} names {named}", source.layer())))
    };
    source.names.iter().filter_map(upward).collect()
}

fn reserved_violations(source: &Source) -> Vec<String> {
    if ["lib", "sim"].contains(&source.layer()) {
        return vec![];
    }
    let foreign = |(line, name): &(usize, Vec<String>)| {
        let (reserved, _) = RESERVED.iter().find(|(reserved, allowed)| {
            let parts: Vec<&str> = reserved.split("::").collect();
            name.len() >= parts.len()
                && name.iter().zip(&parts).all(|(a, b)| a == b)
                && !allowed.contains(&source.layer())
        })?;
        Some(source.violation(*line, &format!("{} names {reserved}", source.layer())))
    };
    source.names.iter().filter_map(foreign).collect()
}

fn style_violations(source: &Source) -> Vec<String> {
    let mut found = vec![];
    if !source.text.starts_with("//!") {
        found.push(source.violation(1, "does not open with //!"));
    }
    let lines = source.text.lines().count();
    let excused = source.text.lines().any(|line| line.trim_start().starts_with(LONG_FILE_MARKER));
    if lines > LONGEST_FILE_LINES && !excused {
        found.push(source.violation(lines, "is too long: split it, or say why not"));
    }
    found
}

fn rank(module: &str) -> Option<u32> {
    RANKS.iter().find(|(name, _)| *name == module).map(|(_, rank)| *rank)
}

/// The top-level module that `name`, used in `module`, leads to; none when it stays inside or leaves the crate.
fn top_module(module: &[String], name: &[String]) -> Option<String> {
    if name[0] == "crate" || name[0] == "gemel" {
        return name.get(1).cloned();
    }
    let climbs = name.iter().take_while(|part| *part == "super").count();
    (climbs > 0 && climbs >= module.len()).then(|| name.get(climbs).cloned()).flatten()
}

/// Paths named in `text`; a `use` tree counts as the paths it is short for.
fn names_in(text: &str) -> Vec<(usize, Vec<String>)> {
    let mut names = vec![];
    let lines: Vec<&str> = text.lines().collect();
    let mut index = 0;
    while index < lines.len() {
        if is_test_module(&lines[index..]) {
            break;
        }
        let number = index + 1;
        let mut statement = code_of(lines[index]).to_owned();
        let starts_use = ["use ", "pub use ", "pub(crate) use ", "pub(super) use "]
            .iter()
            .any(|start| statement.trim_start().starts_with(start));
        while starts_use && !statement.contains(';') && index + 1 < lines.len() {
            index += 1;
            statement.push_str(code_of(lines[index]).trim());
        }
        if starts_use {
            let tree = statement.split_once("use ").map_or("", |(_, tree)| tree);
            let mut expanded = vec![];
            expand_use_tree(&[], tree.trim_end_matches(';'), &mut expanded);
            names.extend(expanded.into_iter().map(|name| (number, name)));
        } else {
            names.extend(paths_of(&statement).into_iter().map(|name| (number, name)));
        }
        index += 1;
    }
    names
}

fn is_test_module(lines: &[&str]) -> bool {
    lines[0] == "#[cfg(test)]"
        && lines.get(1).is_some_and(|line| line.starts_with("mod ") && line.ends_with('{'))
}

fn code_of(line: &str) -> &str {
    line.split_once("//").map_or(line, |(code, _)| code)
}

/// Adds each path of a use tree such as `a::{b, c::{d, e}}`.
fn expand_use_tree(prefix: &[String], tree: &str, names: &mut Vec<Vec<String>>) {
    let (path, group) = match tree.split_once('{') {
        Some((path, rest)) => (path, rest.rsplit_once('}').map(|(inner, _)| inner)),
        None => (tree, None),
    };
    let path = path.split(" as ").next().unwrap_or_default();
    let mut full = prefix.to_vec();
    full.extend(path.split("::").map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned));
    match group {
        Some(group) => {
            split_outside_braces(group).iter().for_each(|tree| expand_use_tree(&full, tree, names))
        }
        None if !full.is_empty() => names.push(full),
        None => {}
    }
}

fn split_outside_braces(group: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (vec![], 0, 0);
    for (position, character) in group.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(group[start..position].trim());
                start = position + 1;
            }
            _ => {}
        }
    }
    parts.push(group[start..].trim());
    parts
}

/// Every `a::b::c` in a line of code.
fn paths_of(code: &str) -> Vec<Vec<String>> {
    let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    code.split(|c| !is_path(c))
        .filter(|word| word.contains("::"))
        .map(|word| word.split("::").map(str::to_owned).collect::<Vec<_>>())
        .filter(|path| !path[0].is_empty())
        .collect()
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = vec![];
    collect(&root, &mut paths);
    assert!(paths.len() > 10, "the test reads the wrong place: {}", root.display());
    paths.sort();
    paths.into_iter().filter_map(|path| read_source(&root, path)).collect()
}

fn read_source(root: &Path, path: PathBuf) -> Option<Source> {
    let inside = path.strip_prefix(root).ok()?.with_extension("");
    let mut module: Vec<&str> = inside.iter().filter_map(|part| part.to_str()).collect();
    if module.contains(&"tests") {
        return None;
    }
    if ["mod", "lib"].contains(module.last()?) {
        module.pop();
    }
    let text = std::fs::read_to_string(&path).expect("a source file is readable");
    Some(Source::new(Path::new("src").join(path.strip_prefix(root).ok()?), &module, &text))
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("src/ is readable") {
        let path = entry.expect("src/ is readable").path();
        if path.is_dir() {
            collect(&path, paths);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            paths.push(path);
        }
    }
}

fn report(violations: Vec<String>) {
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}
