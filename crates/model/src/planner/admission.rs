//! Which Services a whole step looks at, in which order: those that ask for a load balancer, those
//! that leave, and those that are refused before anybody asks what they want. Who is refused keeps
//! what it has.

use std::collections::{BTreeMap, BTreeSet};

use super::names;
use crate::kubernetes::Service;
use crate::validation;

/// The Services of a step.
#[derive(Debug, Default)]
pub(super) struct Admission {
    /// Those that want a load balancer or keep what they have, the oldest first.
    pub(super) wanted: Vec<Wanted>,
    /// Those that are not, or no longer, load balancers of ours.
    pub(super) leaving: Vec<Service>,
}

/// A Service that wants a load balancer, or is refused.
#[derive(Debug)]
pub(super) struct Wanted {
    /// `namespace/name`.
    pub(super) key: String,
    /// The Service.
    pub(super) service: Service,
    /// Why it is refused as it stands.
    pub(super) refused: Option<String>,
}

/// Start of the names of what a Service owns, in lower case.
pub(super) fn prefix(service: &Service) -> String {
    let uid = service.metadata.uid.as_deref().unwrap_or_default();
    names::service_prefix(uid).to_lowercase()
}

/// Whether the Service asks for a load balancer, and for ours.
pub(super) fn is_ours(service: &Service) -> bool {
    service.spec.service_type.as_deref() == Some("LoadBalancer")
        && service.spec.load_balancer_class.is_none()
        && service.metadata.deletion_timestamp.is_none()
}

/// What an API server would refuse of it. What is about to go is let go.
pub(super) fn violations(service: &Service) -> Option<String> {
    if service.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let violations = validation::service(service);
    (!violations.is_empty()).then(|| violations.join("; "))
}

/// Sorts the Services of an input. `places` says where the state knows their prefixes.
pub(super) fn admit(
    services: Vec<Service>,
    unreadable: Vec<(Service, String)>,
    places: &BTreeMap<String, usize>,
) -> Admission {
    let mut admission = Admission::default();
    let unreadable = unreadable.into_iter().map(|(service, why)| (service, Some(why)));
    let all: Vec<_> =
        services.into_iter().map(|service| (service, None)).chain(unreadable).collect();
    let twice = twice(all.iter().map(|(service, _)| service));
    let mut aged = Vec::new();
    for (index, (service, why)) in all.into_iter().enumerate() {
        let key = service.metadata.key();
        let refused = match twice.get(&key) {
            // Which of them is meant, nobody knows.
            Some(_) => Some("is there twice: remove one of the two".to_owned()),
            None => why.or_else(|| violations(&service)),
        };
        if refused.is_none() && !is_ours(&service) {
            admission.leaving.push(service);
            continue;
        }
        let place = places.get(&prefix(&service)).copied().unwrap_or(usize::MAX);
        let age = service.metadata.creation_timestamp.clone();
        // No time stamp means that it has not been created yet.
        aged.push(((age.is_none(), age, place, index), Wanted { key, service, refused }));
    }
    aged.sort_by(|a, b| a.0.cmp(&b.0));
    admission.wanted = aged.into_iter().map(|(_, wanted)| wanted).collect();
    admission
}

/// The keys that more than one Service has.
fn twice<'a>(services: impl Iterator<Item = &'a Service>) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    services.map(|service| service.metadata.key()).filter(|key| !seen.insert(key.clone())).collect()
}
