//! Who may connect to a Service, as its author says it: source ranges, allowed ranges and service
//! tags.

use ipnet::IpNet;

use super::annotations::{Annotations, PREFIX, Refusal, bad};
use crate::kubernetes::Service;
use crate::validation::source_range;

/// Sources that may connect.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sources {
    /// Ranges, aggregated and sorted.
    pub ranges: Vec<IpNet>,
    /// Service tags, as written.
    pub tags: Vec<String>,
    /// Whether the virtual network is shut out too.
    pub deny_others: bool,
    /// Whether no security rule is to be made.
    pub unmanaged: bool,
}

impl Sources {
    /// Reads them from the spec and the annotations; both may not name ranges.
    pub(super) fn read(service: &Service, notes: &mut Annotations<'_>) -> Result<Sources, Refusal> {
        let mut of_spec = Vec::new();
        for text in &service.spec.load_balancer_source_ranges {
            let text = text.trim();
            of_spec.push(source_range(text).map_err(|why| {
                Refusal(format!("spec.loadBalancerSourceRanges: {text:?}: {why}"))
            })?);
        }
        let mut of_notes = Vec::new();
        for name in ["azure-allowed-ip-ranges", "load-balancer-source-ranges"] {
            for text in notes.list(name) {
                of_notes.push(source_range(text).map_err(|why| bad(name, text, &why))?);
            }
        }
        if !of_spec.is_empty() && !of_notes.is_empty() {
            return Err(Refusal(format!(
                "cannot set both spec.LoadBalancerSourceRanges and service annotation {PREFIX}\
                 azure-allowed-ip-ranges: put all ranges into one of them"
            )));
        }
        let mut tags: Vec<String> = Vec::new();
        for tag in notes.list("azure-allowed-service-tags") {
            if !tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-')) {
                return Err(bad(
                    "azure-allowed-service-tags",
                    tag,
                    "must be a list of service tags such as AzureCloud or Storage.WestEurope",
                ));
            }
            if !tags.iter().any(|known| known == tag) {
                tags.push(tag.to_owned());
            }
        }
        if !of_spec.is_empty() && !tags.is_empty() {
            notes.warnings.push(format!(
                "spec.loadBalancerSourceRanges and {PREFIX}azure-allowed-service-tags are both \
                 set: kube-proxy drops what comes from the tags but not from the ranges"
            ));
        }
        of_spec.append(&mut of_notes);
        Ok(Sources {
            ranges: aggregate(&of_spec),
            tags,
            deny_others: notes.is_true("azure-deny-all-except-load-balancer-source-ranges"),
            unmanaged: notes.is_true("azure-disable-load-balancer-nsg-rule"),
        })
    }
}

/// Merges ranges that overlap or adjoin, sorted by address.
fn aggregate(ranges: &[IpNet]) -> Vec<IpNet> {
    IpNet::aggregate(&ranges.to_vec())
}
