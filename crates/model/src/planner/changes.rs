//! What a step changes: keeps what every touched thing was like before its first touch, and tells
//! at the end what was created, what changed field by field, and what was deleted.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

/// One write.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// What happens.
    pub action: Action,
    /// The resource: `<kind>/<name>` in lower case.
    pub resource: String,
    /// What of the resource; none: the whole of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Value>,
    /// What it becomes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<Value>,
    /// What stops working by it, one sentence each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub breaks: Vec<String>,
}

/// What a [`Change`] does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It was not there.
    Created,
    /// It was different.
    Changed,
    /// It is there no more.
    Deleted,
}

/// A part of a resource: the list, the name in it, and maybe one item of that; all empty for the
/// resource itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    /// `<kind>/<name>` in lower case.
    pub resource: String,
    /// The list, such as `loadBalancingRules`.
    pub list: &'static str,
    /// The name in the list.
    pub name: String,
    /// One of many small things in it, so that nobody has to compare all of them.
    pub item: String,
}

impl Part {
    /// The resource itself, without its lists.
    pub fn whole(resource: String) -> Self {
        Part { resource, list: "", name: String::new(), item: String::new() }
    }

    /// Something in a list of the resource.
    pub fn of(resource: String, list: &'static str, name: &str) -> Self {
        Part { resource, list, name: name.to_owned(), item: String::new() }
    }
}

/// Fields that follow from others, and are no writes of their own.
const DERIVED: [&str; 3] = ["loadBalancingRules", "outboundRules", "ipConfiguration"];

/// What touched things were like.
#[derive(Debug, Clone, Default)]
pub struct Journal {
    before: BTreeMap<Part, Option<Value>>,
}

impl Journal {
    /// Notes what `part` is like before it is touched; only the first note of a step counts.
    pub fn note<T: Serialize>(&mut self, part: Part, current: Option<&T>) {
        self.before.entry(part).or_insert_with(|| {
            current.map(|value| serde_json::to_value(value).unwrap_or_default())
        });
    }

    /// Ends the step. What a part is like now is asked for with `after`; with `false`, only whether
    /// it is there.
    pub fn finish(&mut self, after: impl Fn(&Part, bool) -> Option<Value>) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut whole = BTreeSet::new();
        let mut whole_names = BTreeSet::new();
        for (part, before) in std::mem::take(&mut self.before) {
            // The resource itself sorts before its parts, and they before their items.
            let name = (part.resource.clone(), part.list, part.name.clone());
            if whole.contains(&part.resource) || whole_names.contains(&name) {
                continue;
            }
            let after = after(&part, before.is_some());
            let is_whole = part.list.is_empty();
            if before.is_none() || after.is_none() {
                if part.item.is_empty() {
                    whole_names.insert(name);
                }
                if is_whole {
                    whole.insert(part.resource.clone());
                }
            }
            let action = match (&before, &after) {
                (None, None) => continue,
                (None, Some(_)) => Action::Created,
                (Some(_), None) => Action::Deleted,
                (Some(_), Some(_)) => Action::Changed,
            };
            let field = (!is_whole).then(|| match part.item.as_str() {
                "" => format!("{}[{}]", part.list, part.name),
                item => format!("{}[{}].{item}", part.list, part.name),
            });
            match (action, before, after) {
                (Action::Changed, Some(before), Some(after)) => {
                    let mut differences = Vec::new();
                    compare(&before, &after, field.unwrap_or_default(), &mut differences);
                    changes.extend(differences.into_iter().map(|(field, from, to)| Change {
                        action,
                        resource: part.resource.clone(),
                        field: Some(field),
                        from,
                        to,
                        breaks: Vec::new(),
                    }));
                }
                _ => {
                    changes.push(Change {
                        action,
                        resource: part.resource.clone(),
                        field,
                        from: None,
                        to: None,
                        breaks: Vec::new(),
                    });
                }
            }
        }
        changes
    }
}

type Difference = (String, Option<Value>, Option<Value>);

/// Every field that differs, by its path.
fn compare(before: &Value, after: &Value, path: String, differences: &mut Vec<Difference>) {
    if before == after {
        return;
    }
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
            for key in keys.into_iter().filter(|key| !DERIVED.contains(&key.as_str())) {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                match (before.get(key), after.get(key)) {
                    (Some(before), Some(after)) => compare(before, after, path, differences),
                    (before, after) => differences.push((path, before.cloned(), after.cloned())),
                }
            }
        }
        (Value::Array(before), Value::Array(after)) => {
            // Members that left and members that came, not positions: a node that goes from the
            // middle of a pool is one change.
            let texts = |values: &[Value]| -> BTreeSet<String> {
                values.iter().map(Value::to_string).collect()
            };
            let (old, new) = (texts(before), texts(after));
            let gone = before.iter().filter(|value| !new.contains(&value.to_string()));
            differences.extend(gone.map(|value| (path.clone(), Some(value.clone()), None)));
            let came = after.iter().filter(|value| !old.contains(&value.to_string()));
            differences.extend(came.map(|value| (path.clone(), None, Some(value.clone()))));
        }
        _ => differences.push((path, Some(before.clone()), Some(after.clone()))),
    }
}
