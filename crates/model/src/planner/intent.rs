//! What a Service asks for, read from the object alone and complete: whoever holds an [`Intent`]
//! need not look at annotations again. Everything that can be refused without knowing what exists
//! is refused here, before anything is allocated.

use std::net::IpAddr;

use super::annotation_names;
use super::annotations::{Annotations, PREFIX, Refusal, bad};
use super::config::ProviderConfig;
use super::families;
use super::listener::{CommonProbe, Port};
use super::names::{self, Family};
use super::probes;
use super::public_ips::{parse_ip_tags, parse_tags};
use super::sources::Sources;
use crate::kubernetes::Service;
use crate::resources::{IpTag, Tags};

/// Where a public address comes from, for one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublicSource {
    /// A public IP made for the Service.
    Own,
    /// A public IP made for the Service out of this prefix.
    Prefix(String),
    /// The public IP of this name.
    Named(String),
    /// The public IP of this address.
    Address(IpAddr),
}

/// What a Service asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Intent {
    /// `namespace/name`.
    pub key: String,
    /// Start of the names of what it owns.
    pub prefix: String,
    /// Address families, IPv4 first.
    pub families: Vec<Family>,
    /// Whether it is on the internal load balancer.
    pub internal: bool,
    /// Subnet of an internal frontend, if one is named.
    pub subnet: Option<String>,
    /// Address of an internal frontend, if one is asked for, for each of `families`.
    pub private_addresses: Vec<Option<IpAddr>>,
    /// Where public addresses come from, for each of `families`.
    pub public: Vec<PublicSource>,
    /// Resource group of the public IPs.
    pub public_ip_group: Option<String>,
    /// Ports.
    pub ports: Vec<Port>,
    /// The probe that several ports use.
    pub common_probe: CommonProbe,
    /// One rule for every port.
    pub ha_ports: bool,
    /// Whether packets keep the frontend's address.
    pub floating_ip: bool,
    /// Whether idle TCP flows end with RST.
    pub tcp_reset: bool,
    /// Minutes without a packet that end a flow.
    pub idle_minutes: u32,
    /// Whether a client stays on its node.
    pub client_ip_affinity: bool,
    /// Who may connect.
    pub sources: Sources,
    /// More addresses that are let in.
    pub additional_ips: Vec<IpAddr>,
    /// DNS label: none, wanted gone (empty), or wanted.
    pub dns_label: Option<String>,
    /// Tags of the public IP.
    pub tags: Tags,
    /// IP tags of the public IP, if any are asked for.
    pub ip_tags: Option<Vec<IpTag>>,
    /// Addresses that the object says it already has.
    pub status: Vec<IpAddr>,
    /// Values that are ignored, one sentence each.
    pub warnings: Vec<String>,
    /// Whether Azure's provider would have made it public where it is internal here.
    pub internal_by_case: bool,
}

impl Intent {
    /// Whether names of the IPv6 twin get a suffix.
    pub fn is_dual(&self) -> bool {
        self.families.len() > 1
    }

    /// Reads `service`, in a cluster that has these address families.
    pub fn read(
        service: &Service,
        config: &ProviderConfig,
        cluster: &[Family],
    ) -> Result<Intent, Refusal> {
        let mut notes = Annotations::new(&service.metadata.annotations);
        notes.warnings = annotation_names::check(&service.metadata.annotations)?;
        let uid = uid(service)?;
        check_unsupported(&mut notes)?;
        let (internal, internal_by_case) = internal(&notes)?;
        let families = families::of_service(service, cluster)?;
        let tcp_reset = !notes.is_true("azure-load-balancer-disable-tcp-reset");
        let floating_ip = !notes.is_true("azure-disable-load-balancer-floating-ip");
        let idle_minutes =
            notes.number("azure-load-balancer-tcp-idle-timeout", 4, 100, "minutes")?.unwrap_or(4);
        let ha_ports = notes.is_true("azure-load-balancer-enable-high-availability-ports")
            && internal
            && config.standard;
        let (ports, common_probe) =
            probes::ports_with_probes(service, &mut notes, config, ha_ports, internal)?;
        let to_node_port = !floating_ip || (internal && families.contains(&Family::V6));
        if to_node_port && !ha_ports {
            check_node_ports(&ports)?;
        }
        warn_of_stray_ports(&mut notes, &ports);
        let mut private_addresses = Vec::new();
        let mut public = Vec::new();
        for family in &families {
            let address = wanted_address(service, &notes, *family, internal)?;
            public.push(public_source(&notes, *family, families.len() > 1, address, config));
            private_addresses.push(address.filter(|_| internal));
        }
        let mut warnings = Vec::new();
        let tags = notes.get("azure-pip-tags").unwrap_or_default();
        let tags = parse_tags(tags, &Tags::new(), &mut warnings);
        let ip_tags = notes.get("azure-pip-ip-tags").map(|text| parse_ip_tags(text, &mut warnings));
        let sources = Sources::read(service, &mut notes)?;
        notes.warnings.append(&mut warnings);
        let status = &service.status.load_balancer.ingress;
        Ok(Intent {
            key: service.metadata.key(),
            prefix: names::service_prefix(uid),
            families,
            internal,
            subnet: subnet(&notes, internal)?,
            private_addresses,
            public,
            public_ip_group: notes.text("azure-load-balancer-resource-group").map(str::to_owned),
            ports,
            common_probe,
            ha_ports,
            floating_ip,
            tcp_reset,
            idle_minutes,
            client_ip_affinity: service.spec.session_affinity.as_deref() == Some("ClientIP"),
            sources,
            additional_ips: additional_ips(&notes)?,
            dns_label: dns_label(&notes, internal)?,
            tags,
            ip_tags,
            status: status.iter().filter_map(|entry| entry.ip.as_ref()?.parse().ok()).collect(),
            warnings: notes.warnings,
            internal_by_case,
        })
    }
}

fn uid(service: &Service) -> Result<&str, Refusal> {
    let uid = service.metadata.uid.as_deref().unwrap_or_default();
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if uid.is_empty() || !uid.bytes().all(is_good) {
        return Err(Refusal(format!(
            "metadata.uid: {uid:?}: must have letters, digits and hyphens only"
        )));
    }
    Ok(uid)
}

/// What Azure's provider does and nobody does here.
fn check_unsupported(notes: &mut Annotations<'_>) -> Result<(), Refusal> {
    if notes.is_true("azure-pls-create") {
        return Err(bad(
            "azure-pls-create",
            "true",
            "Private Link is not supported: remove the annotation",
        ));
    }
    if let Some(value) = notes.text("azure-load-balancer-configurations") {
        return Err(bad(
            "azure-load-balancer-configurations",
            value,
            "several standard load balancers per cluster are not supported: remove the annotation",
        ));
    }
    if let Some(value) = notes.text("azure-load-balancer-mode") {
        notes.warnings.push(format!(
            "annotation {PREFIX}azure-load-balancer-mode: {value:?} is ignored: all nodes are one \
             set"
        ));
    }
    Ok(())
}

/// The subnet of an internal frontend, if one is named.
fn subnet(notes: &Annotations<'_>, internal: bool) -> Result<Option<String>, Refusal> {
    let name = "azure-load-balancer-internal-subnet";
    match notes.text(name).filter(|_| internal) {
        Some(subnet) if subnet.contains('/') => {
            Err(bad(name, subnet, "must be the name of a subnet, not an id"))
        }
        subnet => Ok(subnet.map(str::to_owned)),
    }
}

fn check_node_ports(ports: &[Port]) -> Result<(), Refusal> {
    match ports.iter().find(|port| port.has_rule && port.node_port == 0) {
        Some(port) => Err(Refusal(format!(
            "spec.ports.nodePort: without floating IP, as on every internal IPv6 frontend, \
             traffic goes to the node port, and port {} has none: set \
             allocateLoadBalancerNodePorts to true",
            port.port
        ))),
        None => Ok(()),
    }
}

fn warn_of_stray_ports(notes: &mut Annotations<'_>, ports: &[Port]) {
    let numbers: Vec<u16> = ports.iter().map(|port| port.port).collect();
    for name in notes.stray_ports(&numbers) {
        notes
            .warnings
            .push(format!("annotation {PREFIX}{name} is ignored: the Service has no such port"));
    }
}

/// Whether the Service is internal, and whether only by an unusual spelling of `true`.
fn internal(notes: &Annotations<'_>) -> Result<(bool, bool), Refusal> {
    let name = "azure-load-balancer-internal";
    match notes.get(name) {
        None => Ok((false, false)),
        Some(value) if value.eq_ignore_ascii_case("true") => Ok((true, value != "true")),
        Some(value) if value.eq_ignore_ascii_case("false") => Ok((false, false)),
        Some(value) => Err(bad(name, value, "must be \"true\" or \"false\"")),
    }
}

/// The address that is asked for in `family`: by annotation, else by `spec.loadBalancerIP`.
fn wanted_address(
    service: &Service,
    notes: &Annotations<'_>,
    family: Family,
    internal: bool,
) -> Result<Option<IpAddr>, Refusal> {
    let name = match family {
        Family::V4 => "azure-load-balancer-ipv4",
        Family::V6 => "azure-load-balancer-ipv6",
    };
    let key = service.metadata.key();
    let (field, value) = match notes.text(name) {
        Some(value) => (format!("annotation {PREFIX}{name}"), value),
        None => match service.spec.load_balancer_ip.as_deref().map(str::trim) {
            None | Some("") => return Ok(None),
            Some(value) => ("spec.loadBalancerIP".to_owned(), value),
        },
    };
    let whose = if internal { "internal" } else { "external" };
    let Ok(address) = value.parse::<IpAddr>() else {
        return Err(Refusal(format!(
            "{whose} Service {key:?} has invalid LoadBalancer IP {value:?}: {field} must be an \
             IP address"
        )));
    };
    if Family::of(address) != family {
        // spec.loadBalancerIP has no family of its own: it counts for the one that it fits.
        if field.starts_with("spec") {
            return Ok(None);
        }
        return Err(Refusal(format!("{field}: {value:?}: must be an {} address", family.as_str())));
    }
    if !internal && is_not_public(address) {
        return Err(Refusal(format!(
            "external Service {key:?} cannot use non-public LoadBalancer IP {value:?}: {field} \
             must be the address of a public IP, or set {PREFIX}azure-load-balancer-internal to \
             \"true\""
        )));
    }
    if internal && !is_not_public(address) {
        // A cluster may use any range inside; whether the subnet has the address is asked later.
        return Ok(Some(address));
    }
    Ok(Some(address))
}

/// Addresses that no public IP can have.
fn is_not_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [a, b, ..] = address.octets();
            address.is_private()
                || (a == 100 && (64..128).contains(&b))
                || address.octets() == [168, 63, 129, 16]
                || address.is_loopback()
                || address.is_link_local()
                || address.is_unspecified()
                || address.is_multicast()
                || address.is_broadcast()
        }
        IpAddr::V6(address) => {
            (address.segments()[0] & 0xfe00) == 0xfc00
                || (address.segments()[0] & 0xffc0) == 0xfe80
                || address.is_loopback()
                || address.is_unspecified()
                || address.is_multicast()
        }
    }
}

fn public_source(
    notes: &Annotations<'_>,
    family: Family,
    dual: bool,
    address: Option<IpAddr>,
    config: &ProviderConfig,
) -> PublicSource {
    // The annotation with the suffix is for the IPv6 twin; a Service with IPv6 alone may use
    // either, the one with the suffix first.
    let pick = |name: &str| match (family, dual) {
        (Family::V4, _) => notes.text(name),
        (Family::V6, true) => notes.text(&format!("{name}-ipv6")),
        (Family::V6, false) => notes.text(&format!("{name}-ipv6")).or_else(|| notes.text(name)),
    };
    if let Some(name) = pick("azure-pip-name") {
        return PublicSource::Named(name.to_owned());
    }
    if let Some(prefix) = pick("azure-pip-prefix-id").filter(|_| config.standard) {
        return PublicSource::Prefix(prefix.to_owned());
    }
    address.map_or(PublicSource::Own, PublicSource::Address)
}

fn dns_label(notes: &Annotations<'_>, internal: bool) -> Result<Option<String>, Refusal> {
    let name = "azure-dns-label-name";
    let Some(label) = notes.get(name).filter(|_| !internal) else { return Ok(None) };
    let label = label.trim();
    let is_good = label.is_empty()
        || ((3..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && label.as_bytes()[0].is_ascii_alphabetic()
            && !label.ends_with('-'));
    if !is_good {
        return Err(bad(
            name,
            label,
            "must have 3 to 63 letters, digits and hyphens, start with a letter and not end with \
             a hyphen; an empty value removes the label",
        ));
    }
    Ok(Some(label.to_owned()))
}

fn additional_ips(notes: &Annotations<'_>) -> Result<Vec<IpAddr>, Refusal> {
    let name = "azure-additional-public-ips";
    let mut addresses = Vec::new();
    for item in notes.list(name) {
        let address =
            item.parse().map_err(|_| bad(name, item, "must be a list of IP addresses"))?;
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}
