//! From YAML to JSON values, as kubectl does it: aliases are copied, merge keys (`<<`) are merged,
//! and keys become text. The parser beneath is libyaml's, as kubectl's is.
//!
//! Nothing here recurses, and what aliases copy is bounded, so that no text can take more memory
//! or time than [`COPIED_BYTES_MAX`] allows.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use libyaml_safer::{Event, EventData, Parser, ScalarStyle};
use serde_json::{Map, Value};

use super::scalar::{Asked, resolve};
use super::{COPIED_BYTES_MAX, NESTING_MAX};

/// The documents of a text, empty ones included, and what is odd about them.
pub(super) struct Documents {
    pub(super) values: Vec<Value>,
    /// One sentence each.
    pub(super) odd: Vec<String>,
}

/// Reads all documents.
pub(super) fn read(text: &str) -> Result<Documents, String> {
    // The parser does not expect a text to end within a line.
    let text = if text.ends_with('\n') { text.to_owned() } else { format!("{text}\n") };
    if let Some(line) = bare_tag(&text) {
        return Err(format!("line {line}: a tag with a comma right behind it: write its value"));
    }
    let mut builder = Builder::default();
    parse(&text, |event| {
        builder.line = event.start_mark.line + 1;
        let line = builder.line;
        builder.take(event.data).map_err(|why| format!("line {line}: {why}"))
    })?;
    Ok(Documents { values: builder.done, odd: builder.odd })
}

/// Hands out the events of a text that ends with a line, but for the last.
fn parse(text: &str, mut take: impl FnMut(Event) -> Result<(), String>) -> Result<(), String> {
    let mut parser = Parser::new();
    parser.set_input(text.as_bytes());
    let mut line = 0;
    // BOUND: the parser ends with its text.
    loop {
        // No text is known at which it gives up. If there is one, it is that text's fault alone.
        let event = catch_unwind(AssertUnwindSafe(|| parser.parse()));
        let event = event.map_err(|_| format!("after line {line}: cannot be understood"))?;
        let event = event.map_err(|error| plain(&error))?;
        line = event.start_mark.line + 1;
        if let EventData::StreamEnd = event.data {
            return Ok(());
        }
        take(event)?;
    }
}

/// The line of the first tag that has a comma right behind it, which nobody writes and at which the
/// parser panics.
///
/// Only the parser knows what is a tag and what is part of a text. So it is shown the same with a
/// blank before each comma in question: whatever the blank comes to stand in, it ends no token that
/// the comma would not have ended.
fn bare_tag(text: &str) -> Option<u64> {
    let commas = commas_after_tags(text);
    if commas.is_empty() {
        return None;
    }
    let mut shown = String::with_capacity(text.len() + commas.len());
    let mut blanks = BTreeSet::new();
    let mut from = 0;
    for comma in commas {
        shown.push_str(&text[from..comma]);
        blanks.insert(shown.len() as u64);
        shown.push(' ');
        from = comma;
    }
    shown.push_str(&text[from..]);
    let mut found = None;
    // What else is wrong is told when the text itself is read.
    let _ = parse(&shown, |event| match event.data {
        EventData::Scalar { tag: Some(_), .. } if blanks.contains(&event.end_mark.index) => {
            found = Some(event.start_mark.line + 1);
            Err(String::new())
        }
        _ => Ok(()),
    });
    found
}

/// Where commas stand behind what would be tags outside of texts.
fn commas_after_tags(text: &str) -> Vec<usize> {
    let mut commas = Vec::new();
    let mut rest = text;
    // BOUND: every round takes a character or more from the rest.
    while let Some(start) = rest.find('!') {
        rest = &rest[start + 1..];
        let end = match rest.strip_prefix('<') {
            Some(uri) => {
                let end = uri.find(|c| !is_of_tag(c) && !matches!(c, ',' | '[' | ']'));
                end.map(|end| if uri[end..].starts_with('>') { end + 2 } else { end + 1 })
            }
            None => rest.find(|c| !is_of_tag(c)),
        };
        rest = &rest[end.unwrap_or(rest.len())..];
        if rest.starts_with(',') {
            commas.push(text.len() - rest.len());
        }
    }
    commas
}

fn is_of_tag(character: char) -> bool {
    character.is_ascii_alphanumeric() || "-_;/?:@&=+$.%!~*'()".contains(character)
}

/// What is wrong, in one line that begins with the place.
fn plain(error: &libyaml_safer::Error) -> String {
    let context = error.context().map_or_else(String::new, |context| format!(" {context}"));
    let problem = error.problem();
    match error.problem_mark() {
        Some(mark) => {
            let (line, column) = (mark.line + 1, mark.column + 1);
            format!("line {line} column {column}: {problem}{context}")
        }
        None => format!("{problem}{context}"),
    }
}

/// Builds values from the parser's events.
#[derive(Default)]
struct Builder {
    open: Vec<Open>,
    anchors: BTreeMap<String, Anchored>,
    copied: usize,
    line: u64,
    done: Vec<Value>,
    odd: Vec<String>,
}

/// What an anchor stands for, and how much it is to copy it.
struct Anchored {
    value: Value,
    bytes: usize,
}

/// A collection that has begun and not ended.
struct Open {
    anchor: Option<String>,
    collection: Collection,
}

enum Collection {
    Sequence(Vec<Value>),
    Mapping(Mapping),
}

#[derive(Default)]
struct Mapping {
    explicit: Map<String, Value>,
    /// From merge keys; what is explicit comes before it, wherever it stands.
    merged: Map<String, Value>,
    key: Option<Key>,
}

enum Key {
    Name(String),
    Merge,
}

impl Builder {
    fn take(&mut self, data: EventData) -> Result<(), String> {
        match data {
            EventData::DocumentStart { .. } => self.anchors.clear(),
            EventData::Scalar { anchor, tag, value, plain_implicit, style, .. } => {
                let is_plain = style == ScalarStyle::Plain;
                if value == "<<" && is_plain && plain_implicit && self.expects_key() {
                    return self.merge_key();
                }
                let asked = match tag.as_deref() {
                    Some(tag) => Asked::by(tag).unwrap_or(Asked::Text),
                    None if is_plain => Asked::Any,
                    None => Asked::Text,
                };
                let value = resolve(&value, asked)?;
                self.finish(anchor, value)?;
            }
            EventData::SequenceStart { anchor, .. } => {
                self.begin(anchor, Collection::Sequence(Vec::new()))?;
            }
            EventData::MappingStart { anchor, .. } => {
                self.begin(anchor, Collection::Mapping(Mapping::default()))?;
            }
            EventData::SequenceEnd | EventData::MappingEnd => self.end()?,
            EventData::Alias { anchor } => {
                let value = self.copy(&anchor)?;
                self.finish(None, value)?;
            }
            EventData::StreamStart { .. }
            | EventData::StreamEnd
            | EventData::DocumentEnd { .. } => {}
        }
        Ok(())
    }

    fn expects_key(&self) -> bool {
        matches!(
            self.open.last(),
            Some(Open { collection: Collection::Mapping(Mapping { key: None, .. }), .. })
        )
    }

    fn merge_key(&mut self) -> Result<(), String> {
        if let Some(Open { collection: Collection::Mapping(mapping), .. }) = self.open.last_mut() {
            mapping.key = Some(Key::Merge);
        }
        Ok(())
    }

    fn begin(&mut self, anchor: Option<String>, collection: Collection) -> Result<(), String> {
        if self.open.len() >= NESTING_MAX {
            return Err(format!("nested more than {NESTING_MAX} times"));
        }
        self.open.push(Open { anchor, collection });
        Ok(())
    }

    fn end(&mut self) -> Result<(), String> {
        let Some(Open { anchor, collection }) = self.open.pop() else { return Ok(()) };
        let value = match collection {
            Collection::Sequence(items) => Value::Array(items),
            Collection::Mapping(Mapping { explicit, mut merged, .. }) => {
                merged.extend(explicit);
                Value::Object(merged)
            }
        };
        self.finish(anchor, value)
    }

    /// A node is complete: it is an item, a key, a value, or a document.
    fn finish(&mut self, anchor: Option<String>, value: Value) -> Result<(), String> {
        if let Some(anchor) = anchor {
            let bytes = bytes(&value);
            self.spend(bytes)?;
            self.anchors.insert(anchor, Anchored { value: value.clone(), bytes });
        }
        let line = self.line;
        match self.open.last_mut().map(|open| &mut open.collection) {
            None => self.done.push(value),
            Some(Collection::Sequence(items)) => items.push(value),
            Some(Collection::Mapping(mapping)) => match mapping.key.take() {
                None => mapping.key = Some(Key::Name(name(value)?)),
                Some(Key::Merge) => {
                    let late = merge(mapping, value)?;
                    self.odd.extend(late.into_iter().map(|name| {
                        format!(
                            "line {line}: << brings {name:?}, which is written out before it: what \
                             is written out counts here, and to kubectl what is merged: write << \
                             first"
                        )
                    }));
                }
                Some(Key::Name(name)) => {
                    if mapping.explicit.contains_key(&name) {
                        self.odd.push(format!(
                            "line {line}: {name:?} is there twice in one map: the last one counts"
                        ));
                    }
                    mapping.explicit.insert(name, value);
                }
            },
        }
        Ok(())
    }

    fn copy(&mut self, anchor: &str) -> Result<Value, String> {
        let is_open = self.open.iter().any(|open| open.anchor.as_deref() == Some(anchor));
        let Some(anchored) = self.anchors.get(anchor) else {
            return Err(match is_open {
                true => format!("*{anchor} contains itself"),
                false => format!("*{anchor} is the alias of nothing: no &{anchor} comes before it"),
            });
        };
        let (bytes, value) = (anchored.bytes, &anchored.value);
        if self.copied.saturating_add(bytes) > COPIED_BYTES_MAX {
            return Err(too_much());
        }
        let value = value.clone();
        self.spend(bytes)?;
        Ok(value)
    }

    fn spend(&mut self, bytes: usize) -> Result<(), String> {
        self.copied = self.copied.saturating_add(bytes);
        if self.copied > COPIED_BYTES_MAX { Err(too_much()) } else { Ok(()) }
    }
}

fn too_much() -> String {
    format!("aliases copy more than {} MiB", COPIED_BYTES_MAX >> 20)
}

/// A key as text, as JSON wants it.
fn name(key: Value) -> Result<String, String> {
    match key {
        Value::String(text) => Ok(text),
        Value::Null => Ok("null".to_owned()),
        Value::Bool(_) | Value::Number(_) => Ok(key.to_string()),
        Value::Array(_) | Value::Object(_) => Err("a list or a map is no key".to_owned()),
    }
}

/// Adds what a merge key brings; what was there before stays. Names that were written out before
/// it, with another value.
fn merge(mapping: &mut Mapping, value: Value) -> Result<Vec<String>, String> {
    let mut late = Vec::new();
    let maps = match value {
        Value::Array(items) => items,
        other => vec![other],
    };
    for map in maps {
        let Value::Object(map) = map else {
            return Err("the value of << must be a map or a list of maps".to_owned());
        };
        for (name, value) in map {
            if mapping.explicit.get(&name).is_some_and(|explicit| *explicit != value) {
                late.push(name.clone());
            }
            mapping.merged.entry(name).or_insert(value);
        }
    }
    Ok(late)
}

/// About how much memory a value takes.
fn bytes(value: &Value) -> usize {
    const NODE: usize = size_of::<Value>();
    let mut total = 0_usize;
    let mut open = vec![value];
    // BOUND: every node is looked at once.
    while let Some(value) = open.pop() {
        total = total.saturating_add(NODE);
        match value {
            Value::String(text) => total = total.saturating_add(text.len()),
            Value::Array(items) => open.extend(items),
            Value::Object(map) => {
                let names: usize = map.keys().map(|name| name.len() + NODE).sum();
                total = total.saturating_add(names);
                open.extend(map.values());
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
    total
}
