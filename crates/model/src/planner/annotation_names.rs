//! The names of the annotations that a Service may have here, and what is made of one that is
//! nearly one of them: it is ignored with a warning, unless the Service would be open to more
//! people than was meant without it. Then the Service is refused.

use std::collections::BTreeMap;

use super::annotations::{PREFIX, Refusal};
use crate::nearest::nearest;

/// Names without [`PREFIX`]: those that are read here, and Azure's for Private Link.
const KNOWN: [&str; 45] = [
    "azure-additional-public-ips",
    "azure-allowed-ip-ranges",
    "azure-allowed-service-tags",
    "azure-deny-all-except-load-balancer-source-ranges",
    "azure-disable-load-balancer-floating-ip",
    "azure-disable-load-balancer-nsg-rule",
    "azure-dns-label-name",
    "azure-load-balancer-configurations",
    "azure-load-balancer-disable-tcp-reset",
    "azure-load-balancer-enable-high-availability-ports",
    "azure-load-balancer-health-probe-interval",
    "azure-load-balancer-health-probe-num-of-probe",
    "azure-load-balancer-health-probe-protocol",
    "azure-load-balancer-health-probe-request-path",
    "azure-load-balancer-internal",
    "azure-load-balancer-internal-subnet",
    "azure-load-balancer-ipv4",
    "azure-load-balancer-ipv6",
    "azure-load-balancer-mode",
    "azure-load-balancer-resource-group",
    "azure-load-balancer-tcp-idle-timeout",
    "azure-pip-ip-tags",
    "azure-pip-name",
    "azure-pip-name-ipv6",
    "azure-pip-prefix-id",
    "azure-pip-prefix-id-ipv6",
    "azure-pip-tags",
    "azure-pls-auto-approval",
    "azure-pls-create",
    "azure-pls-fqdns",
    "azure-pls-ip-configuration-ip-address",
    "azure-pls-ip-configuration-ip-address-count",
    "azure-pls-ip-configuration-subnet",
    "azure-pls-name",
    "azure-pls-proxy-protocol",
    "azure-pls-resource-group",
    "azure-pls-visibility",
    "load-balancer-source-ranges",
    // Of one port, after `port_<number>_`.
    "health-probe_interval",
    "health-probe_num-of-probe",
    "health-probe_port",
    "health-probe_protocol",
    "health-probe_request-path",
    "no_lb_rule",
    "no_probe_rule",
];

/// How many of [`KNOWN`], at its end, are of one port.
const OF_PORTS: usize = 7;

/// Those that keep people out.
const RESTRICTING: [&str; 6] = [
    "azure-allowed-ip-ranges",
    "azure-allowed-service-tags",
    "azure-deny-all-except-load-balancer-source-ranges",
    "azure-disable-load-balancer-nsg-rule",
    "azure-load-balancer-internal",
    "load-balancer-source-ranges",
];

/// Sentences about annotations that nobody knows.
pub(super) fn check(annotations: &BTreeMap<String, String>) -> Result<Vec<String>, Refusal> {
    let mut warnings = Vec::new();
    for (key, value) in annotations {
        let (domain, name) = match key.rsplit_once('/') {
            Some((_, name)) => (&key[..key.len() - name.len()], name),
            None => ("", key.as_str()),
        };
        if domain == PREFIX && is_known(name) {
            continue;
        }
        let is_off = matches!(value.trim(), "" | "false");
        match meant(domain, &name.to_lowercase()) {
            Some(known) if RESTRICTING.contains(&known.as_str()) && !is_off => {
                return Err(Refusal(format!(
                    "annotation {key} is not known, and the Service would be open to everybody \
                     without it: write {PREFIX}{known}, or take it out"
                )));
            }
            Some(known) => warnings.push(format!(
                "unknown annotation {key} is ignored: did you mean {PREFIX}{known}?"
            )),
            None if is_ours(domain, name) => {
                warnings.push(format!("unknown annotation {key} is ignored"));
            }
            None => {}
        }
    }
    Ok(warnings)
}

fn is_ours(domain: &str, name: &str) -> bool {
    let is_azures = name.starts_with("azure-") || name.starts_with("port_");
    domain == "deguchi.io/" || (domain == PREFIX && is_azures)
}

fn whole() -> &'static [&'static str] {
    &KNOWN[..KNOWN.len() - OF_PORTS]
}

fn of_ports() -> &'static [&'static str] {
    &KNOWN[KNOWN.len() - OF_PORTS..]
}

/// The number and the rest of `port_<number>_<rest>`.
fn of_port(name: &str) -> Option<(&str, &str)> {
    let (number, rest) = name.strip_prefix("port_")?.split_once('_')?;
    number.parse::<u16>().is_ok().then_some((number, rest))
}

fn is_known(name: &str) -> bool {
    whole().contains(&name) || of_port(name).is_some_and(|(_, rest)| of_ports().contains(&rest))
}

/// The known name that was probably meant. Other clouds have names that are much like these, and
/// mean them.
fn meant(domain: &str, name: &str) -> Option<String> {
    let is_near = nearest(domain, [PREFIX]).is_some();
    if let Some((number, rest)) = of_port(name) {
        let rest = nearest(rest, of_ports().iter().copied()).filter(|_| is_near)?;
        return Some(format!("port_{number}_{rest}"));
    }
    let first = |name: &str| name.split(['-', '_']).next().unwrap_or_default().to_owned();
    let word = first(name);
    if nearest(&word, ["azure"]).is_some() {
        return nearest(name, whole().iter().copied()).map(str::to_owned);
    }
    // The cloud's name may be missing.
    let bare = |known: &'static str| known.strip_prefix("azure-").unwrap_or(known);
    let candidates = whole().iter().filter(|known| is_near && first(bare(known)) == word);
    let near = nearest(name, candidates.map(|known| bare(known)))?;
    whole().iter().find(|known| bare(known) == near).map(|known| (*known).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(key: &str, value: &str) -> Result<Vec<String>, Refusal> {
        check(&BTreeMap::from([(key.to_owned(), value.to_owned())]))
    }

    #[test]
    fn known_annotations_and_other_peoples_are_passed_over() {
        for key in [
            "service.beta.kubernetes.io/azure-load-balancer-internal",
            "service.beta.kubernetes.io/azure-pip-name-ipv6",
            "service.beta.kubernetes.io/port_443_health-probe_port",
            "service.beta.kubernetes.io/aws-load-balancer-internal",
            "service.beta.kubernetes.io/oci-load-balancer-internal",
            "service.beta.kubernetes.io/openstack-internal-load-balancer",
            "networking.gke.io/load-balancer-type",
            "kubectl.kubernetes.io/last-applied-configuration",
            "example.com/load-balancer-source-ranges",
            "meta.helm.sh/release-name",
            "plain",
        ] {
            assert_eq!(checked(key, "true"), Ok(vec![]), "{key}");
        }
    }

    #[test]
    fn an_unknown_annotation_is_a_warning_that_names_the_known_one() {
        for (key, near) in [
            (
                "service.beta.kubernetes.io/azure-pip-nam",
                "did you mean service.beta.kubernetes.io/azure-pip-name?",
            ),
            (
                "service.beta.kubernetes.io/azure-load-balancer-tcp-idle-time",
                "did you mean service.beta.kubernetes.io/azure-load-balancer-tcp-idle-timeout?",
            ),
            (
                "service.beta.kubernetes.io/port_80_health-probe_prot",
                "did you mean service.beta.kubernetes.io/port_80_health-probe_port?",
            ),
            ("service.beta.kubernetes.io/azure-something-quite-other", "is ignored"),
            ("service.beta.kubernetes.io/port_http_no_lb_rule", "is ignored"),
            ("deguchi.io/anything", "is ignored"),
        ] {
            let warnings = checked(key, "true").unwrap();
            assert_eq!(warnings.len(), 1, "{key}");
            assert!(warnings[0].starts_with(&format!("unknown annotation {key} is ignored")));
            assert!(warnings[0].ends_with(near), "{warnings:?}");
        }
    }

    #[test]
    fn a_service_is_refused_where_a_misspelt_annotation_would_keep_people_out() {
        for key in [
            "service.beta.kubernetes.io/azure-load-balancer-internl",
            "service.beta.kubernetes.io/azur-load-balancer-internal",
            "service.beta.kubernetes.io/Azure-Load-Balancer-Internal",
            "service.kubernetes.io/azure-load-balancer-internal",
            "azure-load-balancer-internal",
            "service.beta.kubernetes.io/load-balancer-internal",
            "service.beta.kubernetes.io/azure-allowed-ip-range",
            "service.beta.kubernetes.io/azure-allowed-service-tag",
            "service.beta.kubernetes.io/load-balancer-source-range",
            "service.alpha.kubernetes.io/load-balancer-source-ranges",
        ] {
            let Err(Refusal(why)) = checked(key, "x") else { panic!("{key} is taken") };
            assert!(why.contains("open to everybody") && why.contains("write service."), "{why}");
        }
        let key = "service.beta.kubernetes.io/azure-load-balancer-internl";
        assert_eq!(checked(key, "false").unwrap().len(), 1);
        assert_eq!(checked(key, " ").unwrap().len(), 1);
    }
}
