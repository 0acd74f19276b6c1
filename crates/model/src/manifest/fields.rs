//! From a value to an object of a type: which field is wrong, and which fields nobody knows. A
//! field is known if the type has it or Kubernetes does.

use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Error, Map, Value};

use super::misspelt;
use crate::kind::Kind;
use crate::validation::Checked;

/// Fields that Kubernetes has and nobody here reads, by type.
const ALSO: &[(&str, &[&str])] = &[
    (
        "ObjectMeta",
        &[
            "deletionGracePeriodSeconds",
            "generateName",
            "managedFields",
            "ownerReferences",
            "selfLink",
        ],
    ),
    ("ServiceSpec", &["publishNotReadyAddresses", "trafficDistribution"]),
    ("ServiceStatus", &["conditions"]),
    ("LoadBalancerIngress", &["ipMode", "ports"]),
    ("NodeSpec", &["configSource", "externalID"]),
    (
        "NodeStatus",
        &[
            "allocatable",
            "capacity",
            "config",
            "daemonEndpoints",
            "declaredFeatures",
            "features",
            "images",
            "phase",
            "runtimeHandlers",
            "volumesAttached",
            "volumesInUse",
        ],
    ),
    ("Taint", &["timeAdded"]),
    (
        "Condition",
        &[
            "lastHeartbeatTime",
            "lastProbeTime",
            "lastTransitionTime",
            "message",
            "observedGeneration",
            "reason",
        ],
    ),
    (
        "NodeInfo",
        &[
            "architecture",
            "bootID",
            "containerRuntimeVersion",
            "kernelVersion",
            "kubeProxyVersion",
            "kubeletVersion",
            "operatingSystem",
            "osImage",
            "swap",
            "systemUUID",
        ],
    ),
];

/// What every object may have.
const OF_OBJECTS: [&str; 5] = ["apiVersion", "kind", "metadata", "spec", "status"];

/// An object as it was understood.
#[derive(Debug, Clone, PartialEq)]
pub struct Understood<T> {
    /// The object.
    pub object: T,
    /// What of it is ignored, one sentence each.
    pub warnings: Vec<String>,
}

impl<T> Understood<T> {
    /// What is ignored.
    pub fn into_warnings(self) -> Vec<String> {
        self.warnings
    }
}

/// Why an object was not understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misunderstood {
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Which field, and why.
    pub why: String,
    /// What of it would be ignored anyway, one sentence each.
    pub warnings: Vec<String>,
}

/// Reads an object of this kind. A field that nobody knows is ignored with a warning, unless the
/// object would be open to more people than was meant without it: then it is refused.
pub fn understand<T: DeserializeOwned>(
    kind: Kind,
    value: &Value,
) -> Result<Understood<T>, Misunderstood> {
    let name = value["metadata"]["name"].as_str().filter(|name| !name.is_empty());
    let mut notes = Notes { compares: true, ..Notes::default() };
    let read = T::deserialize(Noting { value, notes: &mut notes });
    let mut warnings: Vec<String> = notes.unknown.iter().map(Unknown::to_string).collect();
    warnings.extend(misspelt::names(kind, value));
    let name = name.map(str::to_owned);
    let wrong = |why: String, warnings: Vec<String>| {
        Err(Misunderstood { name: name.clone(), why, warnings })
    };
    if name.is_none() {
        let why = "metadata.name is missing: every object needs a name";
        return wrong(why.to_owned(), warnings);
    }
    let dangerous = notes.unknown.iter().find(|unknown| {
        kind == Kind::Service && misspelt::is_restricting(&unknown.name) && may_be_open(value)
    });
    if let Some(unknown) = dangerous {
        let why = format!(
            "{unknown}, and the Service would be open to everybody without it: correct it, or \
             take it out"
        );
        return wrong(why, warnings);
    }
    match read {
        Ok(object) => Ok(Understood { object, warnings }),
        Err(error) => {
            let why = notes.why(&error);
            wrong(why, warnings)
        }
    }
}

/// The same, but what an API server would refuse is not understood either.
pub fn accept<T: DeserializeOwned + Checked>(
    kind: Kind,
    value: &Value,
) -> Result<Understood<T>, Misunderstood> {
    let Understood { object, warnings } = understand::<T>(kind, value)?;
    let violations = object.violations();
    if violations.is_empty() {
        return Ok(Understood { object, warnings });
    }
    let name = value["metadata"]["name"].as_str().map(str::to_owned);
    Err(Misunderstood { name, why: violations.join("; "), warnings })
}

/// Reads a value that somebody has understood before, such as one that an API server keeps. In an
/// object `null` is as good as nothing, as it is to the API server.
pub fn reread<T: DeserializeOwned>(value: &Value) -> Result<T, String> {
    let mut notes = Notes::default();
    T::deserialize(Noting { value, notes: &mut notes }).map_err(|error| notes.why(&error))
}

/// Whether a Service is a load balancer, or may be taken for one.
fn may_be_open(service: &Value) -> bool {
    service["spec"]["type"].as_str().is_none_or(|name| name.is_empty() || name == "LoadBalancer")
}

/// What serde says, in words of YAML, with the fix where there is just one.
fn plain(error: &Error) -> String {
    let text = error.to_string();
    for number in ["i64", "u64", "u32", "u16", "u8", "usize"] {
        if let Some(start) = text.strip_suffix(&format!("expected {number}")) {
            return format!("{start}expected a whole number: write it without quotes");
        }
    }
    match text.strip_suffix("expected a string") {
        Some(start) => format!("{start}expected a text: put it in quotes"),
        None => text,
    }
}

/// A field that nobody knows.
struct Unknown {
    path: String,
    name: String,
    near: Option<&'static str>,
}

impl std::fmt::Display for Unknown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "unknown field {:?} is ignored", self.path)?;
        self.near.map_or(Ok(()), |near| write!(f, ": did you mean {near}?"))
    }
}

/// What is noted on the way through a value.
#[derive(Default)]
struct Notes<'de> {
    /// Whether fields that nobody knows are noted.
    compares: bool,
    path: Vec<Step<'de>>,
    unknown: Vec<Unknown>,
    /// Where reading failed.
    wrong: Option<String>,
}

#[derive(Clone, Copy)]
enum Step<'de> {
    Field(&'de str),
    Item(usize),
}

impl<'de> Notes<'de> {
    /// What is wrong, after the path of the field.
    fn why(&self, error: &Error) -> String {
        let path = self.wrong.as_deref().filter(|path| !path.is_empty());
        let path = path.map_or_else(String::new, |path| format!("{path}: "));
        format!("{path}{}", plain(error))
    }

    fn place(&self) -> String {
        self.path.iter().fold(String::new(), |path, step| match step {
            Step::Item(index) => format!("{path}[{index}]"),
            Step::Field(name) if path.is_empty() => (*name).to_owned(),
            Step::Field(name) => format!("{path}.{name}"),
        })
    }

    /// Notes which fields of a struct are not its own.
    fn compare(&mut self, of: &str, known: &'static [&'static str], map: &'de Map<String, Value>) {
        if !self.compares {
            return;
        }
        let of_objects = if self.path.is_empty() { &OF_OBJECTS[..] } else { &[] };
        let also = ALSO.iter().find(|(name, _)| *name == of).map_or(&[][..], |(_, also)| also);
        let all = || known.iter().chain(also).chain(of_objects).copied();
        for name in map.keys().filter(|name| !all().any(|known| known == *name)) {
            self.path.push(Step::Field(name));
            let near = misspelt::nearest_field(name, all());
            self.unknown.push(Unknown { path: self.place(), name: name.clone(), near });
            self.path.pop();
        }
    }

    /// Reads one level deeper.
    fn within<S: DeserializeSeed<'de>>(
        &mut self,
        step: Step<'de>,
        value: &'de Value,
        seed: S,
    ) -> Result<S::Value, Error> {
        self.path.push(step);
        let read = seed.deserialize(Noting { value, notes: self });
        if read.is_err() && self.wrong.is_none() {
            self.wrong = Some(self.place());
        }
        self.path.pop();
        read
    }
}

/// Reads a value and takes notes.
struct Noting<'de, 'n> {
    value: &'de Value,
    notes: &'n mut Notes<'de>,
}

impl<'de> Deserializer<'de> for Noting<'de, '_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::Array(items) => {
                let items = items.iter().enumerate();
                visitor.visit_seq(Items { items, notes: self.notes })
            }
            Value::Object(map) => {
                let fields = map.iter();
                visitor.visit_map(Fields {
                    fields,
                    open: None,
                    is_object: false,
                    notes: self.notes,
                })
            }
            scalar => scalar.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.value.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.value.deserialize_enum(name, variants, visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let Value::Object(map) = self.value else { return self.deserialize_any(visitor) };
        self.notes.compare(name, fields, map);
        let fields = map.iter();
        visitor.visit_map(Fields { fields, open: None, is_object: true, notes: self.notes })
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map identifier ignored_any
    }
}

struct Items<'de, 'n> {
    items: std::iter::Enumerate<std::slice::Iter<'de, Value>>,
    notes: &'n mut Notes<'de>,
}

impl<'de> SeqAccess<'de> for Items<'de, '_> {
    type Error = Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Error> {
        let Some((index, value)) = self.items.next() else { return Ok(None) };
        self.notes.within(Step::Item(index), value, seed).map(Some)
    }
}

struct Fields<'de, 'n> {
    fields: serde_json::map::Iter<'de>,
    open: Option<(&'de String, &'de Value)>,
    /// In an object `null` is as good as nothing; in a map of texts it is an empty one.
    is_object: bool,
    notes: &'n mut Notes<'de>,
}

impl<'de> MapAccess<'de> for Fields<'de, '_> {
    type Error = Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, Error> {
        let is_object = self.is_object;
        self.open = self.fields.find(|(_, value)| !(is_object && value.is_null()));
        let Some((name, _)) = self.open else { return Ok(None) };
        let name = serde::de::value::BorrowedStrDeserializer::new(name);
        seed.deserialize(name).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Error> {
        let (name, value) = match self.open.take() {
            Some((name, value)) => (name.as_str(), value),
            None => ("", &Value::Null),
        };
        self.notes.within(Step::Field(name), value, seed)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cluster::ClusterNetwork;
    use crate::kubernetes::{Node, Service};

    fn warnings<T: DeserializeOwned>(kind: Kind, value: Value) -> Vec<String> {
        match understand::<T>(kind, &value) {
            Ok(understood) => understood.warnings,
            Err(error) => panic!("{error:?}"),
        }
    }

    #[test]
    fn an_unknown_field_is_named_with_the_known_one_that_is_near() {
        let service = |spec: Value| {
            warnings::<Service>(Kind::Service, json!({"metadata": {"name": "a"}, "spec": spec}))
        };
        for (spec, warning) in [
            (
                json!({"loadBalancerIp": "1.2.3.4"}),
                "\"spec.loadBalancerIp\" is ignored: did you mean loadBalancerIP?",
            ),
            (
                json!({"ports": [{"port": 1, "nodeport": 2}]}),
                "\"spec.ports[0].nodeport\" is ignored: did you mean nodePort?",
            ),
            (
                json!({"ports": [{"port": 1, "nonsense": 2}]}),
                "\"spec.ports[0].nonsense\" is ignored",
            ),
        ] {
            assert_eq!(service(spec), [format!("unknown field {warning}")]);
        }
        let network = json!({
            "metadata": {"name": "default", "annotation": {}},
            "spec": {
                "outboundtype": "none",
                "loadBalancerProfile": {"managedOutboundIPs": {"counts": 1}},
            },
            "specc": {},
        });
        assert_eq!(
            warnings::<ClusterNetwork>(Kind::ClusterNetwork, network),
            [
                "unknown field \"specc\" is ignored: did you mean spec?",
                "unknown field \"metadata.annotation\" is ignored: did you mean annotations?",
                "unknown field \"spec.outboundtype\" is ignored: did you mean outboundType?",
                "unknown field \"spec.loadBalancerProfile.managedOutboundIPs.counts\" is ignored: \
                 did you mean count?",
            ]
        );
    }

    #[test]
    fn what_kubernetes_has_is_known() {
        let service = json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": {
                "name": "a", "managedFields": [{"fieldsV1": {"f:x": {}}}], "selfLink": "",
                "ownerReferences": [], "generateName": "a-", "labels": {"any": "thing"},
            },
            "spec": {
                "externalIPs": [], "publishNotReadyAddresses": true, "externalName": "",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 1}},
                "internalTrafficPolicy": "Cluster", "trafficDistribution": "PreferClose",
            },
            "status": {"conditions": [{"a": 1}], "loadBalancer": {"ingress": [
                {"ip": "203.0.113.1", "ipMode": "VIP", "ports": []},
            ]}},
        });
        assert_eq!(warnings::<Service>(Kind::Service, service), [""; 0]);
        let node = json!({
            "metadata": {"name": "n"},
            "spec": {"taints": [{"key": "a", "effect": "NoSchedule", "timeAdded": null}]},
            "status": {
                "capacity": {"cpu": "2"}, "images": [], "nodeInfo": {"osImage": "x", "swap": {}},
                "conditions": [{"type": "Ready", "status": "True", "lastHeartbeatTime": null}],
            },
        });
        assert_eq!(warnings::<Node>(Kind::Node, node), [""; 0]);
        for name in ["sku", "loadBalancerSku", "loadBalancerSKU"] {
            let network = json!({"metadata": {"name": "default"}, "spec": {name: "Basic"}});
            assert_eq!(
                warnings::<ClusterNetwork>(Kind::ClusterNetwork, network),
                [""; 0],
                "{name}"
            );
        }
    }

    #[test]
    fn a_service_is_never_open_because_of_a_word_misspelt() {
        for (spec, is_refused) in [
            (json!({"type": "LoadBalancer", "loadbalancerSourceRanges": ["10.0.0.0/8"]}), true),
            (json!({"type": "LoadBalancer", "loadBalancerSourceRange": ["10.0.0.0/8"]}), true),
            (json!({"type": "LoadBalancer", "sourceRanges": ["10.0.0.0/8"]}), true),
            (json!({"type": "LoadBalancer", "loadBalancerclass": "other"}), true),
            (json!({"Type": "ClusterIP", "ports": [{"port": 1, "nodePort": 30001}]}), true),
            (json!({"loadBalancerSourcRanges": []}), true),
            (json!({"type": "LoadBalancer", "ports": [{"loadBalancerSourceRanges": []}]}), true),
            (json!({"type": "ClusterIP", "loadbalancerSourceRanges": ["10.0.0.0/8"]}), false),
            (json!({"type": "LoadBalancer", "loadBalancerIp": "10.0.0.1"}), false),
        ] {
            let value = json!({"metadata": {"name": "a"}, "spec": spec});
            let read = understand::<Service>(Kind::Service, &value);
            assert_eq!(read.is_err(), is_refused, "{value}: {read:?}");
            if let Err(error) = read {
                assert!(error.why.starts_with("unknown field \"spec."), "{error:?}");
                assert_eq!(error.name.as_deref(), Some("a"));
            }
        }
        let value = json!({
            "metadata": {"name": "a"}, "spec": {"type": "LoadBalancer"},
            "loadBalancerSourceRanges": ["10.0.0.0/8"],
        });
        assert!(understand::<Service>(Kind::Service, &value).is_err());
    }

    #[test]
    fn the_field_that_is_wrong_is_named() {
        for (value, why) in [
            (
                json!({"metadata": {"name": "a"}, "spec": {"ports": [{"port": "80"}]}}),
                "spec.ports[0].port: invalid type: string \"80\", expected a whole number: write \
                 it without quotes",
            ),
            (
                json!({"metadata": {"name": "a", "annotations": {"b": true}}}),
                "metadata.annotations.b: invalid type: boolean `true`, expected a text: put it in \
                 quotes",
            ),
            (json!({"metadata": {}}), "metadata.name is missing: every object needs a name"),
        ] {
            let error = understand::<Service>(Kind::Service, &value).unwrap_err();
            assert_eq!(error.why, why);
        }
    }
}
