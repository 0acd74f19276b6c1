//! What `deguchi lab status` prints of the kernel's tables: counters, flows and ports of each node
//! and mux.

use std::fmt::Write;

use lab::host::Host;
use lab::reading::{NodeReading, Reading};
use lab::view::{HostStatus, Status};
use node::census::Flows;
use node::counters::Kind;

use crate::lab_view::table;

/// All nodes and muxes; counters that are zero only where `all` are asked for.
pub fn counters(status: &Status, all: bool) -> String {
    let mut text = String::new();
    for host in &status.hosts {
        let Some(told) = told(host, all) else { continue };
        let separator = if text.is_empty() && status.hosts.len() == 1 { "" } else { "\n" };
        let _ = write!(text, "{separator}  {}{told}", host.name);
    }
    text
}

fn told(host: &HostStatus, all: bool) -> Option<String> {
    if !matches!(host.name, Host::Node(_) | Host::Mux(_)) {
        return None;
    }
    if let Some(reason) = &host.unreadable {
        return Some(format!(": {reason}\n"));
    }
    let reading = host.reading.as_ref()?;
    let mut tables = Vec::new();
    let mut text = "\n".to_owned();
    if let Some(node) = &reading.node {
        text = format!(": {}\n", summary(node));
        tables.extend(flows(node));
        tables.extend(ports(node));
    }
    tables.push(counts(reading, all));
    for table in tables {
        text.push_str(&indented(&table));
    }
    Some(text)
}

fn indented(table: &str) -> String {
    table.lines().map(|line| format!("    {line}\n")).collect()
}

fn summary(node: &NodeReading) -> String {
    let flows = node.flows.outbound.all() + node.flows.inbound.all();
    let ended = match node.flows.ended {
        0 => String::new(),
        ended => format!(" and {ended} that are over"),
    };
    let asked = node.snat_connections;
    format!(
        "{flows} flows{ended}; {}\n    SNAT connections: {} attempted, {} failed",
        node.flow_table, asked.attempted, asked.failed
    )
}

fn flows(node: &NodeReading) -> Option<String> {
    let row = |name: &str, flows: &Flows| {
        let Flows { half_open, established, closing, reset, udp, icmp, other } = flows;
        let counts = [half_open, established, closing, reset, udp, icmp, other];
        let counts = counts.into_iter().map(ToString::to_string);
        std::iter::once(name.to_owned()).chain(counts).collect::<Vec<_>>()
    };
    let directions = [("outbound", &node.flows.outbound), ("inbound", &node.flows.inbound)];
    let rows: Vec<_> = directions
        .into_iter()
        .filter(|(_, flows)| flows.all() > 0)
        .map(|(name, flows)| row(name, flows))
        .collect();
    let header = ["FLOWS", "HALF-OPEN", "ESTABLISHED", "CLOSING", "RESET", "UDP", "ICMP", "OTHER"];
    (!rows.is_empty()).then(|| table(&header, &rows))
}

fn ports(node: &NodeReading) -> Option<String> {
    let rows: Vec<Vec<String>> = node
        .ports
        .iter()
        .map(|row| {
            let found = &row.found;
            let most = match found.used_most_towards {
                // An echo goes to a machine, not to a port of it.
                Some(to) if to.port() == 0 => format!("{} to {}", found.used_most, to.ip()),
                Some(to) => format!("{} to {to}", found.used_most),
                None => String::new(),
            };
            vec![
                found.frontend.to_string(),
                found.protocol.to_string(),
                found.allocated.to_string(),
                row.pending.to_string(),
                row.draining.to_string(),
                found.used.to_string(),
                most,
            ]
        })
        .collect();
    let header = ["FRONTEND", "PORTS", "ALLOCATED", "PENDING", "DRAINING", "USED", "MOST"];
    (!rows.is_empty()).then(|| table(&header, &rows))
}

/// Drops first, and of each kind the highest count first.
fn counts(reading: &Reading, all: bool) -> String {
    let mut rows = Vec::new();
    for kind in [Kind::Drop, Kind::Pass, Kind::Event] {
        let counters = reading.counters.get(kind.name());
        let mut counters: Vec<_> = counters.into_iter().flatten().collect();
        counters.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for (name, count) in counters.into_iter().filter(|(_, count)| all || **count > 0) {
            rows.push(vec![kind.name().to_owned(), (*name).to_owned(), count.to_string()]);
        }
    }
    match rows.is_empty() {
        true => "no packet was seen yet\n".to_owned(),
        false => table(&["KIND", "COUNTER", "PACKETS"], &rows),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::{Ipv4Addr, SocketAddrV4};

    use lab::reading::{Ports, SnatConnections};
    use lab::wiring::Settings;
    use model::method::Protocol;
    use node::census::{Census, PortUse};
    use node::maps::FlowRoom;

    use super::*;

    fn host(name: Host, reading: Option<Reading>, unreadable: Option<&str>) -> HostStatus {
        HostStatus {
            name,
            addresses: vec![name.address()],
            namespace: String::new(),
            process: None,
            killed: None,
            outbound: None,
            ready: None,
            trouble: None,
            reading,
            unreadable: unreadable.map(str::to_owned),
        }
    }

    fn reading(node: Option<NodeReading>) -> Reading {
        let counters = BTreeMap::from([
            ("pass", BTreeMap::from([("not_ip", 4)])),
            ("drop", BTreeMap::from([("malformed", 0), ("no_flow", 2), ("spoofed_source", 30)])),
        ]);
        Reading { counters, node }
    }

    #[test]
    fn what_moved_is_told_drops_first_with_flows_and_ports_above() {
        let frontend = Ipv4Addr::new(203, 0, 113, 10);
        let used = PortUse {
            allocated: 1024,
            used: 3,
            used_most: 2,
            used_most_towards: Some(SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 2), 443)),
            ..PortUse::none(frontend, Protocol::Tcp)
        };
        let node = NodeReading {
            snat_connections: SnatConnections { attempted: 7, failed: 3 },
            flows: Census {
                outbound: Flows { half_open: 1, closing: 2, udp: 1, ..Flows::default() },
                ended: 1,
                rows: 10,
                ..Census::default()
            },
            flow_table: FlowRoom { flows: 1000, bytes: 2 << 20, nearly_full: false },
            ports: vec![
                Ports { found: used, pending: 0, draining: 8 },
                Ports { found: PortUse::none(frontend, Protocol::Icmp), pending: 64, draining: 0 },
            ],
        };
        let status = Status {
            name: "lab".to_owned(),
            settings: Settings::default(),
            hosts: vec![
                host(Host::Internet, None, None),
                host(Host::Mux(1), Some(reading(None)), None),
                host(Host::Mux(2), None, Some("no mux has run")),
                host(Host::Node(1), Some(reading(Some(node))), None),
            ],
            services: Vec::new(),
        };
        let expected = "
  mux1
    KIND   COUNTER          PACKETS
    drop   spoofed_source   30
    drop   no_flow          2
    pass   not_ip           4

  mux2: no mux has run

  node1: 4 flows and 1 that are over; room for 1000 flows in 2 MiB, 2097 bytes each
    SNAT connections: 7 attempted, 3 failed
    FLOWS      HALF-OPEN   ESTABLISHED   CLOSING   RESET   UDP   ICMP   OTHER
    outbound   1           0             2         0       1     0      0
    FRONTEND       PORTS   ALLOCATED   PENDING   DRAINING   USED   MOST
    203.0.113.10   TCP     1024        0         8          3      2 to 198.51.100.2:443
    203.0.113.10   ICMP    0           64        0          0
    KIND   COUNTER          PACKETS
    drop   spoofed_source   30
    drop   no_flow          2
    pass   not_ip           4
";
        assert_eq!(counters(&status, false), expected);
        let all = counters(&status, true);
        assert!(all.contains("    drop   malformed        0\n"), "{all}");
        assert!(all.lines().all(|line| line.len() <= 100), "{all}");
    }
}
