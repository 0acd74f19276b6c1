//! A plan as a table for people: who gets which address, what listens where, what changes.

use std::fmt::Write;

use model::planner::{Action, Change, Plan};
use model::resources::LoadBalancer;
use serde_json::Value;

/// The whole page.
pub fn table(plan: &Plan) -> String {
    let mut page = String::new();
    if let Some(cluster) = &plan.cluster {
        let addresses = match cluster.effective_outbound_ips.as_slice() {
            [] => String::new(),
            ips => format!(", egress by {}", ips.join(", ")),
        };
        let _ = writeln!(
            page,
            "Cluster: {}, outboundType {}{addresses}\n",
            cluster.sku, cluster.outbound_type
        );
    }
    if !plan.services.is_empty() {
        page += &rows(&services(plan));
        page.push('\n');
    }
    for (name, balancer) in &plan.resources.load_balancers {
        let sku = balancer.sku.as_ref().map_or("", |sku| sku.name.as_str());
        let _ = writeln!(page, "Load balancer {name} ({sku})");
        page += &rows(&listeners(plan, balancer));
        page.push('\n');
    }
    for group in plan.resources.network_security_groups.values() {
        let rules = &group.properties.security_rules;
        if rules.is_empty() {
            continue;
        }
        let _ = writeln!(page, "Security group {}", group.name);
        let mut table = vec![row(&["PRIORITY", "ACCESS", "PROTOCOL", "FROM", "TO", "PORTS"])];
        for rule in rules {
            let p = &rule.properties;
            let join = |one: &Option<String>, several: &[String]| {
                one.iter().chain(several).cloned().collect::<Vec<_>>().join(",")
            };
            table.push(vec![
                p.priority.to_string(),
                p.access.clone(),
                p.protocol.clone(),
                join(&p.source_address_prefix, &p.source_address_prefixes),
                join(&p.destination_address_prefix, &p.destination_address_prefixes),
                join(&p.destination_port_range, &p.destination_port_ranges),
            ]);
        }
        page += &rows(&table);
        page.push('\n');
    }
    page += &changes(&plan.changes);
    page
}

fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

fn services(plan: &Plan) -> Vec<Vec<String>> {
    let mut table = vec![row(&["SERVICE", "ADDRESS", "EVENTS"])];
    for (key, service) in &plan.services {
        let addresses: Vec<&str> =
            service.status.ingress.iter().filter_map(|entry| entry.ip.as_deref()).collect();
        let reasons: Vec<&str> = service
            .events
            .iter()
            .filter_map(|event| event.split(' ').nth(1))
            .map(|reason| reason.trim_end_matches(':'))
            .collect();
        let dash = |list: Vec<&str>| {
            if list.is_empty() { "-".to_owned() } else { list.join(", ") }
        };
        table.push(vec![key.clone(), dash(addresses), dash(reasons)]);
    }
    table
}

fn listeners(plan: &Plan, balancer: &LoadBalancer) -> Vec<Vec<String>> {
    let properties = &balancer.properties;
    let mut table = vec![row(&["ADDRESS", "PORT", "TO", "PROBE", "NODES", "RULE"])];
    for rule in &properties.load_balancing_rules {
        let p = &rule.properties;
        let name = p.frontend_ip_configuration.as_ref().map_or("", |reference| reference.name());
        let frontend = properties.frontend_ip_configurations.iter().find(|f| f.name == name);
        let address = frontend.and_then(|frontend| plan.resources.frontend_address(frontend));
        let probe = p.probe.as_ref().and_then(|reference| {
            properties.probes.iter().find(|probe| probe.name == reference.name())
        });
        let probe = probe.map_or("-".to_owned(), |probe| {
            let path = probe.properties.request_path.as_deref().unwrap_or_default();
            format!("{}:{}{path}", probe.properties.protocol, probe.properties.port)
        });
        let pool = p.backend_address_pool.as_ref().and_then(|reference| {
            let mut pools = properties.backend_address_pools.iter();
            pools.find(|pool| pool.name == reference.name())
        });
        let nodes = pool.map_or(0, |pool| pool.properties.load_balancer_backend_addresses.len());
        let to = match p.enable_floating_ip {
            Some(true) => "unchanged".to_owned(),
            _ => format!("node:{}", p.backend_port),
        };
        let port = match p.frontend_port {
            0 => "every port".to_owned(),
            port => format!("{port}/{}", p.protocol),
        };
        let address = address.map_or("-".to_owned(), |address| address.to_string());
        table.push(vec![address, port, to, probe, nodes.to_string(), rule.name.clone()]);
    }
    for rule in &properties.outbound_rules {
        let addresses: Vec<String> = rule
            .properties
            .frontend_ip_configurations
            .iter()
            .filter_map(|reference| {
                let name = reference.name();
                let mut frontends = properties.frontend_ip_configurations.iter();
                let frontend = frontends.find(|frontend| frontend.name == name)?;
                let prefix = frontend.properties.public_ip_prefix.as_ref();
                let address = plan.resources.frontend_address(frontend);
                address.map(|ip| ip.to_string()).or(prefix.map(|p| p.name().to_owned()))
            })
            .collect();
        let pool = rule.properties.backend_address_pool.as_ref().and_then(|reference| {
            let mut pools = properties.backend_address_pools.iter();
            pools.find(|pool| pool.name == reference.name())
        });
        let nodes = pool.map_or(0, |pool| pool.properties.load_balancer_backend_addresses.len());
        let cells = [&addresses.join(","), "egress", "-", "-", &nodes.to_string(), &rule.name];
        table.push(row(&cells));
    }
    table
}

/// Cells in columns, two spaces apart.
fn rows(table: &[Vec<String>]) -> String {
    let columns = table.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        table.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut page = String::new();
    for row in table {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        page += line.trim_end();
        page.push('\n');
    }
    page
}

fn changes(changes: &[Change]) -> String {
    if changes.is_empty() {
        return "No changes.\n".to_owned();
    }
    let mut page = "Changes\n".to_owned();
    for change in changes {
        let sign = match change.action {
            Action::Created => '+',
            Action::Changed => '~',
            Action::Deleted => '-',
        };
        let _ = write!(page, "{sign} {}", change.resource);
        if let Some(field) = &change.field {
            let _ = write!(page, " {field}");
        }
        match (&change.from, &change.to) {
            (None, None) => {}
            (Some(from), None) => {
                let _ = write!(page, ": without {}", short(from));
            }
            (None, Some(to)) => {
                let _ = write!(page, ": with {}", short(to));
            }
            (Some(from), Some(to)) => {
                let _ = write!(page, ": {} -> {}", short(from), short(to));
            }
        }
        page.push('\n');
        for line in &change.breaks {
            let _ = writeln!(page, "    breaks: {line}");
        }
    }
    page
}

fn short(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
