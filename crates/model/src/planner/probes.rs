//! Which health probe each port of a Service gets, in Azure's order: none where it is turned off;
//! kube-proxy's answer for `externalTrafficPolicy: Local`; the shared probe; none for UDP and
//! SCTP; else one of the port's own. An impossible probe is refused.

use super::annotations::{Annotations, PREFIX, Refusal, bad};
use super::config::ProviderConfig;
use super::listener::{CommonProbe, Port, PortProbe, ProbeIntent, Transport, is_probe_forbidden};
use crate::kubernetes::{Service, ServicePort};
use crate::resources::{Probe, ProbeProperties};

/// Seconds between two probes unless an annotation says otherwise.
const INTERVAL: u32 = 5;

/// Answers in a row unless an annotation says otherwise.
const THRESHOLD: u32 = 2;

/// Seconds that interval times answers must stay below.
const SECONDS_MAX: u32 = 120;

/// Reads the ports of `service` with their probes.
pub fn ports_with_probes(
    service: &Service,
    notes: &mut Annotations<'_>,
    config: &ProviderConfig,
    ha_ports: bool,
    internal: bool,
) -> Result<(Vec<Port>, CommonProbe), Refusal> {
    let mut ports = Vec::new();
    for spec in &service.spec.ports {
        let port = port(spec, notes)?;
        let same = |other: &Port| (other.protocol, other.port) == (port.protocol, port.port);
        if ports.iter().any(same) {
            return Err(Refusal(format!(
                "spec.ports: {} {} is there twice: remove one",
                port.protocol.as_str(),
                port.port
            )));
        }
        if port.has_rule && port.protocol == Transport::Sctp && (!config.standard || !internal) {
            return Err(Refusal(format!(
                "SCTP is only supported on standard loadbalancer in internal mode: set {PREFIX}\
                 azure-load-balancer-internal to \"true\" or remove port {}",
                port.port
            )));
        }
        ports.push(port);
    }
    if ports.is_empty() {
        return Err(Refusal::new("spec.ports: is empty: a load balancer needs a port"));
    }
    let common = common_probe(service, notes, config)?;
    let mut failure = None;
    for index in 0..ports.len() {
        match probe_of(service, index, &ports, notes, config, &common) {
            Ok(probe) => ports[index].probe = probe,
            // One rule for every port needs one good probe; of the others none is asked.
            Err(refusal) if ha_ports => failure = failure.or(Some(refusal)),
            Err(refusal) => return Err(refusal),
        }
    }
    let has_probe = ports.iter().any(|port| port.probe != PortProbe::None);
    match failure {
        Some(refusal) if !has_probe => Err(refusal),
        _ => Ok((ports, common)),
    }
}

fn port(spec: &ServicePort, notes: &mut Annotations<'_>) -> Result<Port, Refusal> {
    let number = |field: &str, value: i64, min: i64| {
        u16::try_from(value)
            .ok()
            .filter(|number| i64::from(*number) >= min)
            .ok_or_else(|| Refusal(format!("spec.ports.{field}: {value}: must be {min} to 65535")))
    };
    let protocol = match spec.protocol.as_deref() {
        None | Some("" | "TCP") => Transport::Tcp,
        Some("UDP") => Transport::Udp,
        Some("SCTP") => Transport::Sctp,
        Some(other) => {
            return Err(Refusal(format!(
                "spec.ports.protocol: {other:?}: only TCP, UDP and SCTP are supported for Azure \
                 LoadBalancers"
            )));
        }
    };
    let port = number("port", spec.port, 1)?;
    Ok(Port {
        name: spec.name.clone().unwrap_or_default(),
        protocol,
        port,
        node_port: number("nodePort", spec.node_port.unwrap_or(0), 0)?,
        has_rule: !notes.is_true(&notes.of_port(port, "no_lb_rule")),
        probe: PortProbe::None,
    })
}

/// The probe that all ports use unless they have their own.
fn common_probe(
    service: &Service,
    notes: &Annotations<'_>,
    config: &ProviderConfig,
) -> Result<CommonProbe, Refusal> {
    match service.spec.external_traffic_policy.as_deref() {
        Some("Local") => {
            let number = service.spec.health_check_node_port.unwrap_or(0);
            let port = u16::try_from(number).ok().filter(|port| *port != 0).ok_or_else(|| {
                Refusal(format!(
                    "spec.healthCheckNodePort: {number}: externalTrafficPolicy Local needs the \
                     health check node port, 1 to 65535: set it, or use externalTrafficPolicy \
                     Cluster"
                ))
            })?;
            let (interval, threshold) = timing(notes, port)?;
            Ok(CommonProbe::Local(ProbeIntent {
                protocol: "Http",
                port,
                path: Some("/healthz".into()),
                interval,
                threshold,
            }))
        }
        None | Some("" | "Cluster") if config.shared_probe => {
            Ok(CommonProbe::Shared(ProbeIntent {
                protocol: "Http",
                port: config.shared_probe_port,
                path: Some(config.shared_probe_path.clone()),
                interval: INTERVAL,
                threshold: THRESHOLD,
            }))
        }
        None | Some("" | "Cluster") => Ok(CommonProbe::None),
        Some(other) => {
            Err(Refusal(format!("spec.externalTrafficPolicy: {other:?}: must be Cluster or Local")))
        }
    }
}

/// The probe of the port at `index`.
fn probe_of(
    service: &Service,
    index: usize,
    ports: &[Port],
    notes: &mut Annotations<'_>,
    config: &ProviderConfig,
    common: &CommonProbe,
) -> Result<PortProbe, Refusal> {
    let port = &ports[index];
    if !port.has_rule || notes.is_true(&notes.of_port(port.port, "no_probe_rule")) {
        return Ok(PortProbe::None);
    }
    if matches!(common, CommonProbe::Shared(_)) {
        return Ok(PortProbe::Common);
    }
    let or_common = match common {
        CommonProbe::None => PortProbe::None,
        CommonProbe::Local(_) | CommonProbe::Shared(_) => PortProbe::Common,
    };
    if port.protocol != Transport::Tcp {
        return Ok(or_common);
    }
    let number = match probe_port(port.port, ports, notes)? {
        Some(number) => number,
        None if or_common == PortProbe::Common => return Ok(PortProbe::Common),
        None => port.node_port,
    };
    if number == 0 {
        return Err(Refusal(format!(
            "spec.ports.nodePort: port {} has no node port, so it cannot be probed: set \
             allocateLoadBalancerNodePorts to true, or {PREFIX}port_{}_health-probe_port to a \
             port that answers, or {PREFIX}port_{}_no_probe_rule to \"true\"",
            port.port, port.port, port.port
        )));
    }
    let (interval, threshold) = timing(notes, port.port)?;
    let app_protocol = service.spec.ports[index].app_protocol.as_deref();
    let protocol = probe_protocol(port.port, app_protocol, notes, config);
    let path = (protocol != "Tcp").then(|| {
        let own = notes.text(&notes.of_port(port.port, "health-probe_request-path"));
        let global = notes.text("azure-load-balancer-health-probe-request-path");
        own.or(global).unwrap_or("/").to_owned()
    });
    let probe = ProbeIntent { protocol, port: number, path, interval, threshold };
    if is_probe_forbidden(&probe, config) {
        return Err(Refusal(format!(
            "the health probe of port {}: Azure sends no HTTP probe to port {number}: set \
             {PREFIX}port_{}_health-probe_protocol to tcp or choose another port",
            port.port, port.port
        )));
    }
    Ok(PortProbe::Own(probe))
}

/// Port annotation, then `appProtocol`, then the annotation for all ports, then TCP. What is not
/// known counts as TCP, as does HTTPS on a Basic load balancer.
fn probe_protocol(
    port: u16,
    app_protocol: Option<&str>,
    notes: &Annotations<'_>,
    config: &ProviderConfig,
) -> &'static str {
    let own = notes.get(&notes.of_port(port, "health-probe_protocol"));
    let global = notes.get("azure-load-balancer-health-probe-protocol");
    match own.or(app_protocol).or(global).unwrap_or_default().trim().to_lowercase().as_str() {
        "http" => "Http",
        "https" if config.standard => "Https",
        _ => "Tcp",
    }
}

/// The port that the annotation names: a port of the Service by name or number (its node port), or
/// any other number.
fn probe_port(port: u16, ports: &[Port], notes: &Annotations<'_>) -> Result<Option<u16>, Refusal> {
    let name = notes.of_port(port, "health-probe_port");
    let Some(value) = notes.get(&name) else { return Ok(None) };
    let value = value.trim();
    let hint = "name a port of the Service, or a number from 1 to 65535";
    if let Ok(number) = value.parse::<i64>() {
        let known = ports.iter().find(|port| i64::from(port.port) == number);
        return match known {
            Some(port) => Ok(Some(port.node_port)),
            None => match u16::try_from(number) {
                Ok(number) if number > 0 => Ok(Some(number)),
                _ => Err(bad(&name, value, &format!("port {number} is out of range: {hint}"))),
            },
        };
    }
    let known =
        ports.iter().find(|port| !port.name.is_empty() && port.name.eq_ignore_ascii_case(value));
    match known {
        Some(port) => Ok(Some(port.node_port)),
        None => Err(bad(&name, value, &format!("port {value} not found in service: {hint}"))),
    }
}

/// Interval and number of probes: of the port, else of the Service, else 5 s and 2.
fn timing(notes: &Annotations<'_>, port: u16) -> Result<(u32, u32), Refusal> {
    let read = |own: &str, global: &str, min: i64, what: &str| match notes.number(
        &notes.of_port(port, own),
        min,
        i64::MAX,
        what,
    )? {
        Some(own) => Ok(Some(own)),
        None => notes.number(global, min, i64::MAX, what),
    };
    let own = "health-probe_interval";
    let global = "azure-load-balancer-health-probe-interval";
    let interval = read(own, global, 5, "seconds between two probes")?.unwrap_or(INTERVAL);
    let own = "health-probe_num-of-probe";
    let global = "azure-load-balancer-health-probe-num-of-probe";
    let threshold = read(own, global, 2, "number of probes")?.unwrap_or(THRESHOLD);
    if interval.saturating_mul(threshold) >= SECONDS_MAX {
        return Err(Refusal(format!(
            "annotations health-probe interval and num-of-probe of port {port}: {interval} s x \
             {threshold} = {} s: total probe should be less than {SECONDS_MAX} s, lower one of \
             them",
            interval.saturating_mul(threshold)
        )));
    }
    Ok((interval, threshold))
}

/// The resource of a probe.
pub fn resource(id: String, name: String, probe: &ProbeIntent) -> Probe {
    Probe {
        id,
        name,
        properties: ProbeProperties {
            protocol: probe.protocol.to_owned(),
            port: probe.port,
            request_path: probe.path.clone(),
            interval_in_seconds: Some(probe.interval),
            probe_threshold: Some(probe.threshold),
            ..ProbeProperties::default()
        },
    }
}
