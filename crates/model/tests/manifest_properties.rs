//! What holds for every text, whatever is in it: reading ends, in bounded time and without a panic,
//! and what was written is what is read.

use std::time::{Duration, Instant};

use model::kubernetes::Service;
use model::manifest;
use model::objects::Kind;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

/// No text of the tests here is near to what may take a second.
const TIME_MAX: Duration = Duration::from_secs(20);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        read(&bytes);
    }

    #[test]
    fn any_text_of_yaml_signs_is_read_or_refused(text in yaml_signs()) {
        read(text.as_bytes());
        let utf16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        prop_assert_eq!(manifest::read(&utf16).ok(), manifest::read(text.as_bytes()).ok());
    }

    #[test]
    fn what_was_written_is_read(value in object()) {
        let text = format!("a: {value}\n");
        let read = manifest::read(text.as_bytes());
        let values: Vec<Value> = read.unwrap().objects.into_iter().map(|one| one.value).collect();
        prop_assert_eq!(values, [json!({"a": value})]);
    }

    #[test]
    fn any_object_is_understood_or_refused_by_its_field(value in object(), at in 0..4_usize) {
        let mut service = json!({
            "metadata": {"name": "a"},
            "spec": {"type": "LoadBalancer", "ports": [{"port": 80}]},
        });
        let place = ["/metadata", "/spec", "/spec/ports/0", ""][at];
        let fields = service.pointer_mut(place).unwrap().as_object_mut().unwrap();
        fields.extend(value.as_object().unwrap().clone());
        match manifest::understand::<Service>(Kind::Service, &service) {
            Ok(understood) => drop(model::validation::service(&understood.object)),
            Err(error) => prop_assert!(!error.why.is_empty()),
        }
    }
}

/// Reads within bounded time, and twice the same.
#[expect(clippy::disallowed_methods, reason = "how long it takes is the question")]
fn read(bytes: &[u8]) {
    let start = Instant::now();
    let first = manifest::read(bytes);
    assert!(start.elapsed() < TIME_MAX, "{bytes:?}");
    assert_eq!(manifest::read(bytes), first);
}

/// Texts that are nearly YAML: its signs, in any order.
fn yaml_signs() -> impl Strategy<Value = String> {
    let signs = [
        "- ",
        "? ",
        ": ",
        ", ",
        "{",
        "}",
        "[",
        "]",
        "&a ",
        "*a",
        "<<: ",
        "!!int ",
        "!x ",
        "|\n",
        ">-\n",
        "'",
        "\"",
        "\\",
        "#",
        "%YAML 1.1\n",
        "---\n",
        "...\n",
        "\n",
        "  ",
        "\t",
        "\r\n",
        "a: ",
        "kind: List\n",
        "items:\n",
        "0x1F",
        "1e9",
        "yes",
        "~",
        "\u{feff}",
        "é",
        "\u{85}",
    ];
    prop::collection::vec(prop::sample::select(signs.to_vec()), 0..40)
        .prop_map(|signs| signs.concat())
}

/// Objects as JSON has them; a field of it may be one that Services have.
fn object() -> impl Strategy<Value = Value> {
    let scalar = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[ -~é出]{0,12}".prop_map(Value::from),
    ];
    let name = || {
        prop_oneof![
            "[a-z]{1,8}",
            prop::sample::select(vec!["name", "labels", "ports", "nodePort", "type", "spec"])
                .prop_map(str::to_owned),
        ]
    };
    let value = scalar.prop_recursive(4, 24, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(name(), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect::<Map<_, _>>())),
        ]
    });
    prop::collection::btree_map("[a-z]{1,8}", value, 0..4)
        .prop_map(|map| Value::Object(map.into_iter().collect()))
}
