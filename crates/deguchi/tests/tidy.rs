//! Holds the rules of the house that no compiler knows: arrows between crates, names, sizes, links.
//!
//! Each rule is a function from what it looks at to a list of complaints. One test runs it over the
//! whole tree, another shows that it does complain.

#[path = "tidy/circles.rs"]
mod circles;
#[path = "tidy/functions.rs"]
mod functions;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path, PathBuf},
    process::Command,
};

use serde_json::{Value, json};

/// Who may name whom. An arrow that is not here fails; so does a crate that is not here.
const ARROWS: &[(&str, &[&str])] = &[
    ("datapath", &[]),
    ("ebpf", &["datapath"]),
    ("model", &["datapath"]),
    ("controller", &["model"]),
    ("node", &["datapath", "model"]),
    ("lab", &["controller", "datapath", "model", "node"]),
    ("deguchi", &["controller", "datapath", "lab", "model", "node"]),
];

/// The pure crates, and all that they may take from outside.
const PURE: &[(&str, &[&str])] = &[
    ("datapath", &[]),
    ("ebpf", &["aya-ebpf"]),
    (
        "model",
        // libyaml-safer turns a text into events and does no more.
        &["ipnet", "libyaml-safer", "md-5", "serde", "serde_json", "siphasher", "thiserror"],
    ),
];

/// Outside crates that only one of ours may name.
const KEPT_BEHIND: &[(&str, &str)] =
    &[("aya", "node"), ("aya-ebpf", "ebpf"), ("clap", "deguchi"), ("kube", "controller")];

const LINES_MAX: usize = 800;
/// Files that may be longer, each with its reason.
const LONG_FILES: &[(&str, &str)] = &[];

const COLUMNS_MAX: usize = 100;

/// Names that say nothing about what is inside.
const EMPTY_NAMES: &[&str] = &[
    "common", "data", "handler", "handlers", "helper", "helpers", "info", "manager", "misc",
    "types", "util", "utils",
];

/// Marks of unfinished work, in two halves, so that this file does not contain them.
const UNFINISHED: &[(&str, &str)] = &[("XX", "X"), ("FIX", "ME"), ("TO", "DO")];

/// Names a test for each requirement of the RFCs about NAT; such tests begin with `rfc`.
const SHEET: &str = "docs/rfc-compliance.md";

#[test]
fn crates_name_only_whom_they_may() {
    clean(arrows(&metadata()));
}

#[test]
fn every_source_file_is_reached_from_a_target() {
    clean(orphans(&tree(), &target_roots(&metadata())));
}

#[test]
fn every_source_file_says_what_it_owns() {
    clean(tree().iter().filter(|file| file.is("rs")).filter_map(opening).collect());
}

#[test]
fn no_file_is_too_long_and_no_line_too_wide() {
    let tree = tree();
    clean(
        tree.iter().filter(|file| file.is("rs")).flat_map(|file| size(file, LONG_FILES)).collect(),
    );
    for (path, _) in LONG_FILES {
        let file = tree.iter().find(|file| file.path == Path::new(path));
        assert!(file.is_some_and(|file| file.text.lines().count() > LINES_MAX), "{path}: not long");
    }
}

#[test]
fn file_names_say_what_is_inside() {
    clean(tree().iter().filter_map(|file| name(&file.path)).collect());
}

#[test]
fn links_in_documents_lead_somewhere() {
    clean(links(&tree()));
}

#[test]
fn no_mark_of_unfinished_work_is_left() {
    clean(tree().iter().flat_map(unfinished).collect());
}

#[test]
fn the_rfc_sheet_and_the_tests_name_each_other() {
    clean(sheet(&tree()));
}

#[test]
fn an_undeclared_arrow_is_seen() {
    let complaints = |packages: &[Value]| arrows(&json!({ "packages": packages }));

    let inner = |name| dependency(name, None, Some("/somewhere"));
    assert_eq!(complaints(&[package("node", json!([inner("model")]))]), [""; 0]);
    assert_eq!(
        complaints(&[package("controller", json!([inner("node")]))]),
        ["controller -> node is not an arrow"]
    );
    let for_tests = dependency("lab", Some("dev"), Some("/somewhere"));
    assert_eq!(
        complaints(&[package("model", json!([for_tests]))]),
        ["model -> lab is not an arrow"]
    );
    assert_eq!(complaints(&[package("extras", Value::Array(vec![]))]), ["extras is a new crate"]);

    let outer = |name| dependency(name, None, None);
    assert_eq!(
        complaints(&[package("model", json!([outer("tokio"), outer("serde")]))]),
        ["model may not name tokio: it is pure"]
    );
    assert_eq!(
        complaints(&[package("controller", json!([outer("aya")]))]),
        ["controller may not name aya: only node does"]
    );
    let dice = dependency("rand", Some("dev"), None);
    assert_eq!(complaints(&[package("datapath", json!([dice]))]), [""; 0]);
}

#[test]
fn an_orphan_is_seen() {
    let tree = [
        File::new("a/src/lib.rs", "//! A.\nmod near;\n#[path = \"elsewhere.rs\"]\npub mod far;\n"),
        File::new("a/src/near.rs", "pub(crate) mod deeper;\n"),
        File::new("a/src/near/deeper.rs", "// mod lost;\n"),
        File::new("a/src/elsewhere.rs", ""),
        File::new("a/tests/big.rs", "mod part;\n"),
        File::new("a/tests/part/mod.rs", "mod leaf;\n"),
        File::new("a/tests/part/leaf.rs", ""),
        File::new("a/src/lost.rs", ""),
    ];
    let roots = [PathBuf::from("a/src/lib.rs"), PathBuf::from("a/tests/big.rs")];
    assert_eq!(orphans(&tree, &roots), ["a/src/lost.rs: no `mod` leads here"]);
}

#[test]
fn a_missing_opening_is_seen() {
    assert_eq!(opening(&File::new("a.rs", "//! Owns a.\n")), None);
    assert_eq!(opening(&File::new("a.rs", "#![no_std]\n//! Owns a.\n")), None);
    assert!(opening(&File::new("a.rs", "/// Not it.\nfn a() {}\n//! Late.\n")).is_some());
    assert!(opening(&File::new("a.rs", "//!\n")).is_some());
}

#[test]
fn long_files_and_wide_lines_are_seen() {
    let file = |text: String| File::new("a.rs", &text);
    assert_eq!(size(&file("x\n".repeat(LINES_MAX)), &[]), [""; 0]);
    assert_eq!(size(&file("x\n".repeat(LINES_MAX + 1)), &[]).len(), 1);
    assert_eq!(size(&file("x\n".repeat(LINES_MAX + 1)), &[("a.rs", "it may")]), [""; 0]);
    assert_eq!(size(&file("é".repeat(COLUMNS_MAX)), &[]), [""; 0]);
    assert_eq!(size(&file("x".repeat(COLUMNS_MAX + 1)), &[]).len(), 1);
}

#[test]
fn an_empty_name_is_seen() {
    assert_eq!(name(Path::new("crates/model/src/lease.rs")), None);
    assert!(name(Path::new("crates/model/src/utils.rs")).is_some());
    assert!(name(Path::new("crates/common/src/lib.rs")).is_some());
    assert_eq!(name(Path::new("docs/types.md")), None);
}

#[test]
fn a_broken_link_is_seen() {
    let tree = [
        File::new("README.md", "[a](docs/a.md) [b](docs/a.md#second-part) [c](https://x.y/z)\n"),
        File::new("docs/a.md", "# First\n## Second: *part*\n[up](../README.md) [self](#first)\n"),
    ];
    assert_eq!(links(&tree), [""; 0]);
    let broken = |text: &str| {
        let mut tree = tree.to_vec();
        tree[0].text = text.to_owned();
        links(&tree)
    };
    assert_eq!(broken("see [a](docs/b.md)"), ["README.md:1: docs/b.md is not there"]);
    assert_eq!(
        broken("\n[a](docs/a.md#third)"),
        ["README.md:2: docs/a.md has no heading for #third"]
    );
    assert_eq!(broken("`[a](docs/b.md)`\n```\n[a](docs/b.md)\n```\n"), [""; 0]);
}

#[test]
fn a_mark_of_unfinished_work_is_seen() {
    for (first, second) in UNFINISHED {
        let file = File::new("a.md", &format!("fine\nsome {first}{second} thing\n"));
        assert_eq!(unfinished(&file).len(), 1, "{first}{second}");
    }
}

#[test]
fn a_requirement_without_its_test_is_seen() {
    let tests = "#[test]\nfn rfc1_req1_a() {\n}\n    #[test]\n    #[x]\n    fn b() {}\nfn c() {}\n";
    let sheet = |row: &str| {
        let head = "| Requirement | Answer | Shown by |\n| --- | --- | --- |\n";
        sheet(&[File::new(SHEET, &format!("{head}{row}\n")), File::new("a/tests/x.rs", tests)])
    };
    assert_eq!(sheet("| 1: `x` | met | `rfc1_req1_a`, `b` |"), [""; 0]);
    assert_eq!(
        sheet("| 1 | met | `rfc1_req1_a` |\n| 2 | met | `c` |"),
        ["docs/rfc-compliance.md: c is no test"]
    );
    assert_eq!(
        sheet("| 1: `rfc1_req1_a` | not met | |"),
        ["docs/rfc-compliance.md: rfc1_req1_a is missing"]
    );
}

fn package(name: &str, dependencies: Value) -> Value {
    json!({ "name": name, "dependencies": dependencies })
}

fn dependency(name: &str, kind: Option<&str>, path: Option<&str>) -> Value {
    json!({ "name": name, "kind": kind, "path": path })
}

/// A text file of the tree; the path is relative to the workspace.
#[derive(Clone, Debug)]
struct File {
    path: PathBuf,
    text: String,
}

impl File {
    fn new(path: &str, text: &str) -> Self {
        Self { path: path.into(), text: text.to_owned() }
    }

    fn is(&self, extension: &str) -> bool {
        self.path.extension().is_some_and(|found| found == extension)
    }
}

fn clean(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().expect("the workspace")
}

/// Every text file that belongs to the project: all but what is built and what is hidden.
fn tree() -> Vec<File> {
    let root = workspace();
    let mut files = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a readable folder") {
            let path = entry.expect("a readable entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_symlink() || name == "target" || (name.starts_with('.') && name != ".ci") {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(text) = fs::read_to_string(&path) {
                let path = path.strip_prefix(&root).expect("inside the workspace").to_owned();
                files.push(File { path, text });
            }
        }
    }
    files.sort_by(|one, other| one.path.cmp(&other.path));
    assert!(files.iter().any(|file| file.path == Path::new("Cargo.toml")), "this is no workspace");
    files
}

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline", "--locked"])
        .current_dir(workspace())
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON")
}

fn packages(metadata: &Value) -> &[Value] {
    metadata["packages"].as_array().expect("packages")
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("no {field} in {value}"))
}

/// The files that cargo compiles by name: libraries, binaries, tests, benches, build scripts.
fn target_roots(metadata: &Value) -> Vec<PathBuf> {
    let root = workspace();
    packages(metadata)
        .iter()
        .flat_map(|package| package["targets"].as_array().expect("targets"))
        .map(|target| PathBuf::from(text(target, "src_path")))
        .map(|path| path.strip_prefix(&root).expect("inside the workspace").to_owned())
        .collect()
}

fn arrows(metadata: &Value) -> Vec<String> {
    let allowed = BTreeMap::from_iter(ARROWS.iter().copied());
    let mut complaints = Vec::new();
    for package in packages(metadata) {
        let from = text(package, "name");
        let Some(targets) = allowed.get(from) else {
            complaints.push(format!("{from} is a new crate"));
            continue;
        };
        let pure = PURE.iter().find(|(name, _)| *name == from);
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            let to = text(dependency, "name");
            let for_tests = dependency["kind"] == "dev";
            if dependency["path"].is_string() {
                if !targets.contains(&to) {
                    complaints.push(format!("{from} -> {to} is not an arrow"));
                }
                continue;
            }
            if for_tests {
                continue;
            }
            if let Some((_, outside)) = pure
                && !outside.contains(&to)
            {
                complaints.push(format!("{from} may not name {to}: it is pure"));
            } else if let Some((_, owner)) = KEPT_BEHIND.iter().find(|(name, _)| *name == to)
                && *owner != from
            {
                complaints.push(format!("{from} may not name {to}: only {owner} does"));
            }
        }
    }
    complaints
}

fn orphans(tree: &[File], roots: &[PathBuf]) -> Vec<String> {
    let sources: BTreeMap<&Path, &str> = tree
        .iter()
        .filter(|file| file.is("rs"))
        .map(|file| (file.path.as_path(), file.text.as_str()))
        .collect();
    let mut reached = BTreeSet::new();
    // A target's own file looks for its modules beside itself, as a `mod.rs` does.
    let mut open: Vec<(PathBuf, bool)> = roots.iter().map(|root| (root.clone(), true)).collect();
    while let Some((path, is_root)) = open.pop() {
        let Some(text) = sources.get(path.as_path()) else { continue };
        if !reached.insert(path.clone()) {
            continue;
        }
        let beside = path.parent().unwrap_or(Path::new("")).to_owned();
        let is_mod = path.file_name().is_some_and(|name| name == "mod.rs");
        let under = if is_root || is_mod { beside.clone() } else { path.with_extension("") };
        for module in modules(text) {
            open.extend(match module {
                Module::Named(name) => vec![
                    (under.join(format!("{name}.rs")), false),
                    (under.join(name).join("mod.rs"), false),
                ],
                Module::At(file) => vec![(flat(&beside.join(file)), false)],
            });
        }
    }
    sources
        .keys()
        .filter(|path| !reached.contains(**path))
        .map(|path| format!("{}: no `mod` leads here", path.display()))
        .collect()
}

enum Module<'a> {
    Named(&'a str),
    At(&'a str),
}

/// The modules that a file declares in files of their own, and the files that it includes.
fn modules(text: &str) -> Vec<Module<'_>> {
    let mut found = Vec::new();
    let mut at = None;
    for line in text.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("#[path = \"") {
            at = rest.split('"').next();
        } else if let Some(rest) = line.strip_prefix("include!(\"") {
            found.extend(rest.split('"').next().map(Module::At));
        } else if let Some(name) = module_name(line) {
            found.push(at.take().map_or(Module::Named(name), Module::At));
        } else if !line.starts_with("#[") && !line.starts_with("//") {
            at = None;
        }
    }
    found
}

fn module_name(line: &str) -> Option<&str> {
    let line = match line.strip_prefix("pub") {
        Some(rest) if rest.starts_with('(') => rest.split_once(')')?.1,
        Some(rest) => rest,
        None => line,
    };
    line.trim_start().strip_prefix("mod ")?.strip_suffix(';')
}

fn opening(file: &File) -> Option<String> {
    let says = file
        .text
        .lines()
        .take_while(|line| line.is_empty() || line.starts_with("//") || line.starts_with("#!["))
        .any(|line| line.strip_prefix("//!").is_some_and(|rest| !rest.trim().is_empty()));
    (!says).then(|| format!("{}: opens without `//!`", file.path.display()))
}

fn size(file: &File, long: &[(&str, &str)]) -> Vec<String> {
    let path = file.path.display();
    let mut complaints = Vec::new();
    let lines = file.text.lines().count();
    if lines > LINES_MAX && !long.iter().any(|(name, _)| file.path == Path::new(name)) {
        complaints.push(format!("{path}: {lines} lines, {LINES_MAX} are allowed"));
    }
    for (number, line) in (1..).zip(file.text.lines()) {
        let columns = line.chars().count();
        if columns > COLUMNS_MAX {
            complaints.push(format!("{path}:{number}: {columns} columns, not {COLUMNS_MAX}"));
        }
    }
    complaints
}

fn name(path: &Path) -> Option<String> {
    if !path.starts_with("crates") {
        return None;
    }
    let empty = path.with_extension("").components().find_map(|part| match part {
        Component::Normal(part) => {
            EMPTY_NAMES.iter().find(|name| part.eq_ignore_ascii_case(name)).copied()
        }
        _ => None,
    })?;
    Some(format!("{}: `{empty}` does not say what is inside", path.display()))
}

fn links(tree: &[File]) -> Vec<String> {
    let documents: BTreeMap<&Path, &str> =
        tree.iter().map(|file| (file.path.as_path(), file.text.as_str())).collect();
    let folders: BTreeSet<&Path> =
        tree.iter().flat_map(|file| file.path.ancestors().skip(1)).collect();
    let mut complaints = Vec::new();
    for file in tree.iter().filter(|file| file.is("md")) {
        for (number, link) in link_targets(&file.text) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() {
                file.path.clone()
            } else {
                flat(&file.path.parent().unwrap_or(Path::new("")).join(path))
            };
            let from = file.path.display();
            match documents.get(target.as_path()) {
                None if folders.contains(target.as_path()) => {}
                None => complaints.push(format!("{from}:{number}: {path} is not there")),
                Some(text) if !heading.is_empty() && !has_heading(text, heading) => complaints
                    .push(format!("{from}:{number}: {path} has no heading for #{heading}")),
                Some(_) => {}
            }
        }
    }
    complaints
}

/// What `[text](target)` points to, with its line; code is left out.
fn link_targets(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for (number, line) in prose(text) {
        // Every second piece between back quotes is code.
        for piece in line.split('`').step_by(2) {
            let after = piece.split("](").skip(1);
            found.extend(after.filter_map(|rest| Some((number, rest.split_once(')')?.0))));
        }
    }
    found
}

/// The lines outside fenced code, numbered.
fn prose(text: &str) -> Vec<(usize, &str)> {
    let mut in_code = false;
    let mut lines = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        } else if !in_code {
            lines.push((number, line));
        }
    }
    lines
}

/// As the usual renderers name headings: lower case, spaces to hyphens, other signs gone.
fn has_heading(text: &str, wanted: &str) -> bool {
    prose(text).iter().filter(|(_, line)| line.starts_with('#')).any(|(_, line)| {
        let anchor: String = line
            .trim_start_matches('#')
            .trim()
            .chars()
            .filter(|sign| sign.is_alphanumeric() || matches!(sign, ' ' | '-' | '_'))
            .map(|sign| if sign == ' ' { '-' } else { sign.to_ascii_lowercase() })
            .collect();
        anchor == wanted
    })
}

fn unfinished(file: &File) -> Vec<String> {
    let mut complaints = Vec::new();
    for (number, line) in (1..).zip(file.text.lines()) {
        for (first, second) in UNFINISHED {
            let word = format!("{first}{second}");
            if line.contains(&word) {
                complaints.push(format!("{}:{number}: says `{word}`", file.path.display()));
            }
        }
    }
    complaints
}

/// Tests that the sheet names and that are not there, and the other way round.
fn sheet(tree: &[File]) -> Vec<String> {
    let sheet = tree.iter().find(|file| file.path == Path::new(SHEET));
    let rows = sheet.map_or("", |file| &file.text).lines().filter(|line| line.starts_with("| "));
    let named: BTreeSet<&str> = rows
        .filter_map(|row| row.trim_end_matches('|').rsplit('|').next())
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .collect();
    let tests: BTreeSet<&str> =
        tree.iter().filter(|file| file.is("rs")).flat_map(|file| tests(&file.text)).collect();
    let unknown = named.difference(&tests).map(|name| format!("{SHEET}: {name} is no test"));
    let owed = tests.iter().filter(|name| name.starts_with("rfc") && !named.contains(*name));
    unknown.chain(owed.map(|name| format!("{SHEET}: {name} is missing"))).collect()
}

/// The names of a file's tests.
fn tests(text: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim) {
        if line == "#[test]" {
            is_test = true;
        } else if let Some(rest) = line.strip_prefix("fn ") {
            names.extend(rest.split('(').next().filter(|_| is_test));
            is_test = false;
        }
    }
    names
}

/// Without `.` and `..`, and without asking the file system.
fn flat(path: &Path) -> PathBuf {
    path.components().fold(PathBuf::new(), |mut flat, part| {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                flat.pop();
            }
            other => flat.push(other),
        }
        flat
    })
}
