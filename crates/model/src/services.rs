//! The planner's place in the controller's brain: what it is given of everything that exists, and
//! what of its plan is written and told.
//!
//! A refusal is told once, not at every look: what was said last stands in the `PortInventory`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::addresses::node_addresses;
use crate::cluster::ClusterNetwork;
use crate::draining;
use crate::event::Event;
use crate::lease::Millis;
use crate::objects::{DEFAULT, Kind, ObjectKey, Objects};
use crate::planner::{Plan, PlanInput, plan};

/// Brings resources and Services in line with each other, in `objects`; what is to be told.
pub(crate) fn plan_services(
    objects: &mut Objects,
    cluster: ClusterNetwork,
    now: Millis,
) -> Vec<Event> {
    let mut inventory = objects.inventory();
    let resting = inventory.spec.resting_addresses.keys().copied();
    let taken = node_addresses(objects).into_iter().chain(resting);
    let taken = taken.chain(draining::orphans(objects)).map(IpAddr::V4).collect();
    let input = PlanInput {
        resources: objects.resources.clone(),
        cluster: Some(cluster),
        services: objects.services.values().cloned().collect(),
        nodes: objects.nodes.values().cloned().collect(),
        pools: objects.public_ip_pools.values().cloned().collect(),
        public_ips: objects.public_ip_requests.values().cloned().collect(),
        taken,
        kept: draining::kept(objects, now),
        ..PlanInput::default()
    };
    let plan = plan(input);
    let events = events(&plan, &mut inventory.spec.told);
    objects.port_inventories.insert(DEFAULT.into(), inventory);
    objects.resources = plan.resources;
    for (key, told) in plan.services {
        if let Some(service) = objects.services.get_mut(&key) {
            service.status.load_balancer = told.status;
            service.metadata.finalizers = told.finalizers;
        }
    }
    events
}

/// Events of this step. Refusals and warnings that were told before are not told again.
fn events(plan: &Plan, told: &mut BTreeMap<String, BTreeSet<String>>) -> Vec<Event> {
    let mut news: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let sentences = plan.refused.iter().chain(&plan.warnings);
    for (object, sentence) in sentences.filter_map(|sentence| sentence.split_once(": ")) {
        news.entry(object.to_owned()).or_default().insert(sentence.to_owned());
    }
    let mut events = Vec::new();
    for (key, service) in &plan.services {
        let object = format!("Service {key}");
        let is_old = news.get(&object).is_some_and(|news| told.get(&object) == Some(news));
        if !is_old {
            let object = ObjectKey::new(Kind::Service, key);
            events.extend(service.events.iter().filter_map(|text| event(&object, text)));
        }
    }
    if let Some(cluster) = &plan.cluster {
        let object = ObjectKey::new(Kind::ClusterNetwork, DEFAULT);
        let is_old = told
            .iter()
            .any(|(name, old)| name.starts_with("ClusterNetwork ") && news.get(name) == Some(old));
        if !is_old {
            events.extend(cluster.events.iter().filter_map(|text| event(&object, text)));
        }
    }
    for (name, sentences) in &news {
        let old = told.get(name);
        let fresh = sentences.iter().filter(|one| old.is_none_or(|old| !old.contains(*one)));
        // What became of a Service or the cluster is among its own events.
        let has_own = name.starts_with("Service ") || name.starts_with("ClusterNetwork ");
        let refused = |sentence: &String| plan.refused.contains(&format!("{name}: {sentence}"));
        for sentence in fresh.filter(|one| !(has_own && refused(one))) {
            let Some(object) = object(name) else { continue };
            let reason = if refused(sentence) { "Refused" } else { "Odd" };
            let message = sentence.clone();
            events.push(Event { object, is_warning: true, reason: reason.into(), message });
        }
    }
    *told = news;
    events
}

/// Reads `<type> <reason>: <message>`.
fn event(object: &ObjectKey, text: &str) -> Option<Event> {
    let (head, message) = text.split_once(": ")?;
    let (kind, reason) = head.split_once(' ')?;
    Some(Event {
        object: object.clone(),
        is_warning: kind == "Warning",
        reason: reason.to_owned(),
        message: message.to_owned(),
    })
}

/// Reads `<kind> <key>`.
fn object(name: &str) -> Option<ObjectKey> {
    let (kind, key) = name.split_once(' ')?;
    Some(ObjectKey::new(Kind::from_name(kind)?, key))
}
