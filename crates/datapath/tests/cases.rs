//! The case files, through [`datapath`] on this machine. The same files go through the loaded
//! kernel programs in `crates/lab/tests/kernel.rs`.

mod rig;

use std::collections::BTreeSet;

use rig::{case, host::Host, names, tables::Tables};

/// What no case can reach, and why.
const OUT_OF_REACH: &[(&str, &str)] = &[
    ("write_failed", "only a kernel that has no memory left refuses a write"),
    ("client_port_in_use", "it takes all ports of a client; shown in tests/inbound.rs"),
];

#[test]
fn every_case_file_holds() {
    let rewrite = std::env::var_os("UPDATE").is_some();
    let mut complaints = Vec::new();
    for path in case::files() {
        if let Err(problem) = case::play(&path, &mut Host::new(&Tables::default()), rewrite) {
            complaints.push(format!("{}: {problem}", path.display()));
        }
    }
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn the_case_files_reach_every_reason_and_event() {
    let mut reached = BTreeSet::new();
    for path in case::files() {
        let mut host = Host::new(&Tables::default());
        reached.extend(case::play(&path, &mut host, false).unwrap_or_default());
    }
    for name in names().into_values() {
        let excused = OUT_OF_REACH.iter().any(|(other, _)| *other == name);
        assert_ne!(reached.contains(name), excused, "{name}: reached by no case, or excused");
    }
}
