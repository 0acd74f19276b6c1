//! What things are called, as Azure's provider calls them. Every name here is a function of the
//! Service and the cluster name alone; ids also need the [`Place`] that a resource is in.

use std::net::IpAddr;

use md5::{Digest, Md5};

/// Longest name that a frontend, a rule or a public IP may have before the family suffix.
const NAME_MAX: usize = 75;

/// Suffix of the IPv6 twin of a thing in a dual-stack Service, and of the IPv6 pool.
pub const IPV6_SUFFIX: &str = "-IPv6";

/// Name of the probe that all Services share in shared mode.
pub const SHARED_PROBE: &str = "cluster-service-shared-health-probe";

/// Outbound rule that AKS makes.
pub const AKS_OUTBOUND_RULE: &str = "aksOutboundRule";

/// Pool of the outbound rule that AKS makes: every node.
pub const AKS_OUTBOUND_POOL: &str = "aksOutboundBackendPool";

/// Start of the name of every security rule that belongs to Services.
pub const SECURITY_RULE_PREFIX: &str = "k8s-azure-lb";

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of `address`.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }

    /// The name as Azure and Kubernetes write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        }
    }
}

/// The prefix of everything that a Service owns: `a` and its uid without hyphens, 32 characters.
pub fn service_prefix(uid: &str) -> String {
    std::iter::once('a').chain(uid.chars().filter(|c| *c != '-')).take(32).collect()
}

/// Whether the thing called `name` belongs to the Service with this prefix. Only a hyphen may
/// follow, so that a short uid never owns what belongs to a longer one.
pub fn is_owned(name: &str, prefix: &str) -> bool {
    match name.get(..prefix.len()) {
        Some(start) if start.eq_ignore_ascii_case(prefix) => {
            matches!(name.as_bytes().get(prefix.len()), None | Some(b'-'))
        }
        _ => false,
    }
}

/// The prefix of the Service that a load-balancing rule belongs to, read from the rule's name
/// (`<prefix>[-<subnet>]-<protocol>-<port>[-IPv6]`); none if the name has another shape.
pub fn rule_owner(name: &str) -> Option<&str> {
    let stem = name.strip_suffix(IPV6_SUFFIX).unwrap_or(name);
    let (stem, port) = stem.rsplit_once('-')?;
    let (stem, protocol) = stem.rsplit_once('-')?;
    let is_rule = !port.is_empty()
        && port.bytes().all(|byte| byte.is_ascii_digit())
        && matches!(protocol, "TCP" | "UDP" | "SCTP");
    let prefix = stem.split('-').next().unwrap_or(stem);
    (is_rule && prefix.starts_with('a') && prefix.len() <= 32).then_some(prefix)
}

/// Whether `name` has the shape that [`service_prefix`] gives real uids: `a` and 31 hex digits.
pub fn is_service_frontend(name: &str) -> bool {
    let prefix = name.split('-').next().unwrap_or(name);
    prefix.len() == 32
        && prefix.starts_with('a')
        && prefix[1..].bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A frontend; `subnet` where an internal Service names its subnet.
pub fn frontend(prefix: &str, subnet: Option<&str>, twin: bool) -> String {
    let mut name = match subnet {
        None => prefix.to_owned(),
        Some(subnet) => format!("{prefix}-{subnet}"),
    };
    if name.chars().count() > NAME_MAX {
        name = name.chars().take(NAME_MAX).collect();
        // ARM wants the last character to be a letter, a digit or an underscore; the provider
        // replaces digits as well.
        if name.chars().next_back().is_some_and(|last| !last.is_alphabetic() && last != '_') {
            name.pop();
            name.push('_');
        }
    }
    with_family(name, twin)
}

/// A rule, and the probe of that rule.
pub fn rule(prefix: &str, subnet: Option<&str>, protocol: &str, port: u16, twin: bool) -> String {
    let name = match subnet {
        None => format!("{prefix}-{protocol}-{port}"),
        Some(subnet) => {
            let taken = prefix.len() + protocol.len() + port.to_string().len() + 3;
            let subnet: String = subnet.chars().take(NAME_MAX.saturating_sub(taken)).collect();
            format!("{prefix}-{subnet}-{protocol}-{port}")
        }
    };
    with_family(name, twin)
}

/// The public IP made for a Service; `prefix_id` where it comes from a public IP prefix.
pub fn public_ip(cluster: &str, prefix: &str, prefix_id: Option<&str>, twin: bool) -> String {
    let mut name = format!("{cluster}-{prefix}");
    if let Some(id) = prefix_id {
        name = format!("{name}-{}", crate::resources::last_segment(id));
    }
    with_family(name.chars().take(NAME_MAX).collect(), twin)
}

/// The pool of nodes that Services use.
pub fn pool(cluster: &str, family: Family) -> String {
    with_family(cluster.to_owned(), family == Family::V6)
}

fn with_family(name: String, twin: bool) -> String {
    if twin { name + IPV6_SUFFIX } else { name }
}

/// A security rule that lets `sources` reach `ports`. Both are sorted as text before they are
/// hashed, so that the same set always has the same name.
pub fn allow_rule(protocol: &str, family: Family, sources: &[String], ports: &[String]) -> String {
    let (mut sources, mut ports) = (sources.to_vec(), ports.to_vec());
    sources.sort();
    ports.sort();
    let hash =
        Md5::digest(format!("{protocol}_{}_{}", sources.join(","), ports.join(",")).as_bytes());
    let hash: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{SECURITY_RULE_PREFIX}_allow_{}_{hash}", family.as_str())
}

/// The security rule that denies everything else.
pub fn deny_rule(family: Family) -> String {
    format!("{SECURITY_RULE_PREFIX}_deny-all_{}", family.as_str())
}

/// Where resources are, for their ids.
#[derive(Debug, Clone)]
pub struct Place {
    /// Subscription.
    pub subscription: String,
    /// Resource group.
    pub resource_group: String,
}

impl Place {
    /// The id of a resource of Microsoft.Network, such as `("loadBalancers", "kubernetes")`.
    pub fn id(&self, kind: &str, name: &str) -> String {
        format!(
            "/subscriptions/{}/resourceGroups/{}/providers/Microsoft.Network/{kind}/{name}",
            self.subscription, self.resource_group
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_keeps_31_digits_of_the_uid() {
        let prefix = service_prefix("257b9655-5137-4ad2-b091-ef3f07043ad3");
        assert_eq!(prefix, "a257b965551374ad2b091ef3f07043ad");
        assert_eq!(service_prefix("test1"), "atest1");
    }

    #[test]
    fn a_long_subnet_is_cut_and_ends_in_a_letter_or_an_underscore() {
        let subnet = format!("a{}z", "-".repeat(50));
        let name = frontend("a257b965551374ad2b091ef3f07043ad", Some(&subnet), false);
        assert_eq!(
            name,
            "a257b965551374ad2b091ef3f07043ad-a----------------------------------------_"
        );
        assert_eq!(name.len(), 75);
        let rule = rule("a257b965551374ad2b091ef3f07043ad", Some(&subnet), "TCP", 9000, true);
        assert_eq!(rule.len(), 75 + IPV6_SUFFIX.len());
        assert!(rule.ends_with("-TCP-9000-IPv6"), "{rule}");
    }

    #[test]
    fn security_rules_are_named_by_protocol_sources_and_ports_sorted_as_text() {
        let name = allow_rule("Tcp", Family::V4, &["Internet".into()], &["80".into()]);
        assert_eq!(name, "k8s-azure-lb_allow_IPv4_d39272f7f57ed937951650d93992ad77");
        let ports = ["80".to_owned(), "443".to_owned()];
        let name = allow_rule("Tcp", Family::V6, &["Internet".into()], &ports);
        assert_eq!(name, "k8s-azure-lb_allow_IPv6_556f7044ec033071ec0dfcf7cd85bc93");
    }

    #[test]
    fn a_short_uid_never_owns_what_belongs_to_a_longer_one() {
        assert!(is_owned("atest1-TCP-80", "atest1"));
        assert!(is_owned("ATEST1", "atest1"));
        assert!(!is_owned("atest11-TCP-80", "atest1"));
        assert!(!is_owned("é", "a"));
    }

    #[test]
    fn the_owner_of_a_rule_is_read_from_its_name() {
        assert_eq!(rule_owner("atest1-TCP-80"), Some("atest1"));
        assert_eq!(rule_owner("atest1-my-subnet-SCTP-9-IPv6"), Some("atest1"));
        assert_eq!(rule_owner("appgw-http"), None);
        assert_eq!(rule_owner("handmade-TCP-80"), None);
        assert_eq!(rule_owner("-TCP-80"), None);
    }
}
