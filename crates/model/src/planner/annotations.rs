//! The annotations of a Service: their names, and how their values are read. A value that cannot
//! be meant is a [`Refusal`] that names the annotation, the value and the fix; a value that the
//! provider ignores is ignored too, with a warning.

use std::collections::BTreeMap;

/// Start of the name of every annotation here.
pub const PREFIX: &str = "service.beta.kubernetes.io/";

/// Why an object is refused, in words for its author: what, which value, what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal(pub String);

impl Refusal {
    /// A refusal that says `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Refusal(text.into())
    }
}

/// The annotations of one Service.
#[derive(Debug)]
pub struct Annotations<'a> {
    /// By name without [`PREFIX`].
    values: BTreeMap<&'a str, &'a str>,
    /// Values that are ignored, one sentence each.
    pub warnings: Vec<String>,
}

impl<'a> Annotations<'a> {
    /// Reads from `values`.
    pub fn new(values: &'a BTreeMap<String, String>) -> Self {
        let ours = values
            .iter()
            .filter_map(|(key, value)| Some((key.strip_prefix(PREFIX)?, value.as_str())));
        Annotations { values: ours.collect(), warnings: Vec::new() }
    }

    /// The name of an annotation of one port. Nobody looks at it where there is no annotation at
    /// all, as in most Services: then it is empty, and costs nothing.
    pub fn of_port(&self, port: u16, name: &str) -> String {
        if self.values.is_empty() { String::new() } else { format!("port_{port}_{name}") }
    }

    /// The value of `PREFIX` + `name`.
    pub fn get(&self, name: &str) -> Option<&'a str> {
        self.values.get(name).copied()
    }

    /// The value, unless it is blank.
    pub fn text(&self, name: &str) -> Option<&'a str> {
        self.get(name).map(str::trim).filter(|value| !value.is_empty())
    }

    /// Whether the value is `true` in whatever case. Anything but `false` beside it is ignored.
    pub fn is_true(&mut self, name: &str) -> bool {
        let Some(value) = self.get(name) else { return false };
        let value = value.trim();
        if !value.eq_ignore_ascii_case("true") && !value.eq_ignore_ascii_case("false") {
            self.warnings.push(format!(
                "annotation {PREFIX}{name}: {value:?} counts as false: write \"true\" or \"false\""
            ));
        }
        value.eq_ignore_ascii_case("true")
    }

    /// A whole number of at least `min`, and at most `max` where there is one.
    pub fn number(
        &self,
        name: &str,
        min: i64,
        max: i64,
        what: &str,
    ) -> Result<Option<u32>, Refusal> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let range =
            if max == i64::MAX { format!("{min} or more") } else { format!("{min} to {max}") };
        match value.trim().parse::<i64>() {
            Ok(number) if (min..=max).contains(&number) => {
                Ok(Some(u32::try_from(number).unwrap_or(u32::MAX)))
            }
            _ => Err(bad(name, value, &format!("{what} must be a whole number, {range}"))),
        }
    }

    /// The items of a comma-separated list, trimmed, without empty ones.
    pub fn list(&self, name: &str) -> Vec<&'a str> {
        let items = self.get(name).unwrap_or_default().split(',');
        items.map(str::trim).filter(|item| !item.is_empty()).collect()
    }

    /// Annotations of single ports (`port_<port>_...`) that name a port that is not in `ports`.
    pub fn stray_ports(&self, ports: &[u16]) -> Vec<&'a str> {
        self.values
            .keys()
            .copied()
            .filter(|name| {
                let port = name.strip_prefix("port_").and_then(|rest| rest.split('_').next());
                port.is_some_and(|port| port.parse().is_ok_and(|port| !ports.contains(&port)))
            })
            .collect()
    }
}

/// The refusal of an annotation's value.
pub fn bad(name: &str, value: &str, why: &str) -> Refusal {
    Refusal(format!("annotation {PREFIX}{name}: {value:?}: {why}"))
}
