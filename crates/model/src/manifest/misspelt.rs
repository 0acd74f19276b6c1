//! Words that are nearly ones that matter: which known one was meant, and whether a Service is open
//! to more people when it is ignored.

use serde_json::Value;

use crate::nearest::nearest;
use crate::objects::Kind;
use crate::reconcile::{PORTS_ANNOTATION, TABLE_ANNOTATION};

/// Fields of a Service that keep people out, or keep the Service away from this load balancer.
const RESTRICTING: [&str; 3] = ["loadBalancerSourceRanges", "loadBalancerClass", "type"];
/// What else people call the first of them.
const RANGES: &str = "sourcerange";

/// Whether a field that nobody knows was probably meant to keep people out.
pub(super) fn is_restricting(name: &str) -> bool {
    nearest_field(name, RESTRICTING.into_iter()).is_some() || name.to_lowercase().contains(RANGES)
}

/// The known field that is nearest to a mistyped one, without regard to case.
pub(super) fn nearest_field(
    name: &str,
    known: impl Iterator<Item = &'static str> + Clone,
) -> Option<&'static str> {
    let lower: Vec<String> = known.clone().map(str::to_lowercase).collect();
    let near = nearest(&name.to_lowercase(), lower.iter().map(String::as_str))?;
    let place = lower.iter().position(|candidate| candidate == near)?;
    known.into_iter().nth(place)
}

/// Start of the names of this product's own annotations.
const OWN: &str = "deguchi.io/";

/// Sentences about annotations that are this product's by name, and that no object of this kind
/// has.
pub(super) fn annotations(kind: Kind, value: &Value) -> Vec<String> {
    let known: &[&str] = match kind {
        Kind::ClusterNetwork => &[PORTS_ANNOTATION, TABLE_ANNOTATION],
        Kind::Node => &[crate::decide::PUBLIC_IP_ANNOTATION],
        _ => &[],
    };
    let given = value["metadata"]["annotations"].as_object();
    let names = given.into_iter().flatten().map(|(name, _)| name.as_str());
    names
        .filter(|name| name.starts_with(OWN) && !known.contains(name))
        .map(|name| {
            let near = nearest(name, known.iter().copied());
            let near = near.map_or_else(String::new, |near| format!(": did you mean {near}?"));
            format!("unknown annotation {name} is ignored{near}")
        })
        .collect()
}
