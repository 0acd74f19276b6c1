//! The cases of Azure's egress semantics, by `deguchi lab replay`. Needs root.

use std::collections::BTreeSet;

use serde_json::Value;

mod lab;

#[test]
fn every_case_is_as_it_should_be_and_nothing_is_left_behind() {
    let name = format!("replay{}", std::process::id());
    let output = lab::deguchi(&["lab", "replay", "--name", &name, "--output", "json"]);
    assert_eq!(lab::left_of(&name), [""; 0]);
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    let cases = report["cases"].as_array().unwrap();
    for case in cases {
        assert_eq!(case["pass"], true, "{case:#}");
        assert_eq!(case["failures"], serde_json::json!([]), "{case:#}");
        assert_eq!(case["expected"], case["observedHttp"], "{case:#}");
        assert_eq!(case["expected"], case["observedWire"], "{case:#}");
    }
    let numbers: BTreeSet<&str> = cases.iter().map(|case| case["case"].as_str().unwrap()).collect();
    let expected = ["1", "2", "3", "4", "5", "6", "7", "8", "9a", "9b", "9c"];
    assert_eq!(numbers, BTreeSet::from(expected));
    assert_eq!(output.status.code(), Some(0));
}
