//! Every counter has its line in docs/operating.md, every limit its line in docs/limits.md.

use std::{collections::BTreeSet, fs, path::Path};

use datapath::{Drop, Event, Pass};

fn document(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The first cell of each table row, without back-quotes.
fn first_cells<'a>(lines: impl Iterator<Item = &'a str>) -> BTreeSet<String> {
    lines
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|line| line.split_once(" |"))
        .flat_map(|(cell, _)| cell.split(", "))
        .map(|name| name.trim_matches('`').to_owned())
        .collect()
}

#[test]
fn every_counter_is_documented_and_nothing_else_is() {
    let names: BTreeSet<String> = Pass::ALL
        .iter()
        .map(|pass| pass.name())
        .chain(Drop::ALL.iter().map(|drop| drop.name()))
        .chain(Event::ALL.iter().map(|event| event.name()))
        .map(str::to_owned)
        .collect();
    // Other chapters have tables of other things.
    let text = document("operating.md");
    let chapter = text.lines().skip_while(|line| *line != "## Counters").skip(1);
    let counters = chapter.take_while(|line| !line.starts_with("## "));
    assert_eq!(first_cells(counters), names);
}

#[test]
fn every_reason_to_drop_says_what_it_means_and_what_to_do() {
    let document = document("operating.md");
    for reason in Drop::ALL {
        let start = format!("| `{}` |", reason.name());
        let row = document.lines().find(|line| line.starts_with(&start));
        let cells: Vec<&str> = row.unwrap_or_default().split('|').map(str::trim).collect();
        let [_, _, at, meaning, what_to_do, _] = cells[..] else { panic!("{start} {cells:?}") };
        assert!(![at, meaning, what_to_do].contains(&""), "{start} {cells:?}");
    }
}

#[test]
fn every_limit_of_the_tables_is_documented() {
    let source = include_str!("../src/lib.rs");
    let documented = first_cells(document("limits.md").lines());
    let limits = source
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pub const "))
        .filter_map(|line| line.split_once(':'))
        .map(|(name, _)| name)
        .filter(|name| name.ends_with("_MAX") || name.ends_with("_ROWS"));
    for limit in limits {
        assert!(documented.contains(limit), "{limit} is missing in docs/limits.md");
    }
}
