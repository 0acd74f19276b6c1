//! Words that are nearly ones that matter: which known one was meant, and whether a Service is open
//! to more people when it is ignored.

use serde_json::Value;

use crate::decide::PUBLIC_IP_ANNOTATION;
use crate::nearest::nearest;
use crate::objects::Kind;
use crate::planner::backends::LABELS_READ;
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

/// Sentences about annotations and labels that nobody reads: annotations that are this product's by
/// name and that no object of this kind has, and on a Node what is nearly the name of one that
/// counts.
pub(super) fn names(kind: Kind, value: &Value) -> Vec<String> {
    let (annotations, labels): (&[&str], &[&str]) = match kind {
        Kind::ClusterNetwork => (&[PORTS_ANNOTATION, TABLE_ANNOTATION], &[]),
        Kind::Node => (&[PUBLIC_IP_ANNOTATION], &LABELS_READ),
        _ => (&[], &[]),
    };
    let mut sentences = Vec::new();
    for (what, field, known) in
        [("annotation", "annotations", annotations), ("label", "labels", labels)]
    {
        let given = value["metadata"][field].as_object();
        for (name, _) in given.into_iter().flatten() {
            if known.contains(&name.as_str()) {
                continue;
            }
            let near = known.iter().copied().find(|known| is_near(name, known));
            let is_own = what == "annotation" && name.starts_with(OWN);
            if is_own || near.is_some() {
                let near = near.map_or_else(String::new, |near| format!(": did you mean {near}?"));
                sentences.push(format!("unknown {what} {name} is ignored{near}"));
            }
        }
    }
    sentences
}

/// Whether both parts of a name, the domain and what follows it, are near those of a known one.
/// Case does not count.
fn is_near(name: &str, known: &str) -> bool {
    let parts = |name: &str| {
        let name = name.to_lowercase();
        name.split_once('/').map(|(domain, rest)| (domain.to_owned(), rest.to_owned()))
    };
    let (Some(name), Some(known)) = (parts(name), parts(known)) else { return false };
    nearest(&name.0, [known.0.as_str()]).is_some() && nearest(&name.1, [known.1.as_str()]).is_some()
}
