//! What the RFCs about NAT ask of the decisions about addresses, ports and times: a test for each
//! requirement, named after it. What is done with a packet is tested in
//! `crates/datapath/tests/rfc`; `docs/rfc-compliance.md` lists all of them.

mod cluster;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use cluster::{Cluster, ip};
use datapath::tables::{Policy, Source, Ticks, Timers};
use model::lease::{
    Books, Demand, Lease, LeaseState, Millis, REST_SECONDS, Refusal, Settings, Settlement, Shape,
    Situation, settle,
};
use model::method::{Method, Protocol};
use model::tables::{AgentTables, agent_tables};
use serde_json::{Value, json};

#[test]
fn rfc4787_req3a_no_system_port_is_ever_leased() {
    // All that one node may get of an address, and what the table gives to fifty.
    let mut bank = Bank::new(&["203.0.113.1"]);
    bank.wants("n1", 65_536);
    bank.settle();
    assert_eq!(bank.ports("n1"), 64_000);
    assert!(bank.held("n1").iter().all(|lease| lease.range.start >= 1024));
    let mut cluster = Cluster::new(json!({"sku": "Standard"}), 50);
    cluster.settle();
    for (node, network) in &cluster.objects.node_networks {
        assert!(!network.spec.leases.is_empty(), "{node}");
        assert!(network.spec.leases.iter().all(|lease| lease.range.start >= 1024), "{node}");
    }
}

#[test]
fn rfc4787_req5_no_setting_makes_a_udp_mapping_last_less_than_two_minutes() {
    let udp = |spec: Value| idle(&running(spec), |source| source.udp, |policy| policy.idle_udp);
    assert_eq!(udp(json!({"sku": "Basic"})), 240);
    assert_eq!(udp(json!({"sku": "Standard"})), 30 * 60);
    assert_eq!(udp(profile(json!({"idleTimeoutInMinutes": 4}))), 240);
    assert_eq!(udp(gateway(json!({"idleTimeoutInMinutes": 120}))), 240);
    // What is refused has no effect.
    for minutes in [0, 1, 3] {
        assert!(udp(profile(json!({"idleTimeoutInMinutes": minutes}))) >= 240, "{minutes}");
    }
}

#[test]
fn rfc5382_req5_idle_time_is_a_setting_and_transitory_timers_begin_at_four_minutes() {
    let tcp = |spec: Value| idle(&running(spec), |source| source.tcp, |policy| policy.idle_tcp);
    assert_eq!(tcp(json!({"sku": "Standard"})), 30 * 60);
    assert_eq!(tcp(profile(json!({"idleTimeoutInMinutes": 120}))), 120 * 60);
    assert_eq!(tcp(gateway(json!({"idleTimeoutInMinutes": 77}))), 77 * 60);
    let Timers { half_open, closing, .. } = Timers::default();
    assert_eq!([half_open, closing], [Ticks::from_seconds(240).0; 2]);
}

#[test]
fn rfc5508_req2_no_setting_makes_a_question_last_less_than_60_seconds() {
    let icmp = |spec: Value| idle(&running(spec), |source| source.icmp, |policy| policy.idle_icmp);
    assert_eq!(icmp(json!({"sku": "Basic"})), 240);
    assert_eq!(icmp(profile(json!({"idleTimeoutInMinutes": 4}))), 240);
    assert_eq!(icmp(gateway(json!({"idleTimeoutInMinutes": 4}))), 240);
}

#[test]
fn rfc6888_req2_a_nodes_ports_lie_on_one_address_while_that_has_room() {
    let mut bank = Bank::new(&["203.0.113.1", "203.0.113.2"]);
    for node in 0..64 {
        bank.wants(&format!("n{node:02}"), 1024);
    }
    let settlement = bank.settle();
    assert!(settlement.refusals.is_empty());
    let mut by_address = BTreeMap::new();
    for node in 0..64 {
        let addresses: BTreeSet<Ipv4Addr> =
            bank.held(&format!("n{node:02}")).iter().map(|lease| lease.range.address).collect();
        assert_eq!(addresses.len(), 1, "n{node:02}: {addresses:?}");
        *by_address.entry(*addresses.first().unwrap()).or_insert(0) += 1;
    }
    // 64,000 / 1,024 = 62.5.
    let [first, second] = ["203.0.113.1", "203.0.113.2"].map(ip);
    assert_eq!(by_address, BTreeMap::from([(first, 62), (second, 2)]));
}

#[test]
fn rfc6888_req3_any_addresses_make_a_pool_in_any_order() {
    let scattered: Vec<String> =
        (0..16).map(|number| format!("198.51.{}.{}", 7 * number, 251 - 13 * number)).collect();
    let mut bank = Bank::new(&scattered.iter().map(String::as_str).collect::<Vec<_>>());
    bank.wants("n1", 16 * 64_000);
    let settlement = bank.settle();
    assert!(settlement.refusals.is_empty(), "{:?}", settlement.refusals);
    assert_eq!(bank.ports("n1"), 16 * 64_000);
    let used: BTreeSet<Ipv4Addr> =
        bank.held("n1").iter().map(|lease| lease.range.address).collect();
    assert_eq!(used, scattered.iter().map(|address| ip(address)).collect());
}

#[test]
fn rfc6888_req4_a_node_has_so_many_ports_and_the_number_is_a_setting() {
    let ports = |spec: Value| {
        let mut cluster = Cluster::new(spec, 2);
        cluster.settle();
        let leases = &cluster.objects.node_networks["n1"].spec.leases;
        leases.iter().map(|lease| lease.range.ports()).sum::<u32>()
    };
    assert_eq!(ports(json!({"sku": "Standard"})), 1024);
    for number in [8, 2048, 16_000] {
        assert_eq!(ports(profile(json!({"allocatedOutboundPorts": number}))), number);
    }
}

#[test]
fn rfc6888_req6_exempt_destinations_are_a_setting() {
    let cluster = Cluster::new(
        json!({"sku": "Standard", "privateRanges": ["10.0.0.0/8", "198.51.100.0/24"]}),
        1,
    );
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Icmp] {
        let method = |to: &str| cluster.decide_to(1, to, protocol).method;
        assert_eq!(method("198.51.100.7"), Method::NotTranslated);
        assert_ne!(method("198.51.101.7"), Method::NotTranslated);
    }
    let mut cluster = cluster;
    cluster.settle();
    let tables = tables(&cluster);
    assert!(tables.private_ranges.contains(&"198.51.100.0/24".parse().unwrap()));
}

#[test]
fn rfc6888_req8_a_range_rests_for_120_seconds_before_another_node_gets_it() {
    assert_eq!(REST_SECONDS, 120);
    let mut bank = Bank::new(&["203.0.113.1"]);
    bank.wants("n1", 64_000);
    bank.settle();
    bank.demands.clear();
    bank.wants("n2", 64_000);
    bank.settle();
    assert_eq!((bank.ports("n1"), bank.ports("n2")), (0, 0));
    bank.now = bank.now.plus_seconds(119);
    let settlement = bank.settle();
    assert_eq!(bank.ports("n2"), 0);
    assert!(matches!(settlement.refusals["n2"], Refusal::Waiting { resting: 64_000, .. }));
    bank.now = bank.now.plus_seconds(1);
    bank.settle();
    assert_eq!(bank.ports("n2"), 64_000);
}

#[test]
fn rfc6888_req8_an_address_rests_for_120_seconds_before_another_node_gets_it() {
    let mut cluster = Cluster::new(json!({"sku": "Basic"}), 1);
    cluster.settle();
    let address = cluster.addresses(1)[0];
    cluster.node_with(1, json!({}), "another machine");
    cluster.settle();
    assert_ne!(cluster.addresses(1)[0], address);
    let rests = |cluster: &Cluster| {
        cluster.objects.inventory().spec.resting_addresses.contains_key(&address)
    };
    cluster.wait(119);
    cluster.settle();
    assert!(rests(&cluster));
    cluster.wait(1);
    cluster.settle();
    assert!(!rests(&cluster));
}

#[test]
fn rfc6888_req11c_whoever_runs_the_cluster_is_told_with_the_arithmetic() {
    let mut bank = Bank::new(&["203.0.113.1"]);
    for node in ["n1", "n2"] {
        bank.wants(node, 40_000);
    }
    let settlement = bank.settle();
    let refusal = settlement.refusals["n2"].to_string();
    assert!(refusal.contains("2 nodes need 80000 ports"), "{refusal}");
    assert!(refusal.contains("1 frontend(s) x 64000 ports - 0 at listeners = 64000"), "{refusal}");
}

#[test]
fn rfc6888_req11d_no_lease_in_use_is_taken_to_serve_another_node() {
    let mut bank = Bank::new(&["203.0.113.1"]);
    bank.wants("n1", 64_000);
    bank.settle();
    bank.settle();
    bank.wants("n1", 32_000);
    bank.wants("n2", 32_000);
    for _ in 0..100 {
        bank.settle();
        bank.now = bank.now.plus_seconds(3600);
    }
    // No flow is known to have ended on any port.
    assert_eq!((bank.ports("n1"), bank.ports("n2")), (64_000, 0));
    let draining = bank.held("n1").iter().filter(|lease| lease.state == LeaseState::Draining);
    assert_eq!(draining.map(|lease| lease.range.ports()).sum::<u32>(), 32_000);
}

#[test]
fn rfc6888_req14_who_has_a_port_is_said_by_leases_and_by_no_flow() {
    let mut cluster = Cluster::new(json!({"sku": "Standard"}), 40);
    cluster.settle();
    let mut owners = BTreeMap::new();
    let mut leases = 0;
    for (node, network) in &cluster.objects.node_networks {
        for lease in &network.spec.leases {
            leases += 1;
            for port in u32::from(lease.range.start)..lease.range.end() {
                let before = owners.insert((lease.range.address, port), node);
                assert_eq!(before, None, "{port} is {node}'s too");
            }
        }
    }
    assert_eq!((leases, owners.len()), (40, 40 * 1024));
}

/// Port leases without a cluster around them.
struct Bank {
    settings: Settings,
    books: Books,
    demands: BTreeMap<String, Vec<Demand>>,
    addresses: Vec<Ipv4Addr>,
    now: Millis,
}

impl Bank {
    fn new(addresses: &[&str]) -> Bank {
        Bank {
            settings: Settings::default(),
            books: Books::default(),
            demands: BTreeMap::new(),
            addresses: addresses.iter().map(|address| ip(address)).collect(),
            now: Millis(1_000_000),
        }
    }

    fn wants(&mut self, node: &str, ports: u32) {
        let shape = if ports == 1024 { Shape::Aligned } else { Shape::Runs };
        let frontends = self.addresses.clone();
        let demand = Demand { frontends, ports, shape, gives_back: false };
        self.demands.insert(node.to_owned(), vec![demand]);
    }

    fn settle(&mut self) -> Settlement {
        let settlement = settle(
            &self.books,
            &Situation {
                settings: &self.settings,
                demands: &self.demands,
                addresses: &self.addresses.iter().copied().collect(),
                listeners: &BTreeMap::new(),
                drained: &BTreeMap::new(),
                applied: &BTreeMap::from([("n1".to_owned(), u32::MAX)]),
                silent: &BTreeSet::new(),
                acknowledged: None,
                now: self.now,
            },
        );
        self.books = settlement.books.clone();
        settlement
    }

    fn held(&self, node: &str) -> &[Lease] {
        self.books.held.get(node).map_or(&[], Vec::as_slice)
    }

    fn ports(&self, node: &str) -> u32 {
        self.held(node).iter().map(|lease| lease.range.ports()).sum()
    }
}

fn profile(profile: Value) -> Value {
    json!({"sku": "Standard", "loadBalancerProfile": profile})
}

fn gateway(profile: Value) -> Value {
    json!({"sku": "Standard", "outboundType": "managedNATGateway", "natGatewayProfile": profile})
}

/// What the agent of the first node runs when the cluster is at rest.
fn running(spec: Value) -> AgentTables {
    let mut cluster = Cluster::new(spec, 1);
    cluster.settle();
    tables(&cluster)
}

fn tables(cluster: &Cluster) -> AgentTables {
    agent_tables(&cluster.objects, "n1", &AgentTables::default()).unwrap()
}

/// The idle time, in seconds, of the policy by which all sources leave over one protocol.
fn idle(tables: &AgentTables, index: impl Fn(&Source) -> u8, time: impl Fn(&Policy) -> u32) -> u32 {
    let indices: BTreeSet<u8> = tables.sources.values().map(index).collect();
    assert_eq!(indices.len(), 1, "{indices:?}");
    let policy = &tables.policies[&u32::from(*indices.first().unwrap())];
    assert!(policy.segments > 0);
    (u64::from(time(policy)) * (1 << 20) / 1_000_000_000) as u32
}
