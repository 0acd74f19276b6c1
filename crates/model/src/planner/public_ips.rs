//! Public IP resources: who owns one, which tags it has, and what a new one looks like. One
//! without a service tag was made by somebody else: it is used where it is named, never deleted.

use std::collections::{BTreeMap, BTreeSet};

use super::annotations::Refusal;
use super::config::ProviderConfig;
use super::names::Family;
use super::state::State;
use crate::cluster;
use crate::resources::{
    DnsSettings, IpTag, PublicIPAddress, PublicIPAddressProperties, Sku, SubResource, Tags,
};

/// Names of the Services that use a public IP, with commas between.
pub const SERVICE_TAG: &str = "k8s-azure-service";
const OLD_SERVICE_TAG: &str = "service";

/// Name of the cluster that made a public IP.
pub const CLUSTER_TAG: &str = "k8s-azure-cluster-name";

/// Name of the Service whose DNS label a public IP has.
pub const DNS_TAG: &str = "k8s-azure-dns-label-service";
const OLD_DNS_TAG: &str = "kubernetes-dns-label-service";

/// The Services that the public IP was made for or is shared by.
pub fn services(public_ip: &PublicIPAddress) -> Vec<String> {
    let tags = &public_ip.tags;
    let value = tags.get(SERVICE_TAG).filter(|value| !value.is_empty());
    let value = value.or_else(|| tags.get(OLD_SERVICE_TAG)).map_or("", String::as_str);
    value.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// Whether somebody else made it.
pub fn is_user_created(public_ip: &PublicIPAddress) -> bool {
    services(public_ip).is_empty()
}

/// The Service that put a DNS label on it.
pub fn dns_owner(public_ip: &PublicIPAddress) -> Option<&str> {
    let tags = &public_ip.tags;
    let owner = tags.get(DNS_TAG).filter(|value| !value.is_empty());
    owner.or_else(|| tags.get(OLD_DNS_TAG)).map(String::as_str).filter(|value| !value.is_empty())
}

/// Adds a Service to the users.
pub fn bind(public_ip: &mut PublicIPAddress, key: &str) {
    let mut names = services(public_ip);
    if !names.iter().any(|name| name.eq_ignore_ascii_case(key)) {
        names.push(key.to_owned());
        set_services(public_ip, &names);
    }
}

/// Takes a Service from the users, with the DNS label that it put there.
pub fn unbind(public_ip: &mut PublicIPAddress, key: &str) {
    let mut names = services(public_ip);
    names.retain(|name| !name.eq_ignore_ascii_case(key));
    set_services(public_ip, &names);
    if dns_owner(public_ip).is_some_and(|owner| owner.eq_ignore_ascii_case(key)) {
        clear_dns(public_ip);
    }
}

fn set_services(public_ip: &mut PublicIPAddress, names: &[String]) {
    public_ip.tags.remove(OLD_SERVICE_TAG);
    public_ip.tags.insert(SERVICE_TAG.to_owned(), names.join(","));
}

/// Removes the DNS label and the tag that says whose it is.
pub fn clear_dns(public_ip: &mut PublicIPAddress) {
    public_ip.properties.dns_settings = None;
    public_ip.tags.remove(DNS_TAG);
    public_ip.tags.remove(OLD_DNS_TAG);
}

/// Sets the DNS label; `owner` is noted unless somebody else made the public IP.
pub fn set_dns(public_ip: &mut PublicIPAddress, label: &str, owner: &str) {
    let current = public_ip.properties.dns_settings.as_ref();
    let current = current.and_then(|dns| dns.domain_name_label.as_deref()).unwrap_or_default();
    if !current.eq_ignore_ascii_case(label) {
        let settings = public_ip.properties.dns_settings.get_or_insert_with(DnsSettings::default);
        settings.domain_name_label = Some(label.to_owned());
    }
    if !is_user_created(public_ip) && dns_owner(public_ip) != Some(owner) {
        public_ip.tags.remove(OLD_DNS_TAG);
        public_ip.tags.insert(DNS_TAG.to_owned(), owner.to_owned());
    }
}

/// The family of a public IP.
pub fn family(public_ip: &PublicIPAddress) -> Family {
    match public_ip.properties.public_ip_address_version.as_deref() {
        Some(version) if version.eq_ignore_ascii_case("IPv6") => Family::V6,
        _ => Family::V4,
    }
}

/// A new public IP without an address, not yet anybody's.
pub fn new(config: &ProviderConfig, id: String, name: &str, family: Family) -> PublicIPAddress {
    let method = if family == Family::V6 && !config.standard { "Dynamic" } else { "Static" };
    PublicIPAddress {
        id,
        name: name.to_owned(),
        location: config.location.clone(),
        sku: config.standard.then(|| Sku::named("Standard")),
        zones: if config.standard { config.zones.clone() } else { Vec::new() },
        properties: PublicIPAddressProperties {
            public_ip_address_version: Some(family.as_str().to_owned()),
            public_ip_allocation_method: Some(method.to_owned()),
            ..PublicIPAddressProperties::default()
        },
        ..PublicIPAddress::default()
    }
}

/// Notes the prefix that a public IP comes from.
pub fn set_prefix(public_ip: &mut PublicIPAddress, id: &str) {
    public_ip.properties.public_ip_prefix = Some(SubResource::new(id));
}

/// Adds the tags of the configuration and of the Service, the latter winning. Tags are compared
/// whatever their case and never removed, unless system tags are configured: then every tag goes
/// that is neither wanted nor starts like one of those.
pub fn apply_tags(current: &mut Tags, config: &ProviderConfig, of_service: &Tags) {
    let mut wanted = config.tags.clone();
    for (key, value) in of_service {
        let key = same_key(&wanted, key).unwrap_or_else(|| key.clone());
        wanted.insert(key, value.clone());
    }
    for own in [SERVICE_TAG, CLUSTER_TAG, DNS_TAG, OLD_SERVICE_TAG, OLD_DNS_TAG] {
        if let Some(value) = current.get(own) {
            wanted.insert(own.to_owned(), value.clone());
        }
    }
    for (key, value) in &wanted {
        let key = same_key(current, key).unwrap_or_else(|| key.clone());
        let slot = current.entry(key).or_default();
        if slot.is_empty() || !slot.eq_ignore_ascii_case(value) {
            slot.clone_from(value);
        }
    }
    if !config.system_tags.is_empty() {
        current.retain(|key, _| {
            let is_system = config.system_tags.iter().any(|prefix| {
                key.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
            });
            wanted.contains_key(key) || is_system
        });
    }
}

fn same_key(tags: &Tags, key: &str) -> Option<String> {
    if tags.contains_key(key) {
        return Some(key.to_owned());
    }
    tags.keys().find(|known| known.eq_ignore_ascii_case(key)).cloned()
}

/// Reads `a=b,c=d`; pairs of another shape are ignored. `map` wins over `text`.
pub fn parse_tags(text: &str, map: &Tags, warnings: &mut Vec<String>) -> Tags {
    let mut tags = Tags::new();
    for pair in text.split(',').filter(|pair| !pair.trim().is_empty()) {
        match pair.split('=').collect::<Vec<_>>().as_slice() {
            [key, value] if !key.trim().is_empty() => {
                tags.insert(key.trim().to_owned(), tag_value(value));
            }
            _ => warnings.push(format!("tag {pair:?} is ignored: write key=value")),
        }
    }
    for (key, value) in map {
        let key = key.trim();
        if key.is_empty() {
            continue;
        }
        if let Some(known) = same_key(&tags, key) {
            tags.remove(&known);
        }
        tags.insert(key.to_owned(), tag_value(value));
    }
    tags
}

/// `null` is a word that ARM keeps for itself, so spaces around it stay.
fn tag_value(value: &str) -> String {
    let trimmed = value.trim();
    if trimmed.eq_ignore_ascii_case("null") { value } else { trimmed }.to_owned()
}

/// Reads `Type=Tag,...`; the last of several values of one type wins.
pub fn parse_ip_tags(text: &str, warnings: &mut Vec<String>) -> Vec<IpTag> {
    let mut tags = BTreeMap::new();
    for pair in text.split(',').filter(|pair| !pair.trim().is_empty()) {
        match pair.split('=').collect::<Vec<_>>().as_slice() {
            [kind, tag] => {
                tags.insert(kind.trim().to_owned(), tag.trim().to_owned());
            }
            _ => warnings.push(format!("IP tag {pair:?} is ignored: write Type=Tag")),
        }
    }
    tags.into_iter().map(|(ip_tag_type, tag)| IpTag { ip_tag_type, tag }).collect()
}

/// Public IPs that somebody made become resources. Those that cannot are refused: object and why.
pub(super) fn add_given(
    state: &mut State,
    config: &ProviderConfig,
    public_ips: &[cluster::PublicIPAddress],
) -> Vec<String> {
    let mut refused = Vec::new();
    let mut seen = BTreeSet::new();
    for object in public_ips {
        let name = &object.metadata.name;
        let is_first = seen.insert(name.to_lowercase());
        match check_given(state, object) {
            _ if !is_first => {
                refused.push(format!("PublicIPAddress {name}: is there twice: remove one"));
            }
            Ok(family) => add(state, config, object, family),
            Err(Refusal(why)) => refused.push(format!("PublicIPAddress {name}: {why}")),
        }
    }
    refused
}

/// The family of a public IP that somebody made.
fn check_given(state: &State, object: &cluster::PublicIPAddress) -> Result<Family, Refusal> {
    let (name, spec) = (&object.metadata.name, &object.spec);
    if name.is_empty() || name.contains('/') {
        return Err(Refusal::new("metadata.name must be a name without a slash"));
    }
    let of_address = spec.ip_address.map(Family::of);
    let family = match spec.public_ip_address_version.as_deref() {
        None => of_address.unwrap_or(Family::V4),
        Some(version) if version.eq_ignore_ascii_case("IPv4") => Family::V4,
        Some(version) if version.eq_ignore_ascii_case("IPv6") => Family::V6,
        Some(version) => {
            return Err(Refusal(format!(
                "spec.publicIPAddressVersion: {version:?}: must be IPv4 or IPv6"
            )));
        }
    };
    if of_address.is_some_and(|of_address| of_address != family) {
        return Err(Refusal(format!(
            "spec.ipAddress: is not {}: change one of the two",
            family.as_str()
        )));
    }
    match spec.ip_address.and_then(|address| state.public_ip_at(address)) {
        Some(other) if !other.name.eq_ignore_ascii_case(name) => Err(Refusal(format!(
            "spec.ipAddress: public IP {} has that address: choose another",
            other.name
        ))),
        _ => Ok(family),
    }
}

fn add(
    state: &mut State,
    config: &ProviderConfig,
    object: &cluster::PublicIPAddress,
    family: Family,
) {
    let (name, spec) = (&object.metadata.name, &object.spec);
    let group = spec.resource_group.as_deref().unwrap_or(&config.resource_group);
    let id = config.place_in(group).id("publicIPAddresses", name);
    let key = name.to_lowercase();
    if state.public_ips.contains_key(&key) {
        state.edit_public_ip(&key, |ip| {
            if let Some(address) = spec.ip_address {
                ip.properties.ip_address = Some(address.to_string());
            }
            // Who uses it knows it by its id.
            let is_used =
                ip.properties.ip_configuration.is_some() || ip.properties.nat_gateway.is_some();
            if spec.resource_group.is_some() && !is_used {
                ip.id = id;
            }
            ip.tags.extend(spec.tags.clone());
        });
        return;
    }
    let mut ip = new(config, id, name, family);
    ip.properties.ip_address = spec.ip_address.map(|address| address.to_string());
    ip.properties.ip_tags.clone_from(&spec.ip_tags);
    ip.tags.clone_from(&spec.tags);
    ip.zones.clone_from(&spec.zones);
    if let Some(sku) = spec.sku {
        ip.sku = Some(Sku::named(sku.as_str()));
    }
    state.add_public_ip(ip);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(pairs: &[(&str, &str)]) -> Tags {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn tags_are_merged_and_never_removed() {
        let mut current = tags(&[("a", "b"), ("c", "d")]);
        apply_tags(&mut current, &ProviderConfig::default(), &tags(&[("A", "x")]));
        assert_eq!(current, tags(&[("a", "x"), ("c", "d")]));
    }

    #[test]
    fn with_system_tags_every_other_tag_goes() {
        let config = ProviderConfig {
            system_tags: vec!["prefix".into()],
            tags: tags(&[("a", "c")]),
            ..ProviderConfig::default()
        };
        let mut current = tags(&[("prefix-a", "b"), ("c", "d"), (SERVICE_TAG, "default/a")]);
        apply_tags(&mut current, &config, &Tags::new());
        assert_eq!(current, tags(&[("a", "c"), ("prefix-a", "b"), (SERVICE_TAG, "default/a")]));
    }

    #[test]
    fn malformed_pairs_are_ignored_with_a_warning() {
        let mut warnings = Vec::new();
        let read = parse_tags("a=b, c = d ,=x,e=f=g,h= null ", &Tags::new(), &mut warnings);
        assert_eq!(read, tags(&[("a", "b"), ("c", "d"), ("h", " null ")]));
        assert_eq!(warnings.len(), 2);
    }

    #[test]
    fn a_public_ip_is_shared_by_the_names_in_its_tag() {
        let config = ProviderConfig::default();
        let mut ip = new(&config, String::new(), "x", Family::V4);
        assert!(is_user_created(&ip));
        bind(&mut ip, "default/a");
        bind(&mut ip, "default/b");
        bind(&mut ip, "DEFAULT/a");
        set_dns(&mut ip, "web", "default/a");
        assert_eq!(ip.tags[SERVICE_TAG], "default/a,default/b");
        unbind(&mut ip, "default/a");
        assert_eq!(ip.tags, tags(&[(SERVICE_TAG, "default/b")]));
        assert_eq!(ip.properties.dns_settings, None);
    }
}
