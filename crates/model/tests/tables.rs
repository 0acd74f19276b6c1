//! The kernel's tables: what stands in them, and that nothing moves under live flows.

mod cluster;

use std::collections::BTreeMap;

use cluster::{Cluster, ip, node_address, outbound_rule, rule};
use datapath::tables::{
    Allowance, LeftoverKey, NearVip, Owners, RuleKey, Segment, Ticks, Timers, agent_flag,
    block_flag, owner, policy_flag, rule_flag,
};
use datapath::{Ipv4, Port};
use ipnet::Ipv4Net;
use model::lease::{Lease, LeaseState, PortRange};
use model::pods::endpoint_slices;
use model::tables::{
    AgentEdit, AgentTables, MuxEdit, MuxTables, TablesError, agent_tables, mux_tables, policy_index,
};
use serde_json::json;

const VIP: Ipv4 = Ipv4::new(203, 0, 113, 1);
const NAT: Ipv4 = Ipv4::new(203, 0, 113, 2);

/// Two nodes behind Service `web` (203.0.113.1, port 80) and an outbound rule (203.0.113.2).
fn web(pods: &[(usize, bool)]) -> Cluster {
    let mut cluster = Cluster::new(json!({"sku": "Standard"}), 2);
    cluster.public_ip("vip", "203.0.113.1").public_ip("nat", "203.0.113.2");
    let name = "auidofweb-TCP-80";
    cluster.balancer(
        "Standard",
        &[("auidofweb", "vip"), ("out", "nat")],
        &[1, 2],
        json!([rule(name, "auidofweb", "Tcp", 80, true)]),
        json!([outbound_rule(&["out"], "All", 0)]),
    );
    cluster.add(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "web", "namespace": "default", "uid": "uid-of-web"},
        "spec": {"type": "LoadBalancer", "selector": {"app": "web"},
                 "ports": [{"port": 80, "targetPort": 8080}]},
    }));
    cluster.own("MuxNetwork", "m1", json!({"address": "10.9.0.1", "gateway": "10.9.0.254"}));
    for node in [1, 2] {
        let network = cluster.objects.node_networks.entry(format!("n{node}")).or_default();
        network.metadata.name = format!("n{node}");
        network.spec.address = Some(node_address(node));
        network.spec.pod_cidrs = vec![format!("10.100.{node}.0/24").parse().unwrap()];
    }
    for (index, (node, ready)) in pods.iter().enumerate() {
        pod(&mut cluster, &format!("p{index}"), *node, index as u8 + 5, *ready);
    }
    slices(&mut cluster);
    cluster
}

fn pod(cluster: &mut Cluster, name: &str, node: usize, last: u8, ready: bool) {
    let ready = if ready { "True" } else { "False" };
    cluster.add(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "labels": {"app": "web"}},
        "spec": {"nodeName": format!("n{node}")},
        "status": {"podIP": format!("10.100.{node}.{last}"),
                   "conditions": [{"type": "Ready", "status": ready}]},
    }));
}

fn slices(cluster: &mut Cluster) {
    let objects = &mut cluster.objects;
    objects.endpoint_slices = endpoint_slices(objects.services.values(), objects.pods.values());
}

fn lease(address: &str, start: u16, length: u16, state: LeaseState) -> Lease {
    let range = PortRange { address: ip(address), start, length };
    Lease::new(range, 1, state)
}

fn hold(cluster: &mut Cluster, node: usize, leases: Vec<Lease>) {
    cluster.objects.node_networks.get_mut(&format!("n{node}")).unwrap().spec.leases = leases;
}

fn agent(cluster: &Cluster, node: usize, present: &AgentTables) -> AgentTables {
    agent_tables(&cluster.objects, &format!("n{node}"), present).unwrap()
}

fn mux(cluster: &Cluster, present: &MuxTables) -> MuxTables {
    mux_tables(&cluster.objects, "m1", present, cluster.now).unwrap()
}

fn key(port: u16) -> RuleKey<Ipv4> {
    RuleKey { vip: VIP, port: Port::new(port), protocol: 6, reserved: 0 }
}

/// Where each held block stands, by address and first port.
fn places(tables: &AgentTables) -> BTreeMap<(Ipv4, u16), u32> {
    let place = |(index, block): (&u32, &datapath::tables::Block)| {
        ((tables.frontends[&u32::from(block.frontend)], block.start), *index)
    };
    tables.blocks.iter().map(place).collect()
}

#[test]
fn only_usable_leases_are_open_to_new_flows() {
    let mut cluster = web(&[]);
    hold(
        &mut cluster,
        1,
        vec![
            lease("203.0.113.2", 2048, 64, LeaseState::Usable),
            lease("203.0.113.2", 4096, 64, LeaseState::Granted),
            lease("203.0.113.2", 8192, 64, LeaseState::Draining),
        ],
    );
    let tables = agent(&cluster, 1, &AgentTables::default());
    assert_eq!(tables.blocks.len(), 24);
    let usable: Vec<u16> = tables
        .blocks
        .values()
        .filter(|block| block.flags & block_flag::USABLE != 0)
        .map(|block| block.start)
        .collect();
    assert_eq!(usable, (2048..2112).step_by(8).collect::<Vec<u16>>());
    assert_eq!(tables.open, BTreeMap::from([(0, u64::MAX)]));
}

#[test]
fn blocks_keep_their_places_when_others_come_and_go() {
    let mut cluster = web(&[]);
    let old = lease("203.0.113.2", 4096, 128, LeaseState::Usable);
    hold(&mut cluster, 1, vec![old.clone(), lease("203.0.113.1", 9000, 24, LeaseState::Draining)]);
    let before = agent(&cluster, 1, &AgentTables::default());
    hold(&mut cluster, 1, vec![lease("203.0.113.2", 1024, 512, LeaseState::Usable), old.clone()]);
    let after = agent(&cluster, 1, &before);
    let (before_places, after_places) = (places(&before), places(&after));
    for start in old.range.blocks() {
        assert_eq!(before_places[&(NAT, start)], after_places[&(NAT, start)]);
    }
    // The places of what went are not used by what came in the same step.
    let given_up: Vec<u32> = before_places
        .iter()
        .filter(|(block, _)| !after_places.contains_key(block))
        .map(|(_, place)| *place)
        .collect();
    assert_eq!(given_up.len(), 3);
    assert!(given_up.iter().all(|place| !after.blocks.contains_key(place)));
}

#[test]
fn an_address_has_words_of_positions_to_itself() {
    let mut cluster = web(&[]);
    hold(
        &mut cluster,
        1,
        vec![
            lease("203.0.113.1", 1024, 24, LeaseState::Usable),
            lease("203.0.113.2", 1024, 24, LeaseState::Usable),
        ],
    );
    let tables = agent(&cluster, 1, &AgentTables::default());
    let words: Vec<(u32, u16)> =
        tables.blocks.iter().map(|(index, block)| (index / 8, block.frontend)).collect();
    assert_eq!(words, [(0, 0), (0, 0), (0, 0), (1, 1), (1, 1), (1, 1)]);
    // What a word has too much is barred.
    assert_eq!(tables.open, BTreeMap::from([(0, 0xff_ffff), (1, 0xff_ffff)]));
}

#[test]
fn a_whole_address_fits_a_node_beside_nothing_else_and_nearly_fits_beside_a_draining_lease() {
    let mut cluster = web(&[]);
    hold(&mut cluster, 1, vec![lease("203.0.113.2", 1024, 64_000, LeaseState::Usable)]);
    let whole = agent(&cluster, 1, &AgentTables::default());
    assert_eq!(whole.blocks.len(), 8000);
    let draining = lease("203.0.113.1", 1024, 1024, LeaseState::Draining);
    hold(&mut cluster, 1, vec![draining.clone()]);
    let before = agent(&cluster, 1, &AgentTables::default());
    hold(&mut cluster, 1, vec![draining, lease("203.0.113.2", 1024, 64_000, LeaseState::Usable)]);
    let both = agent(&cluster, 1, &before);
    assert_eq!(both.blocks.len(), 8000);
    let kept =
        both.blocks.values().filter(|block| both.frontends[&u32::from(block.frontend)] == VIP);
    assert_eq!(kept.count(), 128);
}

#[test]
fn segments_follow_the_order_of_the_addresses_and_never_exceed_the_policys_room() {
    let mut cluster = web(&[]);
    let holding: Vec<Lease> = (0..40)
        .map(|index| {
            let state = if index % 2 == 0 { LeaseState::Usable } else { LeaseState::Draining };
            lease("203.0.113.2", 1024 + index * 64, 64, state)
        })
        .chain([lease("203.0.113.1", 1024, 64, LeaseState::Usable)])
        .collect();
    hold(&mut cluster, 1, holding);
    let outbound = json!([{
        "protocol": "tcp", "method": "outboundRule", "idleTimeoutInMinutes": 30,
        "addresses": ["203.0.113.1", "203.0.113.2"], "enableTcpReset": true,
    }]);
    let network = cluster.objects.node_networks.get_mut("n1").unwrap();
    network.spec.outbound = serde_json::from_value(outbound).unwrap();
    let tables = agent(&cluster, 1, &AgentTables::default());
    let policy = tables.policies[&u32::from(policy_index::TCP)];
    assert_eq!(policy.segments, 16);
    let address = |segment: Segment| {
        let block = &tables.blocks[&u32::from(segment.first)];
        tables.frontends[&u32::from(block.frontend)]
    };
    assert_eq!(address(policy.blocks[0]), VIP);
    assert!(policy.blocks[1..].iter().all(|segment| address(*segment) == NAT));
    assert!(policy.blocks.iter().all(|segment| segment.first % 8 == 0));
    let open: u32 = tables.open.values().map(|bits| bits.count_ones()).sum();
    let reachable: u32 = policy
        .blocks
        .iter()
        .flat_map(|segment| segment.first / 8..(segment.first + segment.count).div_ceil(8))
        .map(|word| tables.open.get(&u32::from(word)).map_or(0, |bits| bits.count_ones()))
        .sum();
    // Twenty runs of the second address beside the first one's: bridged gaps bring in all.
    assert_eq!(reachable, open);
}

#[test]
fn a_pod_outside_the_nodes_range_leaves_as_the_node_does() {
    let mut cluster = web(&[]);
    pod(&mut cluster, "odd", 2, 9, true);
    cluster.objects.pods.get_mut("default/odd").unwrap().spec.node_name = Some("n1".into());
    let tables = agent(&cluster, 1, &AgentTables::default());
    let sources: Vec<String> = tables.sources.keys().map(Ipv4Net::to_string).collect();
    assert_eq!(sources, ["10.0.0.2/32", "10.100.1.0/24", "10.100.2.9/32"]);
}

#[test]
fn a_route_to_an_appliance_is_untranslated_but_for_its_holes() {
    let mut cluster = Cluster::new(json!({"sku": "Basic", "privateRanges": []}), 1);
    cluster.own(
        "RouteTable",
        "rt",
        json!({"properties": {"routes": [
            {"name": "default", "properties": {"addressPrefix": "0.0.0.0/0",
                "nextHopType": "VirtualAppliance"}},
            {"name": "direct", "properties": {"addressPrefix": "198.51.100.0/24",
                "nextHopType": "Internet"}},
        ]}}),
    );
    cluster.settle();
    let tables = agent(&cluster, 1, &AgentTables::default());
    let covers = |address: &str| tables.private_ranges.iter().any(|net| net.contains(&ip(address)));
    assert!(!covers("198.51.100.0") && !covers("198.51.100.255"));
    assert!(covers("198.51.99.255") && covers("198.51.101.0") && covers("8.8.8.8"));
    assert_eq!(tables.private_ranges.len(), 24);
}

#[test]
fn a_service_has_the_ready_pods_of_its_node() {
    let cluster = web(&[(1, true), (1, false), (2, true)]);
    let tables = agent(&cluster, 1, &AgentTables::default());
    let service = tables.services[&key(80)];
    assert_eq!(service.count, 1);
    let endpoint = tables.endpoints[&service.first];
    assert_eq!((endpoint.address, endpoint.port), (Ipv4::new(10, 100, 1, 5), Port::new(8080)));
    let without = agent(&web(&[(2, true)]), 1, &AgentTables::default());
    assert!(without.services.is_empty());
}

#[test]
fn a_changed_set_of_pods_stands_elsewhere_before_the_service_points_to_it() {
    let mut cluster = web(&[(1, true)]);
    let before = agent(&cluster, 1, &AgentTables::default());
    pod(&mut cluster, "p9", 1, 99, true);
    slices(&mut cluster);
    let after = agent(&cluster, 1, &before);
    let edits = after.edits(&before);
    let service = edits.iter().position(|edit| matches!(edit, AgentEdit::Service(_, Some(_))));
    let last_endpoint = edits
        .iter()
        .rposition(|edit| matches!(edit, AgentEdit::Endpoint(_, row) if row.port != Port::NONE));
    assert!(last_endpoint < service, "{edits:?}");
    assert_ne!(after.services[&key(80)].first, before.services[&key(80)].first);
}

#[test]
fn a_block_is_its_holders_until_nobody_holds_it_and_then_its_listeners() {
    let mut cluster = web(&[(1, true)]);
    hold(&mut cluster, 1, vec![lease("203.0.113.2", 2048, 64, LeaseState::Granted)]);
    let tables = mux(&cluster, &MuxTables::default());
    let owner_of = |vip, port| tables.owner(vip, port);
    assert_eq!(owner_of(VIP, 80), owner::RULES);
    assert_eq!(owner_of(VIP, 87), owner::RULES);
    assert_eq!(owner_of(VIP, 88), owner::NONE);
    let node = owner_of(NAT, 2048);
    assert_eq!(tables.nodes[&u32::from(node)].address, Ipv4::from(node_address(1)));
    assert_eq!([owner_of(NAT, 2111), owner_of(NAT, 2112)], [node, owner::NONE]);
    // A listener in the middle of a lease waits.
    cluster.balancer(
        "Standard",
        &[("auidofweb", "vip"), ("out", "nat")],
        &[1, 2],
        json!([rule("x", "out", "Tcp", 2050, true)]),
        json!([]),
    );
    assert_eq!(mux(&cluster, &tables).owner(NAT, 2050), node);
    hold(&mut cluster, 1, vec![]);
    assert_eq!(mux(&cluster, &tables).owner(NAT, 2050), owner::RULES);
}

#[test]
fn a_shared_block_is_its_listeners_and_what_is_left_of_it_its_nodes() {
    let mut cluster = web(&[(1, true), (2, true)]);
    cluster.balancer(
        "Standard",
        &[("auidofweb", "vip"), ("out", "nat")],
        &[1, 2],
        json!([rule("x", "out", "Tcp", 2050, true), rule("y", "out", "Tcp", 2052, true)]),
        json!([]),
    );
    let mut shared = lease("203.0.113.2", 2048, 16, LeaseState::Sharing);
    shared.live = [2050].into();
    hold(&mut cluster, 2, vec![shared]);
    let tables = mux(&cluster, &MuxTables::default());
    let node = tables.owner(NAT, 2056);
    assert_eq!(tables.nodes[&u32::from(node)].address, Ipv4::from(node_address(2)));
    // Only the block that has a listener is looked at by rule.
    assert_eq!(tables.owner(NAT, 2048), owner::RULES);
    let key = LeftoverKey { vip: NAT, start: Port::new(2048), reserved: [0; 2] };
    assert_eq!(tables.leftovers, BTreeMap::from([(key, u32::from(node))]));
    // A second listener in the block waits until the node has read that its port is taken.
    let key = |port: u16| RuleKey { vip: NAT, port: Port::new(port), protocol: 6, reserved: 0 };
    let live: Vec<_> = tables.rules.keys().filter(|key| key.vip == NAT).copied().collect();
    assert_eq!(live, [key(2050)]);
    // What is left is known before the block changes hands, and until it has.
    hold(&mut cluster, 2, vec![lease("203.0.113.2", 2048, 16, LeaseState::Draining)]);
    let before = mux(&cluster, &MuxTables::default());
    assert!(before.leftovers.is_empty());
    assert_eq!(before.owner(NAT, 2048), node);
    let edits = tables.edits(&before);
    let leftover = edits.iter().position(|edit| matches!(edit, MuxEdit::Leftover(_, Some(_))));
    let owners = edits.iter().position(|edit| matches!(edit, MuxEdit::Owners(..)));
    assert!(leftover.is_some() && leftover < owners, "{edits:?}");
    let edits = before.edits(&tables);
    let leftover = edits.iter().position(|edit| matches!(edit, MuxEdit::Leftover(_, None)));
    let owners = edits.iter().position(|edit| matches!(edit, MuxEdit::Owners(..)));
    assert!(owners.is_some() && owners < leftover, "{edits:?}");
    applied(&before, &tables);
    applied(&tables, &before);
}

/// Carrying out the edits leads to the tables.
fn applied(before: &MuxTables, after: &MuxTables) {
    let mut tables = before.clone();
    // These stand in the settings.
    (tables.epoch, tables.address, tables.gateway) = (after.epoch, after.address, after.gateway);
    for edit in after.edits(before) {
        tables.apply(&edit);
    }
    assert!(&tables == after, "{:?}", after.edits(&tables));
}

#[test]
fn the_public_address_of_a_node_is_its_own_for_every_protocol() {
    let mut cluster = web(&[]);
    let before = mux(&cluster, &MuxTables::default());
    assert_eq!([before.vips[&VIP].whole, before.vips[&NAT].whole], [0, 0]);
    let network = cluster.objects.node_networks.get_mut("n2").unwrap();
    network.spec.instance_public_ip = Some(ip("203.0.113.2"));
    let after = mux(&cluster, &before);
    let whole = after.vips[&NAT].whole;
    assert_eq!(after.nodes[&whole].address, Ipv4::from(node_address(2)));
    assert_eq!(after.vips[&VIP].whole, 0);
    assert_eq!(after.vips[&NAT].index, before.vips[&NAT].index);
    applied(&before, &after);
    applied(&after, &before);
}

#[test]
fn datagrams_are_kept_by_the_muxes_that_can_send_on_and_handed_over_by_all() {
    let mut cluster = web(&[]);
    for (name, address) in [("m2", "10.9.0.2"), ("m3", "10.9.0.3"), ("m4", "10.9.0.4")] {
        cluster.own("MuxNetwork", name, json!({"address": address}));
    }
    cluster.own("MuxNetwork", "m5", json!({}));
    let now = cluster.now;
    for (name, mux) in &mut cluster.objects.mux_networks {
        mux.status.ready = name != "m2";
        mux.status.withdrawn = name == "m3";
        mux.status.heartbeat = now;
    }
    let [one, two, three, four] = [1, 2, 3, 4].map(|last| Ipv4::new(10, 9, 0, last));
    let first = mux(&cluster, &MuxTables::default());
    assert_eq!(first.muxes, [one, two, three, four].into());
    assert_eq!(shares(&first), [(one, 2048), (four, 2048)].into());
    // All muxes have the same: one that keeps its part, and one that does not.
    for name in ["m2", "m3", "m4"] {
        let other = mux_tables(&cluster.objects, name, &first, cluster.now).unwrap();
        assert!((&other.muxes, &other.keepers) == (&first.muxes, &first.keepers), "{name}");
    }
    applied(&MuxTables::default(), &first);
    // Who is silent is not waited for.
    cluster.wait(29);
    assert_eq!(mux(&cluster, &first).edits(&first), []);
    cluster.objects.mux_networks.get_mut("m1").unwrap().status.heartbeat = cluster.now;
    cluster.wait(1);
    let second = mux(&cluster, &first);
    assert_eq!(second.muxes, first.muxes);
    assert_eq!(shares(&second), [(one, 4096)].into());
    applied(&first, &second);
    cluster.wait(30);
    let third = mux(&cluster, &second);
    assert!(third.keepers.is_empty());
    applied(&second, &third);
}

/// About how many parts of all datagrams each mux keeps.
fn shares(tables: &MuxTables) -> BTreeMap<Ipv4, usize> {
    let mut shares = BTreeMap::new();
    for keeper in tables.keepers.values() {
        *shares.entry(*keeper).or_insert(0) += 1;
    }
    let whole = |share: &mut usize| *share = (*share + 128) / 256 * 256;
    shares.values_mut().for_each(whole);
    shares
}

#[test]
fn a_mux_that_goes_takes_only_its_own_datagrams_with_it() {
    let mut cluster = web(&[]);
    for (name, address) in [("m2", "10.9.0.2"), ("m3", "10.9.0.3"), ("m4", "10.9.0.4")] {
        cluster.own("MuxNetwork", name, json!({"address": address}));
    }
    let now = cluster.now;
    for mux in cluster.objects.mux_networks.values_mut() {
        (mux.status.ready, mux.status.heartbeat) = (true, now);
    }
    let before = mux(&cluster, &MuxTables::default());
    assert_eq!(shares(&before).into_values().collect::<Vec<_>>(), [1024; 4]);
    cluster.objects.mux_networks.get_mut("m3").unwrap().status.withdrawn = true;
    let after = mux(&cluster, &before);
    for (part, keeper) in &after.keepers {
        let kept = before.keepers[part];
        assert!(
            *keeper != Ipv4::new(10, 9, 0, 3)
                && (kept == *keeper || kept == Ipv4::new(10, 9, 0, 3)),
            "{part}"
        );
    }
    assert_eq!(after.keepers.len(), 4096);
}

#[test]
fn maglev_shares_follow_ready_pods_and_equal_sets_share_one_table() {
    let mut cluster = web(&[(1, true), (2, true), (2, true), (2, true)]);
    cluster.balancer(
        "Standard",
        &[("auidofweb", "vip")],
        &[1, 2],
        json!([
            rule("auidofweb-TCP-80", "auidofweb", "Tcp", 80, true),
            rule("auidofweb-TCP-443", "auidofweb", "Tcp", 443, true)
        ]),
        json!([]),
    );
    let web = cluster.objects.services.get_mut("default/web").unwrap();
    let mut second = web.spec.ports[0].clone();
    (second.port, second.name) = (443, Some("tls".into()));
    web.spec.ports[0].name = Some("plain".into());
    web.spec.ports.push(second);
    slices(&mut cluster);
    let tables = mux(&cluster, &MuxTables::default());
    let (plain, tls) = (tables.rules[&key(80)], tables.rules[&key(443)]);
    assert_eq!((plain.maglev_first, plain.maglev_count), (tls.maglev_first, 256));
    assert_ne!(plain.id, tls.id);
    let entries = |node: u16| -> usize {
        tables.maglev.values().flat_map(|row| row.0).filter(|entry| *entry == node).count()
    };
    let index = |node: usize| {
        let found =
            tables.nodes.iter().find(|(_, row)| row.address == Ipv4::from(node_address(node)));
        *found.unwrap().0 as u16
    };
    assert!((61..=64).contains(&entries(index(1))), "{}", entries(index(1)));
    assert_eq!(entries(index(1)) + entries(index(2)), 256);
}

#[test]
fn other_rules_keep_their_tables_when_one_changes() {
    let cluster = web(&[(1, true), (2, true)]);
    let before = mux(&cluster, &MuxTables::default());
    let fewer = web(&[(1, true), (2, false)]);
    let after = mux(&fewer, &before);
    let (old, new) = (before.rules[&key(80)], after.rules[&key(80)]);
    assert_eq!(old.id, new.id);
    // Both tables are whole while the rule moves from one to the other.
    assert!(new.maglev_first >= old.maglev_count);
    let edits = after.edits(&before);
    let moves = edits.iter().position(|edit| matches!(edit, MuxEdit::Rule(..))).unwrap();
    let rows = |empty: bool| {
        edits.iter().enumerate().filter(move |(_, edit)| {
            matches!(edit, MuxEdit::Maglev(_, row) if (*row == Owners::default()) == empty)
        })
    };
    assert!(rows(false).all(|(index, _)| index < moves));
    assert!(rows(true).all(|(index, _)| index > moves));
    assert_eq!(rows(true).count(), 64);
    // The same again moves nothing.
    assert_eq!(mux(&fewer, &after), after);
}

#[test]
fn a_rule_without_ready_pods_has_no_table() {
    let tables = mux(&web(&[(1, false)]), &MuxTables::default());
    assert_eq!(tables.rules[&key(80)].maglev_count, 0);
    assert!(tables.maglev.is_empty());
}

#[test]
fn sources_are_restricted_by_the_security_group_and_closed_without_a_rule() {
    let group = |rules: serde_json::Value| {
        let mut cluster = web(&[(1, true)]);
        cluster.own("NetworkSecurityGroup", "nsg", json!({"properties": {"securityRules": rules}}));
        mux(&cluster, &MuxTables::default())
    };
    let allow = |source: &str, priority: u16| {
        json!({"name": source, "properties": {
            "protocol": "Tcp", "access": "Allow", "direction": "Inbound", "priority": priority,
            "sourceAddressPrefix": source, "destinationAddressPrefixes": ["203.0.113.1"],
            "destinationPortRanges": ["80"],
        }})
    };
    let deny = json!({"name": "deny", "properties": {
        "protocol": "*", "access": "Deny", "direction": "Inbound", "priority": 4096,
        "sourceAddressPrefix": "*", "destinationAddressPrefixes": ["203.0.113.1"],
        "destinationPortRange": "*",
    }});
    let open = group(json!([allow("Internet", 500)]));
    assert_eq!(open.rules[&key(80)].flags & rule_flag::RESTRICTED, 0);
    assert!(open.allowed_sources.is_empty());
    let restricted = group(json!([allow("198.51.100.0/24", 500), deny]));
    let rule = restricted.rules[&key(80)];
    assert_ne!(rule.flags & rule_flag::RESTRICTED, 0);
    let allowed: Vec<(u32, String)> =
        restricted.allowed_sources.iter().map(|(id, net)| (*id, net.to_string())).collect();
    assert_eq!(allowed, [(rule.id, "198.51.100.0/24".to_owned())]);
    let closed = group(json!([deny]));
    assert_ne!(closed.rules[&key(80)].flags & rule_flag::RESTRICTED, 0);
    assert!(closed.allowed_sources.is_empty());
    // No group at all: nothing stands in the way.
    let none = mux(&web(&[(1, true)]), &MuxTables::default());
    assert_eq!(none.rules[&key(80)].flags & rule_flag::RESTRICTED, 0);
}

#[test]
fn a_restriction_is_written_before_the_rule_that_names_it() {
    let mut cluster = web(&[(1, true)]);
    cluster.own(
        "NetworkSecurityGroup",
        "nsg",
        json!({"properties": {"securityRules": [
            {"name": "a", "properties": {"protocol": "Tcp", "access": "Allow",
                "direction": "Inbound", "priority": 500, "sourceAddressPrefix": "198.51.100.7",
                "destinationAddressPrefix": "*", "destinationPortRange": "80"}},
        ]}}),
    );
    let edits = mux(&cluster, &MuxTables::default()).edits(&MuxTables::default());
    let source = edits.iter().position(|edit| matches!(edit, MuxEdit::AllowedSource(..)));
    let rule = edits.iter().position(|edit| matches!(edit, MuxEdit::Rule(..)));
    let vip = edits.iter().position(|edit| matches!(edit, MuxEdit::Vip(..)));
    assert!(source < rule && rule < vip, "{edits:?}");
}

#[test]
fn of_vips_that_share_a_row_one_has_it_and_all_have_their_keys() {
    let mut cluster = web(&[]);
    let before = mux(&cluster, &MuxTables::default());
    let near = |vip: Ipv4, tables: &MuxTables| {
        tables.near_vips[&NearVip::row(vip)].of(vip) == Some(tables.vips[&vip])
    };
    assert!(near(VIP, &before) && near(NAT, &before));
    let mut others = (1..VIP.number()).rev().map(Ipv4::from_number);
    let other = others.find(|other| NearVip::row(*other) == NearVip::row(VIP)).unwrap();
    let network = cluster.objects.node_networks.get_mut("n2").unwrap();
    network.spec.instance_public_ip = Some(other.into());
    let after = mux(&cluster, &before);
    assert!(near(other, &after) && near(NAT, &after) && !near(VIP, &after));
    assert_eq!(after.vips[&VIP], before.vips[&VIP]);
    applied(&before, &after);
    applied(&after, &before);
}

#[test]
fn older_orders_are_refused_by_agents_and_muxes() {
    let mut cluster = web(&[]);
    cluster.objects.node_networks.get_mut("n1").unwrap().spec.epoch = 4;
    let newer = AgentTables { epoch: 5, ..AgentTables::default() };
    assert!(matches!(
        agent_tables(&cluster.objects, "n1", &newer),
        Err(TablesError::StaleEpoch { applied: 5, offered: 4, .. })
    ));
    cluster.objects.mux_networks.get_mut("m1").unwrap().spec.epoch = 4;
    let newer = MuxTables { epoch: 5, ..MuxTables::default() };
    assert!(matches!(
        mux_tables(&cluster.objects, "m1", &newer, cluster.now),
        Err(TablesError::StaleEpoch { applied: 5, offered: 4, .. })
    ));
    assert!(matches!(
        agent_tables(&cluster.objects, "n9", &AgentTables::default()),
        Err(TablesError::Missing { .. })
    ));
}

#[test]
fn pods_and_their_namespaces_have_allowances_that_they_keep() {
    let mut cluster =
        Cluster::new(json!({"quotas": {"flowsPerPod": 100, "flowsPerNamespace": 150}}), 1);
    let pod = |name: &str, namespace: &str, node: &str, address: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"nodeName": node}, "status": {"podIP": address},
        })
    };
    cluster.add(pod("a", "shop", "n1", "10.100.1.5"));
    cluster.add(pod("b", "shop", "n1", "10.100.1.6"));
    cluster.add(pod("c", "shop", "n2", "10.100.2.5"));
    cluster.settle();
    let first = agent_tables(&cluster.objects, "n1", &AgentTables::default()).unwrap();
    let quota = |tables: &AgentTables, last| {
        tables.quotas.get(&Ipv4::new(10, 100, 1, last)).copied().unwrap()
    };
    assert_eq!(first.quotas.len(), 2);
    assert_eq!(quota(&first, 5).namespace, quota(&first, 6).namespace);
    let limits = [quota(&first, 5).pod, quota(&first, 6).pod, quota(&first, 5).namespace]
        .map(|row| first.allowances[&row]);
    assert_eq!(limits, [100, 100, 150]);
    assert_ne!(first.flags & agent_flag::QUOTAS, 0);

    // Another pod comes in front of them; who was there keeps its rows.
    cluster.add(pod("aa", "bank", "n1", "10.100.1.4"));
    cluster.settle();
    let mut present = first.clone();
    let second = agent_tables(&cluster.objects, "n1", &present).unwrap();
    assert_eq!(quota(&second, 5), quota(&first, 5));
    assert_eq!(quota(&second, 6), quota(&first, 6));
    assert_eq!(second.allowances.len(), 5);
    for edit in second.edits(&present) {
        present.apply(&edit);
    }
    assert_eq!((&present.quotas, &present.allowances), (&second.quotas, &second.allowances));
}

#[test]
fn a_pod_without_a_quota_has_the_nodes_default() {
    let mut cluster = Cluster::new(json!({}), 1);
    cluster.add(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "namespace": "shop"},
        "spec": {"nodeName": "n1"}, "status": {"podIP": "10.100.1.5"},
    }));
    cluster.settle();
    let tables = agent_tables(&cluster.objects, "n1", &AgentTables::default()).unwrap();
    let quota = tables.quotas[&Ipv4::new(10, 100, 1, 5)];
    assert_eq!((tables.allowances[&quota.pod], quota.namespace), (Allowance::DEFAULT, 0));
    assert_ne!(tables.flags & agent_flag::QUOTAS, 0);
}

#[test]
fn timers_that_make_no_sense_are_refused_by_name() {
    let read = |timers: serde_json::Value| {
        serde_json::from_value::<model::cluster::FlowTimers>(timers)
            .map_err(|error| error.to_string())
    };
    let timers = read(json!({"tcpResetSeconds": 20, "natGateway": {"udpSeconds": 300}})).unwrap();
    assert_eq!(timers.rows()[0], Timers::from_seconds(240, 240, 20));
    assert_eq!(timers.nat_gateway.udp_seconds, 300);
    for (given, complaint) in [
        (json!({"tcpResetSeconds": 0}), "timers.tcpResetSeconds is 0: write at least 1"),
        (
            json!({"tcpResetSeconds": 300}),
            "timers.tcpResetSeconds is 300: at most tcpHalfOpenSeconds, which is 240",
        ),
        (
            json!({"natGateway": {"tcpClosingSeconds": 10}}),
            "timers.natGateway.tcpResetSeconds is 16: at most tcpClosingSeconds, which is 10",
        ),
        (
            json!({"tcpHalfOpenSeconds": 100_000}),
            "timers.tcpHalfOpenSeconds is 100000: at most 86400",
        ),
    ] {
        assert_eq!(read(given), Err(complaint.to_owned()));
    }
    assert!(read(json!({"tcpResetMinutes": 1})).unwrap_err().contains("tcpResetMinutes"));
}

#[test]
fn a_nat_gateway_has_its_own_timers_and_a_whole_address_every_protocol() {
    let mut cluster = Cluster::new(json!({"outboundType": "managedNATGateway"}), 1);
    cluster.settle();
    let tables = agent_tables(&cluster.objects, "n1", &AgentTables::default()).unwrap();
    let policy = tables.policies[&u32::from(policy_index::TCP)];
    assert_ne!(policy.flags & policy_flag::GATEWAY_TIMERS, 0);
    assert_eq!(policy.idle_udp, Ticks::from_seconds(240).0);
    assert_eq!(tables.timers, [Timers::LOAD_BALANCER, Timers::NAT_GATEWAY]);
    assert!(tables.sources.values().all(|source| source.other == policy_index::REFUSE));

    let mut cluster = Cluster::new(json!({"sku": "Standard"}), 0);
    cluster.node_with(1, json!({"deguchi.io/public-ip": "true"}), "uid");
    cluster.settle();
    let tables = agent_tables(&cluster.objects, "n1", &AgentTables::default()).unwrap();
    let policy = tables.policies[&u32::from(policy_index::OTHER)];
    assert_ne!(policy.flags & policy_flag::WHOLE_ADDRESS, 0);
    assert!(tables.sources.values().all(|source| source.other == policy_index::OTHER));
}

#[test]
fn pods_ipv6_is_kept_in_where_the_setting_says_so_and_nowhere_else() {
    for (setting, is_refused) in [(None, false), (Some("Pass"), false), (Some("Refuse"), true)] {
        let mut spec = json!({"sku": "Standard"});
        if let Some(setting) = setting {
            spec["ipv6"] = json!(setting);
        }
        let cluster = Cluster::new(spec, 1);
        let tables = agent_tables(&cluster.objects, "n1", &AgentTables::default()).unwrap();
        assert_eq!(tables.flags & agent_flag::REFUSE_IPV6 != 0, is_refused, "{setting:?}");
    }
}
