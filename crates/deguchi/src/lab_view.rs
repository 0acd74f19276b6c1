//! What `deguchi lab status` and `deguchi lab get` print.

use std::fmt::Write;

use anyhow::Result;
use lab::handle::Loss;
use lab::host::{self, Host};
use lab::replay::Report;
use lab::view::{HostStatus, Status};
use model::kubernetes::{Node, Service};
use model::objects::Objects;
use model::resources::{LoadBalancer, SubResource};

/// Draws the topology: who is where, and which address each node leaves by.
pub fn picture(status: &Status) -> String {
    let settings = &status.settings;
    let mut text = format!(
        "lab {}: {} SKU, outboundType {}, MTU {} between muxes and nodes\n\n",
        status.name, settings.sku, settings.outbound_type, settings.mtu
    );
    let find = |wanted: Host| status.hosts.iter().find(|host| host.name == wanted);
    let mut line = |indent: &str, host: Option<&HostStatus>, note: &str| {
        let Some(host) = host else { return };
        let name = host.name.to_string();
        let addresses = addresses(host);
        let column = indent.rsplit('\n').next().unwrap_or_default().len();
        let left = format!("{indent}{name:<width$}", width = 24_usize.saturating_sub(column));
        let _ = writeln!(text, "{}", format!("{left} {addresses:<26} {note}").trim_end());
    };
    line("  ", find(Host::Internet), "servers on ports 80, 443, 8080, 9000");
    line("   |\n  ", find(Host::Router), &format!("{} to the muxes", host::PUBLIC_NETWORK));
    for mux in settings.muxes() {
        line("   +-- ", find(mux), &mux_note(find(mux)));
    }
    line("   +-- ", find(Host::Appliance), "the customer's own way out");
    for node in settings.nodes() {
        line("   +-- ", find(node), &node_note(find(node)));
        let Host::Node(number) = node else { continue };
        for pod in settings.pods(number) {
            line("   |    +-- ", find(pod), "");
        }
    }
    if !status.services.is_empty() {
        text.push_str("\n  Services:\n");
    }
    for service in &status.services {
        let address = match service.addresses.is_empty() {
            true => "<pending>".to_owned(),
            false => service.addresses.join(", "),
        };
        let _ =
            writeln!(text, "   {:<20} {address:<26} {}", service.name, service.ports.join(", "));
    }
    let _ = write!(
        text,
        "\n  deguchi lab exec --name {0} HOST -- COMMAND\n  \
         nsenter --net=/var/run/netns/dg-{0}-HOST\n",
        status.name
    );
    text
}

fn addresses(host: &HostStatus) -> String {
    match (host.addresses.first(), host.addresses.last()) {
        (Some(first), Some(last)) if host.name == Host::Internet => format!("{first} to {last}"),
        _ => host.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
    }
}

fn mux_note(host: Option<&HostStatus>) -> String {
    let Some(host) = host else { return String::new() };
    let program = match host.ready {
        Some(true) => "forwards",
        Some(false) | None => "not ready",
    };
    match host.killed {
        Some(Loss::Machine) => "killed: the machine is lost".to_owned(),
        Some(Loss::Process) => "process killed: its programs go on".to_owned(),
        Some(Loss::Uninstalled) => "uninstalled".to_owned(),
        None => format!("{program}{}", process_note(host)),
    }
}

fn node_note(host: Option<&HostStatus>) -> String {
    let Some(host) = host else { return String::new() };
    let way = match &host.outbound {
        None => "no word from the controller yet".to_owned(),
        Some(outbound) if outbound.addresses.is_empty() => outbound.method.to_string(),
        Some(outbound) => {
            let addresses: Vec<_> = outbound.addresses.iter().map(ToString::to_string).collect();
            let (addresses, ports) = (addresses.join(", "), outbound.ports);
            format!("leaves as {addresses} ({}, {ports} ports)", outbound.method)
        }
    };
    match host.killed {
        Some(Loss::Machine) => "killed: the machine is lost".to_owned(),
        Some(Loss::Process) => format!("{way}; process killed: its programs go on"),
        Some(Loss::Uninstalled) => "uninstalled: nothing is translated here".to_owned(),
        None => format!("{way}{}", process_note(host)),
    }
}

fn process_note(host: &HostStatus) -> String {
    match &host.process {
        Some(process) if process.running => match &host.trouble {
            Some(trouble) => format!("; {trouble}"),
            None => String::new(),
        },
        Some(_) => "; its process has ended".to_owned(),
        None => "; it has no process".to_owned(),
    }
}

/// Columns of text, each as wide as its widest cell.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let mut write = |cells: Vec<&str>| {
        let padded: Vec<String> = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}", width = *width))
            .collect();
        let _ = writeln!(text, "{}", padded.join("   ").trim_end());
    };
    write(header.to_vec());
    for row in rows {
        write(row.iter().map(String::as_str).collect());
    }
    text
}

/// Load balancers with their frontends, rules and pools: one line a frontend.
pub fn load_balancers(objects: &Objects) -> String {
    let mut rows = Vec::new();
    for balancer in objects.resources.load_balancers.values() {
        rows.extend(frontend_rows(objects, balancer));
    }
    let header = ["LOAD BALANCER", "SKU", "FRONTEND", "ADDRESS", "RULES", "BACKEND POOLS"];
    match rows.is_empty() {
        true => "no load balancer exists\n".to_owned(),
        false => table(&header, &rows),
    }
}

fn frontend_rows(objects: &Objects, balancer: &LoadBalancer) -> Vec<Vec<String>> {
    let properties = &balancer.properties;
    let pools: Vec<String> = properties
        .backend_address_pools
        .iter()
        .map(|pool| {
            let members = &pool.properties.load_balancer_backend_addresses;
            let members: Vec<&str> =
                members.iter().map(|member| member.properties.ip_address.as_str()).collect();
            format!("{} ({})", pool.name, members.join(" "))
        })
        .collect();
    let sku = balancer.sku.as_ref().map_or("", |sku| sku.name.as_str());
    let mut rows = Vec::new();
    for frontend in &properties.frontend_ip_configurations {
        let is_here =
            |reference: &SubResource| reference.name().eq_ignore_ascii_case(&frontend.name);
        let outbound = properties
            .outbound_rules
            .iter()
            .filter(|rule| rule.properties.frontend_ip_configurations.iter().any(is_here));
        let mut rules: Vec<String> =
            outbound.map(|rule| format!("outbound {}", rule.name)).collect();
        let inbound = properties
            .load_balancing_rules
            .iter()
            .filter(|rule| rule.properties.frontend_ip_configuration.as_ref().is_some_and(is_here));
        rules.extend(inbound.map(|rule| {
            format!("{}/{}", rule.properties.frontend_port, rule.properties.protocol.to_uppercase())
        }));
        let address = objects.resources.frontend_address(frontend);
        rows.push(vec![
            balancer.name.clone(),
            sku.to_owned(),
            frontend.name.clone(),
            address.map_or_else(|| "<none>".to_owned(), |address| address.to_string()),
            rules.join(", "),
            pools.join(", "),
        ]);
    }
    if rows.is_empty() {
        let empty = || "<none>".to_owned();
        let name = balancer.name.clone();
        rows.push(vec![name, sku.to_owned(), empty(), empty(), empty(), pools.join(", ")]);
    }
    rows
}

/// Public IP addresses and what uses each.
pub fn public_ip_addresses(objects: &Objects) -> String {
    let rows: Vec<Vec<String>> = objects
        .resources
        .public_ip_addresses
        .values()
        .map(|resource| {
            let properties = &resource.properties;
            let user = properties.ip_configuration.as_ref().or(properties.nat_gateway.as_ref());
            vec![
                resource.name.clone(),
                properties.ip_address.clone().unwrap_or_else(|| "<none>".to_owned()),
                resource.sku.as_ref().map_or_else(String::new, |sku| sku.name.clone()),
                user.map_or_else(|| "<nobody>".to_owned(), |user| short(&user.id).to_owned()),
            ]
        })
        .collect();
    match rows.is_empty() {
        true => "no public IP address exists\n".to_owned(),
        false => table(&["NAME", "ADDRESS", "SKU", "USED BY"], &rows),
    }
}

/// A resource id without what is the same for all: subscription, group, provider.
fn short(id: &str) -> &str {
    id.split_once("/Microsoft.Network/").map_or(id, |(_, rest)| rest)
}

/// Nodes and how each leaves.
pub fn nodes(objects: &Objects, status: &Status) -> String {
    let rows: Vec<Vec<String>> = objects
        .nodes
        .iter()
        .map(|(name, node)| {
            let outbound = status
                .hosts
                .iter()
                .find(|host| host.name.to_string() == *name)
                .and_then(|host| host.outbound.as_ref());
            let addresses = outbound.map_or_else(String::new, |outbound| {
                outbound.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
            });
            vec![
                name.clone(),
                node.internal_ips().next().map_or_else(String::new, |ip| ip.to_string()),
                ready(node).to_owned(),
                outbound.map_or_else(String::new, |outbound| outbound.method.to_string()),
                addresses,
                outbound.map_or_else(String::new, |outbound| outbound.ports.to_string()),
            ]
        })
        .collect();
    table(&["NAME", "INTERNAL-IP", "READY", "LEAVES BY", "AS", "PORTS"], &rows)
}

fn ready(node: &Node) -> &str {
    let conditions = &node.status.conditions;
    conditions
        .iter()
        .find(|condition| condition.condition_type == "Ready")
        .map_or("Unknown", |condition| condition.status.as_str())
}

/// Services as kubectl shows them.
pub fn services(objects: &Objects) -> String {
    let rows: Vec<Vec<String>> = objects
        .services
        .values()
        .map(|service: &Service| {
            let kind = service.spec.service_type.as_deref().unwrap_or("ClusterIP");
            let mut external = lab::view::external_ips(service).join(",");
            if external.is_empty() {
                external = if kind == "LoadBalancer" { "<pending>" } else { "<none>" }.to_owned();
            }
            let ports: Vec<String> = service
                .spec
                .ports
                .iter()
                .map(|port| format!("{}/{}", port.port, port.protocol.as_deref().unwrap_or("TCP")))
                .collect();
            vec![
                service.metadata.namespace.clone().unwrap_or_default(),
                service.metadata.name.clone(),
                kind.to_owned(),
                external,
                ports.join(","),
            ]
        })
        .collect();
    match rows.is_empty() {
        true => "no Service exists\n".to_owned(),
        false => table(&["NAMESPACE", "NAME", "TYPE", "EXTERNAL-IP", "PORTS"], &rows),
    }
}

/// The cases as a table, with what is wrong below it.
pub fn replay(report: &Report) -> String {
    let rows: Vec<Vec<String>> = report
        .cases
        .iter()
        .map(|case| {
            vec![
                case.case.clone(),
                case.name.clone(),
                case.expected.clone(),
                case.observed_http.clone(),
                case.observed_wire.clone(),
                case.method.clone(),
                if case.pass { "ok" } else { "FAILED" }.to_owned(),
            ]
        })
        .collect();
    let header = ["CASE", "WHAT", "EXPECTED", "OVER HTTP", "ON THE WIRE", "METHOD", ""];
    let mut text = table(&header, &rows);
    for case in report.cases.iter().filter(|case| !case.pass) {
        for failure in &case.failures {
            let _ = writeln!(text, "case {}: {failure}", case.case);
        }
    }
    text
}

/// What happened, the latest last.
pub fn events(events: &[serde_json::Value]) -> String {
    let text = |event: &serde_json::Value, pointer: &str| {
        event.pointer(pointer).and_then(|value| value.as_str()).unwrap_or_default().to_owned()
    };
    let rows: Vec<Vec<String>> = events
        .iter()
        .map(|event| {
            let object = format!("{} {}", text(event, "/object/kind"), text(event, "/object/name"));
            let count = event["count"].as_u64().unwrap_or(1).to_string();
            vec![
                text(event, "/time"),
                text(event, "/type"),
                object,
                text(event, "/reason"),
                count,
                text(event, "/message"),
            ]
        })
        .collect();
    match rows.is_empty() {
        true => "nothing has happened\n".to_owned(),
        false => table(&["LAST SEEN", "TYPE", "OBJECT", "REASON", "COUNT", "MESSAGE"], &rows),
    }
}

/// Objects of any other kind, by name.
pub fn names(values: &[serde_json::Value]) -> Result<String> {
    let rows: Vec<Vec<String>> = values
        .iter()
        .filter_map(|value| {
            let name = value.pointer("/metadata/name").or_else(|| value.get("name"))?.as_str()?;
            Some(vec![name.to_owned()])
        })
        .collect();
    Ok(match rows.is_empty() {
        true => "none exists\n".to_owned(),
        false => table(&["NAME"], &rows),
    })
}
