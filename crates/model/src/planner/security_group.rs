//! The security group: one rule for each protocol, source set and port set, shared by every
//! Service that wants just that, with their addresses as its destinations. A rule exists as long
//! as it has a destination. Rules of others are left alone, and their priorities left free.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::access::Wanted;
use super::annotations::Refusal;
use super::changes::{Journal, Part};
use super::config::ProviderConfig;
use super::names;
use crate::resources::{NetworkSecurityGroup, SecurityRule};

/// Allow rules get the lowest free priority from here up.
const FIRST: u16 = 500;

/// Deny rules get the highest free priority from here down.
const LAST: u16 = 4095;

/// Start of the item that stands for one destination of a rule.
const DESTINATION: &str = "properties.destinationAddressPrefixes[";

/// The most rules in a group, by Azure's limits.
const RULES_MAX: usize = 1_000;

/// The most sources, and the most destinations, in a group, by Azure's limits.
const ADDRESSES_MAX: usize = 4_000;

/// The security group.
#[derive(Debug, Clone)]
pub struct SecurityGroup {
    head: NetworkSecurityGroup,
    key: String,
    foreign: Vec<SecurityRule>,
    rules: BTreeMap<String, Shared>,
    used: BTreeSet<u16>,
    /// No priority from [`FIRST`] up to this is free.
    next: u16,
}

/// A rule and who wants which destination in it.
#[derive(Debug, Clone)]
struct Shared {
    /// Without destinations.
    rule: SecurityRule,
    /// Number of Services that want each destination.
    destinations: BTreeMap<String, usize>,
}

impl Shared {
    fn resource(&self) -> SecurityRule {
        let mut rule = self.rule.clone();
        let mut names: Vec<String> = self.destinations.keys().cloned().collect();
        if names.len() == 1 {
            rule.properties.destination_address_prefix = names.pop();
        } else {
            rule.properties.destination_address_prefixes = names;
        }
        rule
    }
}

/// A rule that a Service wants, and its destinations there.
pub type Claims = BTreeMap<String, BTreeSet<String>>;

/// The claims behind `wanted`.
pub fn claims(wanted: &Wanted) -> Claims {
    let mut claims = Claims::new();
    for (rule, destinations) in wanted {
        let names = destinations.iter().map(IpAddr::to_string);
        claims.entry(rule.name.clone()).or_default().extend(names);
    }
    claims
}

impl SecurityGroup {
    /// Takes over a group that exists, or an empty new one.
    pub fn read(group: Option<NetworkSecurityGroup>, config: &ProviderConfig) -> Self {
        let place = config.place_in(&config.security_group_resource_group);
        let mut head = group.unwrap_or_default();
        if head.name.is_empty() {
            head.name.clone_from(&config.security_group);
        }
        if !head.id.starts_with('/') {
            head.id = place.id("networkSecurityGroups", &head.name);
        }
        if head.location.is_empty() {
            head.location.clone_from(&config.location);
        }
        let mut group = SecurityGroup {
            key: format!("networksecuritygroups/{}", head.name.to_lowercase()),
            foreign: Vec::new(),
            rules: BTreeMap::new(),
            used: BTreeSet::new(),
            next: FIRST,
            head: NetworkSecurityGroup::default(),
        };
        for mut rule in std::mem::take(&mut head.properties.security_rules) {
            group.used.insert(rule.properties.priority);
            let is_managed = rule.name.starts_with(names::SECURITY_RULE_PREFIX)
                && rule.properties.priority >= FIRST;
            if !is_managed || group.rules.contains_key(&rule.name) {
                group.foreign.push(rule);
                continue;
            }
            let one = rule.properties.destination_address_prefix.take();
            let several = std::mem::take(&mut rule.properties.destination_address_prefixes);
            let destinations = one.into_iter().chain(several).map(|name| (name, 0)).collect();
            group.rules.insert(rule.name.clone(), Shared { rule, destinations });
        }
        group.head = head;
        group
    }

    /// The key of the group among resources.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The group without its rules.
    pub fn head(&self) -> &NetworkSecurityGroup {
        &self.head
    }

    /// Adds the tags of the configuration.
    pub fn tag(&mut self, config: &ProviderConfig, journal: &mut Journal) {
        let mut tags = self.head.tags.clone();
        super::public_ips::apply_tags(&mut tags, config, &BTreeMap::new());
        if tags != self.head.tags {
            journal.note(Part::whole(self.key.clone()), Some(&self.head));
            self.head.tags = tags;
        }
    }

    /// The rule of Services called `name`, without its destinations.
    pub fn own_rule(&self, name: &str) -> Option<&SecurityRule> {
        self.rules.get(name).map(|shared| &shared.rule)
    }

    /// The whole group, rules by priority.
    pub fn resource(&self) -> NetworkSecurityGroup {
        let mut group = self.head.clone();
        let mut rules: Vec<SecurityRule> =
            self.foreign.iter().cloned().chain(self.rules.values().map(Shared::resource)).collect();
        rules.sort_by_key(|rule| rule.properties.priority);
        group.properties.security_rules = rules;
        group
    }

    /// Refuses what would exceed Azure's limits.
    pub fn check(&self, old: &Claims, wanted: &Wanted) -> Result<(), Refusal> {
        let new: Vec<_> =
            wanted.iter().filter(|(rule, _)| !self.rules.contains_key(&rule.name)).collect();
        let claims = claims(wanted);
        let freed = old
            .iter()
            .filter(|(name, mine)| {
                !claims.contains_key(*name)
                    && self.rules.get(*name).is_some_and(|shared| {
                        shared.destinations.keys().all(|ip| mine.contains(ip))
                    })
            })
            .count();
        let rules = (self.foreign.len() + self.rules.len() + new.len()).saturating_sub(freed);
        if !new.is_empty() && rules > RULES_MAX {
            return Err(Refusal(format!(
                "security group {}: exceeds the maximum number of rules ({rules} > {RULES_MAX}): \
                 let Services share ports and sources, or set limits to none",
                self.head.name
            )));
        }
        let count = |rule: &SecurityRule| rule.properties.source_address_prefixes.len().max(1);
        let sources = self.rules.values().map(|shared| count(&shared.rule)).sum::<usize>()
            + new.iter().map(|(rule, _)| count(rule)).sum::<usize>();
        if !new.is_empty() && sources > ADDRESSES_MAX {
            return Err(Refusal(format!(
                "security group {}: exceeds the maximum number of source IP addresses ({sources} \
                 > {ADDRESSES_MAX}): allow larger ranges, or set limits to none",
                self.head.name
            )));
        }
        let present = self.rules.values().map(|shared| shared.destinations.len()).sum::<usize>();
        let more = claims
            .iter()
            .map(|(name, mine)| match self.rules.get(name) {
                None => mine.len(),
                Some(shared) => {
                    mine.iter().filter(|ip| !shared.destinations.contains_key(*ip)).count()
                }
            })
            .sum::<usize>();
        if more > 0 && present + more > ADDRESSES_MAX {
            return Err(Refusal(format!(
                "security group {}: exceeds the maximum number of destination IP addresses ({} > \
                 {ADDRESSES_MAX}): use fewer addresses, or set limits to none",
                self.head.name,
                present + more
            )));
        }
        Ok(())
    }

    /// Puts `wanted` in the place of the claims `old`; says whether anything changed. New rules
    /// get their priorities before old ones free theirs, as Azure's provider does it.
    pub fn replace(&mut self, old: &Claims, wanted: &Wanted, journal: &mut Journal) -> bool {
        let mut is_changed = false;
        for (rule, destinations) in wanted {
            is_changed |= self.claim(rule, destinations, old, journal);
        }
        let new = claims(wanted);
        for (name, destinations) in old {
            let kept = new.get(name);
            let gone =
                destinations.iter().filter(|ip| !kept.is_some_and(|kept| kept.contains(*ip)));
            for destination in gone {
                is_changed |= self.drop_claim(name, destination, journal);
            }
        }
        is_changed
    }

    fn part(&self, name: &str) -> Part {
        Part::of(self.key.clone(), "properties.securityRules", name)
    }

    /// A destination, as an item of its rule.
    fn destination(&self, name: &str, destination: &str) -> Part {
        Part { item: format!("{DESTINATION}{destination}]"), ..self.part(name) }
    }

    /// Whether the destination that `part` names is there.
    pub fn has_destination(&self, part: &Part) -> bool {
        let name = part.item.strip_prefix(DESTINATION).and_then(|item| item.strip_suffix(']'));
        let shared = self.rules.get(&part.name);
        name.zip(shared).is_some_and(|(name, shared)| shared.destinations.contains_key(name))
    }

    fn claim(
        &mut self,
        rule: &SecurityRule,
        destinations: &[IpAddr],
        old: &Claims,
        journal: &mut Journal,
    ) -> bool {
        let part = self.part(&rule.name);
        if !self.rules.contains_key(&rule.name) {
            let Some(priority) = self.free_priority(rule.properties.access == "Deny") else {
                return false;
            };
            journal.note(part.clone(), None::<&SecurityRule>);
            let mut rule = rule.clone();
            rule.properties.priority = priority;
            self.used.insert(priority);
            self.rules.insert(rule.name.clone(), Shared { rule, destinations: BTreeMap::new() });
        }
        let keys: Vec<(String, Part)> = destinations
            .iter()
            .map(IpAddr::to_string)
            .map(|name| {
                let part = self.destination(&rule.name, &name);
                (name, part)
            })
            .collect();
        let Some(shared) = self.rules.get_mut(&rule.name) else { return false };
        let mut is_changed = false;
        let mut properties = rule.properties.clone();
        properties.priority = shared.rule.properties.priority;
        properties.extra.clone_from(&shared.rule.properties.extra);
        if shared.rule.properties != properties {
            journal.note(part, Some(&shared.rule));
            shared.rule.properties = properties;
            is_changed = true;
        }
        let mine = old.get(&rule.name);
        for (destination, part) in keys {
            match shared.destinations.get_mut(&destination) {
                Some(count) => {
                    if !mine.is_some_and(|mine| mine.contains(&destination)) {
                        *count += 1;
                    }
                }
                None => {
                    journal.note(part, None::<&()>);
                    shared.destinations.insert(destination, 1);
                    is_changed = true;
                }
            }
        }
        is_changed
    }

    fn drop_claim(&mut self, name: &str, destination: &str, journal: &mut Journal) -> bool {
        let Some(count) =
            self.rules.get_mut(name).and_then(|shared| shared.destinations.get_mut(destination))
        else {
            return false;
        };
        *count = count.saturating_sub(1);
        if *count > 0 {
            return false;
        }
        self.drop_destination(name, destination, journal);
        true
    }

    fn drop_destination(&mut self, name: &str, destination: &str, journal: &mut Journal) {
        let (rule, item) = (self.part(name), self.destination(name, destination));
        let Some(shared) = self.rules.get_mut(name) else { return };
        if shared.destinations.contains_key(destination) {
            journal.note(item, Some(&()));
        }
        shared.destinations.remove(destination);
        if shared.destinations.is_empty() {
            journal.note(rule, Some(&shared.rule));
            let priority = shared.rule.properties.priority;
            self.used.remove(&priority);
            self.next = self.next.min(priority.max(FIRST));
            self.rules.remove(name);
        }
    }

    /// Removes destinations that nobody wants, but those that `is_held` says.
    pub fn drop_unwanted(&mut self, is_held: impl Fn(&str) -> bool, journal: &mut Journal) {
        let unwanted: Vec<(String, String)> = self
            .rules
            .iter()
            .flat_map(|(name, shared)| {
                let unwanted = shared.destinations.iter().filter(|(_, count)| **count == 0);
                unwanted.map(|(ip, _)| (name.clone(), ip.clone()))
            })
            .filter(|(_, ip)| !is_held(ip))
            .collect();
        for (name, destination) in unwanted {
            self.drop_destination(&name, &destination, journal);
        }
        let empty: Vec<String> = self
            .rules
            .iter()
            .filter(|(_, shared)| shared.destinations.is_empty())
            .map(|(name, _)| name.clone())
            .collect();
        for name in empty {
            self.drop_destination(&name, "", journal);
        }
    }

    /// A free priority. Above [`LAST`] only when all below are taken.
    fn free_priority(&mut self, is_deny: bool) -> Option<u16> {
        if is_deny {
            let free = (FIRST..=LAST).rev().find(|priority| !self.used.contains(priority));
            if free.is_some() {
                return free;
            }
        }
        let free = (self.next..=u16::MAX).find(|priority| !self.used.contains(priority))?;
        self.next = free;
        Some(free)
    }
}
