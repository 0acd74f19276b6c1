//! Functions are short enough to be read at one glance.

use std::path::Path;

use crate::{File, clean, tree};

const FUNCTION_LINES_MAX: usize = 70;
/// Functions that may be longer, by file and name, each with its reason.
const LONG_FUNCTIONS: &[(&str, &str, &str)] = &[
    (
        "crates/datapath/src/ingress.rs",
        "decide",
        "VERIFIER: each step that leaves early shares the stack of the others",
    ),
    ("crates/datapath/tests/rig/tables.rs", "line", "an arm for each table"),
    ("crates/lab/tests/kernel/machine.rs", "fill", "a step for each table"),
    ("crates/model/tests/objects.rs", "samples", "an entry for each kind of object"),
    ("crates/model/tests/planner_properties.rs", "any_object", "an entry for each field"),
    (
        "crates/model/tests/planner_aks.rs",
        "a_bad_profile_is_refused_by_aks_own_names_and_changes_nothing",
        "a table of cases",
    ),
    ("crates/model/tests/planner_cases.rs", "run", "an arm for each step of a case"),
    (
        "crates/model/tests/leases_properties.rs",
        "a_port_belongs_to_one_node_and_rests_120_seconds_between_two",
        "one history, step by step",
    ),
    (
        "crates/model/tests/leases_properties.rs",
        "in_a_narrow_inventory_nothing_overlaps_is_lost_or_stays_unserved",
        "one history, step by step",
    ),
    (
        "crates/deguchi/tests/squeeze.rs",
        "three_full_nodes_become_five_and_no_connection_is_cut",
        "one lab, from start to end",
    ),
    (
        "crates/deguchi/tests/status.rs",
        "status_tells_exactly_what_was_done",
        "one lab, from start to end",
    ),
];

#[test]
fn no_function_is_too_long() {
    let tree = tree();
    let sources = tree.iter().filter(|file| file.is("rs"));
    clean(sources.flat_map(|file| long_functions(file, LONG_FUNCTIONS)).collect());
    for (path, name, _) in LONG_FUNCTIONS {
        let file = tree.iter().find(|file| file.path == Path::new(path));
        let is_long = |file: &File| {
            functions(&file.text)
                .iter()
                .any(|function| function.name == *name && function.lines > FUNCTION_LINES_MAX)
        };
        assert!(file.is_some_and(is_long), "{path}: {name} is not long");
    }
}

#[test]
fn a_long_function_is_seen() {
    let body = |lines: usize| "    x();\n".repeat(lines);
    let text = |lines: usize| {
        format!(
            "fn short() {{}}\ntrait T {{\n    fn none(&self);\n}}\nimpl X {{\n    pub(crate) const \
             unsafe fn a(\n        b: u8,\n    ) -> u8 {{\n{}    }}\n}}\n",
            body(lines)
        )
    };
    let seen = |lines: usize, may: &[(&str, &str, &str)]| {
        long_functions(&File::new("a.rs", &text(lines)), may)
    };
    // Three lines of its head and the last one.
    assert_eq!(seen(FUNCTION_LINES_MAX - 4, &[]), [""; 0]);
    assert_eq!(
        seen(FUNCTION_LINES_MAX - 3, &[]),
        [format!(
            "a.rs:6: `a` has {} lines, {FUNCTION_LINES_MAX} are allowed",
            FUNCTION_LINES_MAX + 1
        )]
    );
    assert_eq!(seen(FUNCTION_LINES_MAX, &[("a.rs", "a", "it may")]), [""; 0]);
    assert_eq!(seen(FUNCTION_LINES_MAX, &[("b.rs", "a", "elsewhere")]).len(), 1);
    let names: Vec<_> = functions(&text(1))
        .iter()
        .map(|function| (function.name.to_owned(), function.lines))
        .collect();
    assert_eq!(names, [("short".to_owned(), 1), ("a".to_owned(), 5)]);
}

struct Function<'a> {
    name: &'a str,
    /// The line that it begins at.
    at: usize,
    lines: usize,
}

/// The functions that have a body, from the line with `fn` to the one that closes it. That the text
/// is as rustfmt leaves it is all that is asked for.
fn functions(text: &str) -> Vec<Function<'_>> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line.trim_start()) else { continue };
        let indent = &line[..line.len() - line.trim_start().len()];
        let head = lines[start..].iter().position(|line| line.ends_with(['{', '}', ';']));
        let Some(head) = head.map(|head| start + head) else { continue };
        if lines[head].ends_with(';') {
            continue;
        }
        let closes = |line: &&str| line.strip_prefix(indent) == Some("}");
        let end = match lines[head].ends_with('}') {
            true => head,
            false => head + lines[head..].iter().position(closes).unwrap_or_default(),
        };
        found.push(Function { name, at: start + 1, lines: end - start + 1 });
    }
    found
}

/// The name of the function whose head begins with this line.
fn function_name(line: &str) -> Option<&str> {
    const BEFORE: &[&str] = &["pub", "const", "async", "unsafe", "extern", "\"C\""];
    let (before, after) = line.strip_prefix("fn ").map(|after| ("", after)).or_else(|| {
        let (before, after) = line.split_once(" fn ")?;
        Some((before, after))
    })?;
    let is_head = before
        .split_whitespace()
        .all(|word| BEFORE.contains(&word.split('(').next().unwrap_or_default()));
    is_head.then(|| after.split(['(', '<']).next()).flatten()
}

fn long_functions(file: &File, long: &[(&str, &str, &str)]) -> Vec<String> {
    let path = file.path.display();
    let may_be = |function: &Function| {
        long.iter().any(|(at, name, _)| file.path == Path::new(at) && *name == function.name)
    };
    functions(&file.text)
        .iter()
        .filter(|function| function.lines > FUNCTION_LINES_MAX && !may_be(function))
        .map(|Function { name, at, lines }| {
            format!("{path}:{at}: `{name}` has {lines} lines, {FUNCTION_LINES_MAX} are allowed")
        })
        .collect()
}
