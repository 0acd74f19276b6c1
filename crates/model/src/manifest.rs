//! What people write, read as kubectl reads it: one or several documents of YAML or JSON, in any
//! encoding of either, with lists of objects taken apart. `plan` and the lab read by this alone.
//!
//! [`read`] finds the objects of a text. [`understand`] makes one of them a value of its type, and
//! says which of its fields nobody knows; [`accept`] also asks the rules of the API server.

mod encoding;
mod fields;
mod misspelt;
mod scalar;
mod yaml;

use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use crate::cluster::{ClusterNetwork, PublicIPAddress, PublicIPPool};
use crate::kind::Kind;
use crate::kubernetes::{Node, ObjectMeta, Service};
use crate::validation::{self, Checked};

pub use fields::{Misunderstood, Understood, accept, reread, understand};

/// Bytes of one text. What kubectl prints of a cluster of ten thousand Services is a third of it.
pub const FILE_BYTES_MAX: usize = 128 << 20;
/// Bytes that the aliases of one text may copy, about.
pub const COPIED_BYTES_MAX: usize = 64 << 20;
/// Collections within collections.
pub const NESTING_MAX: usize = 100;

/// Why a text has no objects.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ReadError {
    /// More than [`FILE_BYTES_MAX`].
    #[error("has more than {} MiB: split it", FILE_BYTES_MAX >> 20)]
    TooLarge,
    /// The bytes are no text.
    #[error("is not {encoding} from byte {at} on: save it as UTF-8")]
    NotText {
        /// Which encoding it should have.
        encoding: &'static str,
        /// The first byte that does not fit.
        at: usize,
    },
    /// The text is not YAML.
    #[error("not YAML: {0}")]
    NotYaml(String),
    /// The text is not JSON, though it starts like it.
    #[error("not JSON: {0}")]
    NotJson(String),
    /// A document is a word or a number.
    #[error("{place}: {value} is not an object: every document must be a YAML or JSON map")]
    NotAnObject {
        /// Which.
        place: String,
        /// What it is, shortened.
        value: String,
    },
}

/// The objects of a text, and what is odd about it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Manifest {
    /// In the order of the text.
    pub objects: Vec<Found>,
    /// One sentence each.
    pub odd: Vec<String>,
}

/// An object of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Found {
    /// Where: `document 2 item 5`.
    pub place: String,
    /// As it was written; an item of a `ServiceList` has got its kind.
    pub value: Value,
    /// What it is.
    pub kind: FoundKind,
}

/// What an object is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FoundKind {
    /// One of those that matter here.
    Known(Kind),
    /// It does not say, but has the shape of this one.
    Shaped(Kind),
    /// Another one, maybe of somebody else's group.
    Other(String),
    /// One that matters here, in a version that does not exist.
    OtherVersion {
        /// The kind.
        kind: Kind,
        /// What was found as its `apiVersion`.
        found: String,
    },
    /// It does not say.
    Missing,
}

/// The objects of a text.
pub fn read(bytes: &[u8]) -> Result<Manifest, ReadError> {
    let mut manifest = Manifest::default();
    let documents = documents(bytes)?;
    manifest.odd = documents.odd;
    let mut open: Vec<(String, Value, Option<String>)> = Vec::new();
    for (index, value) in documents.values.into_iter().enumerate() {
        open.push((format!("document {}", index + 1), value, None));
        // BOUND: a list is inside another one at most NESTING_MAX times.
        while let Some((place, value, of_list)) = open.pop() {
            let (items, of_list) = match value {
                Value::Null => continue,
                Value::Array(items) => (items, None),
                Value::Object(_) => match list(value, of_list) {
                    Ok((items, kind)) => (items, kind),
                    Err(value) => {
                        let kind = kind(&value);
                        manifest.objects.push(Found { place, value, kind });
                        continue;
                    }
                },
                other => {
                    let value = other.to_string().chars().take(60).collect();
                    return Err(ReadError::NotAnObject { place, value });
                }
            };
            let items = items.into_iter().enumerate().rev();
            open.extend(items.map(|(index, item)| {
                (format!("{place} item {}", index + 1), item, of_list.clone())
            }));
        }
    }
    Ok(manifest)
}

/// What of an object is ignored, one sentence each; an error if it is not understood, or an API
/// server would refuse it.
pub fn check(kind: Kind, value: &Value) -> Result<Vec<String>, Misunderstood> {
    match kind {
        Kind::Service => accept::<Service>(kind, value).map(Understood::into_warnings),
        Kind::Node => accept::<Node>(kind, value).map(Understood::into_warnings),
        Kind::ClusterNetwork => {
            accept::<ClusterNetwork>(kind, value).map(Understood::into_warnings)
        }
        Kind::PublicIPPool => accept::<PublicIPPool>(kind, value).map(Understood::into_warnings),
        Kind::PublicIPAddress => {
            accept::<PublicIPAddress>(kind, value).map(Understood::into_warnings)
        }
        // Of resources what nobody here knows is kept, and the others are not written by people.
        _ => accept::<Resource>(kind, value).map(|_| Vec::new()),
    }
}

/// Of a resource in the shape of Azure Resource Manager, what makes it an object.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Resource {
    metadata: ObjectMeta,
}

impl Checked for Resource {
    fn violations(&self) -> Vec<String> {
        validation::metadata(&self.metadata)
    }
}

/// The one value of a text that is no manifest.
pub fn read_value(bytes: &[u8]) -> Result<Option<Value>, ReadError> {
    let mut values = documents(bytes)?.values;
    let value = values.pop();
    Ok(value.filter(|_| values.is_empty()))
}

fn documents(bytes: &[u8]) -> Result<yaml::Documents, ReadError> {
    if bytes.len() > FILE_BYTES_MAX {
        return Err(ReadError::TooLarge);
    }
    let text = encoding::decode(bytes)?;
    if !text.trim_start().starts_with(['{', '[']) {
        return yaml::read(&text).map_err(ReadError::NotYaml);
    }
    let stream = serde_json::Deserializer::from_str(&text).into_iter::<Value>();
    match stream.collect::<Result<Vec<_>, _>>() {
        Ok(values) => Ok(yaml::Documents { values, odd: Vec::new() }),
        // YAML in flow style starts the same way.
        Err(error) => yaml::read(&text).map_err(|_| ReadError::NotJson(error.to_string())),
    }
}

/// The items of a list and what they are, or the value back. Items of a list of one kind, such as
/// `ServiceList`, need not say what they are.
fn list(mut value: Value, of_list: Option<String>) -> Result<(Vec<Value>, Option<String>), Value> {
    let Some(fields) = value.as_object_mut() else { return Err(value) };
    let is_blank = |value: Option<&Value>| match value {
        None | Some(Value::Null) => true,
        Some(value) => value == "",
    };
    if let Some(kind) = of_list.filter(|_| is_blank(fields.get("kind"))) {
        if let Some(known) = Kind::from_name(&kind)
            && is_blank(fields.get("apiVersion"))
        {
            fields.insert("apiVersion".into(), known.api_version().into());
        }
        fields.insert("kind".into(), kind.into());
    }
    let kind = fields.get("kind").and_then(Value::as_str).unwrap_or_default();
    let Some(of_items) = kind.strip_suffix("List").map(str::to_owned) else { return Err(value) };
    let items = match fields.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) => items,
        Some(Value::Null) => Vec::new(),
        Some(other) => {
            fields.insert("items".into(), other);
            return Err(value);
        }
        None => return Err(value),
    };
    Ok((items, Some(of_items).filter(|kind| !kind.is_empty())))
}

fn kind(value: &Value) -> FoundKind {
    let text = |key: &str| value[key].as_str().unwrap_or_default();
    let (name, version) = (text("kind"), text("apiVersion"));
    if name.is_empty() {
        return shape(value).map_or(FoundKind::Missing, FoundKind::Shaped);
    }
    let Some(kind) = Kind::from_name(name) else { return FoundKind::Other(name.to_owned()) };
    let group = |version: &str| version.rsplit_once('/').map_or("", |(group, _)| group).to_owned();
    if version.is_empty() || version == kind.api_version() {
        FoundKind::Known(kind)
    } else if group(version) == group(kind.api_version()) {
        FoundKind::OtherVersion { kind, found: version.to_owned() }
    } else {
        FoundKind::Other(name.to_owned())
    }
}

/// Objects as bare as they come out of some tools have no kind, but a shape.
fn shape(value: &Value) -> Option<Kind> {
    if value["spec"]["ports"].is_array() {
        Some(Kind::Service)
    } else if value["status"]["addresses"].is_array() || value["spec"]["providerID"].is_string() {
        Some(Kind::Node)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn values(text: &str) -> Vec<Value> {
        read(text.as_bytes()).unwrap().objects.into_iter().map(|found| found.value).collect()
    }

    /// The `spec` of a document with this text below `spec:`.
    fn spec(text: &str) -> Value {
        let value = values(&format!("base: &base {{a: 1, b: 2}}\nspec:\n{text}")).remove(0);
        value["spec"].clone()
    }

    #[test]
    fn merge_keys_bring_what_is_not_written_out() {
        for (text, value) in [
            ("  <<: {a: 1}\n  b: 2", json!({"a": 1, "b": 2})),
            ("  <<: *base\n  b: 3", json!({"a": 1, "b": 3})),
            ("  b: 3\n  <<: *base", json!({"a": 1, "b": 3})),
            ("  <<: [{a: 7}, *base]", json!({"a": 7, "b": 2})),
            ("  <<: [*base, {a: 7, c: 8}]", json!({"a": 1, "b": 2, "c": 8})),
            ("  <<: *base\n  <<: {a: 7, c: 8}", json!({"a": 1, "b": 2, "c": 8})),
            ("  - <<: *base\n    c: {<<: *base}", json!([{"a": 1, "b": 2, "c": {"a": 1, "b": 2}}])),
            ("  <<: {a: {x: 1}}\n  a: {z: 2}", json!({"a": {"z": 2}})),
            ("  \"<<\": *base", json!({"<<": {"a": 1, "b": 2}})),
            ("  a: <<", json!({"a": "<<"})),
        ] {
            assert_eq!(spec(text), value, "{text}");
        }
        for text in ["<<: 1", "<<: [1]", "<<: words", "<<: "] {
            let error = read(format!("a: {{{text}}}").as_bytes()).unwrap_err().to_string();
            assert!(error.contains("must be a map or a list of maps"), "{text}: {error}");
        }
    }

    #[test]
    fn what_kubectl_would_read_otherwise_is_told() {
        for (text, part) in
            [("b: 3\n<<: {b: 4}", "write << first"), ("a: 1\na: 2", "\"a\" is there twice")]
        {
            let odd = read(text.as_bytes()).unwrap().odd;
            assert_eq!(odd.len(), 1, "{text}: {odd:?}");
            assert!(odd[0].contains(part) && odd[0].starts_with("line 2: "), "{odd:?}");
        }
        assert_eq!(values("a: 1\na: 2"), [json!({"a": 2})]);
        assert_eq!(read(b"b: 3\n<<: {b: 3}").unwrap().odd, [""; 0]);
    }

    #[test]
    fn documents_lists_and_aliases_are_taken_apart() {
        for (text, count) in [
            ("", 0),
            ("---\n---\n# nothing\n...\n", 0),
            ("a: 1\n---\n\n---\nb: 2\n...\n---\nc: 3\n", 3),
            ("a: 1\r\n---\r\nb: 2\r\n", 2),
            ("{\"a\": 1}\n{\"b\": 2}", 2),
            ("{\"a\": 1}\n---\n{\"b\": 2}", 2),
            ("{\n\t\"a\": 1\n}", 1),
            ("{a: 1, b: [2]}", 1),
            ("- {a: 1}\n- {b: 2}", 2),
            ("kind: List\nitems: [{a: 1}, {kind: List, items: [{b: 1}, {c: 1}]}]", 3),
            ("kind: List\nitems: null", 0),
            ("kind: List\nitems: []", 0),
            ("kind: AllowList\nspec: {}", 1),
            ("a: &x {b: 1}\nc: [*x, *x]\n", 1),
            ("a: &x 1\n--- \na: &x 2\nb: *x", 2),
        ] {
            assert_eq!(values(text).len(), count, "{text:?}");
        }
        let places = read(b"a: 1\n---\nkind: List\nitems: [{a: 1}, {b: 1}]").unwrap().objects;
        let places: Vec<&str> = places.iter().map(|found| found.place.as_str()).collect();
        assert_eq!(places, ["document 1", "document 2 item 1", "document 2 item 2"]);
    }

    #[test]
    fn items_of_a_list_of_one_kind_are_of_that_kind() {
        let found = read(b"apiVersion: v1\nkind: ServiceList\nitems:\n- metadata: {name: a}\n");
        let [found] = &found.unwrap().objects[..] else { panic!("one object") };
        assert_eq!(found.kind, FoundKind::Known(Kind::Service));
        assert_eq!(
            found.value,
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}})
        );
    }

    #[test]
    fn kinds_are_known_by_name_and_group() {
        for (text, kind) in [
            ("{kind: Service}", FoundKind::Known(Kind::Service)),
            ("{apiVersion: v1, kind: Service}", FoundKind::Known(Kind::Service)),
            (
                "{apiVersion: v2, kind: Service}",
                FoundKind::OtherVersion { kind: Kind::Service, found: "v2".into() },
            ),
            (
                "{apiVersion: serving.knative.dev/v1, kind: Service}",
                FoundKind::Other("Service".into()),
            ),
            ("{apiVersion: v1, kind: Secret}", FoundKind::Other("Secret".into())),
            (
                "{apiVersion: deguchi.io/v1alpha1, kind: PublicIPPool}",
                FoundKind::Known(Kind::PublicIPPool),
            ),
            ("{spec: {ports: []}}", FoundKind::Shaped(Kind::Service)),
            ("{status: {addresses: []}}", FoundKind::Shaped(Kind::Node)),
            ("{metadata: {name: a}}", FoundKind::Missing),
        ] {
            assert_eq!(read(text.as_bytes()).unwrap().objects[0].kind, kind, "{text}");
        }
    }

    #[test]
    fn what_is_no_manifest_is_refused_by_its_line() {
        for (text, part) in [
            ("a: [", "not YAML: line 2"),
            ("a:\n\tb: 1", "line 2 column 1"),
            ("a: b: c", "line 1"),
            ("just words", "document 1: \"just words\" is not an object"),
            ("- 1", "document 1 item 1: 1 is not an object"),
            ("{\"a\": }x", "not JSON"),
            ("a: *x", "*x is the alias of nothing"),
            ("a: &x {b: *x}", "*x contains itself"),
            ("? [a]\n: b", "a list or a map is no key"),
            ("a: !!int words", "is not what its tag says"),
            ("a: .nan", "put it in quotes"),
            ("a: \"\\x\"", "line 1"),
            ("a: [!x, y]", "line 1: a tag with a comma right behind it: write its value"),
            ("b: 1\na: [1,\n\t!!str, y]", "line 3: a tag with a comma"),
            ("c: {a: !, b: c}", "line 1: a tag with a comma"),
            ("c: [&x !y, z]", "line 1: a tag with a comma"),
            ("c: [!<tag:x,y>, z]", "line 1: a tag with a comma"),
            ("a: \"!x, \\\n!y,\"\nb: [é, !z!z, y]", "line 3: "),
        ] {
            let error = read(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(part), "{text:?}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn exclamation_marks_in_texts_are_no_tags() {
        for text in [
            "a: Hello !world, how are you",
            "a: [Hello !world, \"!b, !c,\", '!d,']",
            "a: |\n  p { color: red !important, }\n  !x,",
            "# !x, y\na: !!str 1 # !x,",
            "a: [!!str 1, !!str \"x\", !!str ,]",
            "a: !<tag:yaml.org,2002:str> 1",
        ] {
            let text = format!("{text}\n");
            let value = documents(text.as_bytes()).unwrap().values.remove(0);
            let parsed: Value = serde_norway::from_str(&text).unwrap();
            assert_eq!(value, parsed, "{text}");
        }
    }

    #[test]
    fn a_text_that_would_grow_without_bound_is_refused() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let aliases = vec![format!("*a{}", level - 1); 9].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
        }
        let error = read(bomb.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("aliases copy more than 64 MiB"), "{error}");
        let merges =
            format!("a: &a {{b: {}}}\nc:\n{}", "x".repeat(1 << 20), "- <<: *a\n".repeat(80));
        let error = read(merges.as_bytes()).unwrap_err().to_string();
        assert!(error.contains("aliases copy more than 64 MiB"), "{error}");
        let deep = "[".repeat(100_000);
        assert!(read(deep.as_bytes()).is_err());
        let deep = format!("a: {deep}");
        assert!(read(deep.as_bytes()).unwrap_err().to_string().contains("nested more than"));
        assert_eq!(read(&vec![b' '; FILE_BYTES_MAX + 1]), Err(ReadError::TooLarge));
    }
}
