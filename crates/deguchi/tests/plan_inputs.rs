//! What people really bring to `deguchi plan`: every way of writing that kubectl reads, every way
//! of saying nothing, and the mistakes that an API server refuses. A mistake changes nothing that
//! runs, and opens nothing to anybody.

mod desk;

use desk::{Desk, parse};
use serde_json::{Value, json};

const CLUSTER: &str = "\
apiVersion: deguchi.io/v1alpha1
kind: ClusterNetwork
metadata: {name: default}
---
apiVersion: deguchi.io/v1alpha1
kind: PublicIPPool
metadata: {name: edge}
spec: {prefixes: [203.0.113.0/28]}
---
apiVersion: v1
kind: Node
metadata: {name: node-1}
status: {addresses: [{type: InternalIP, address: 10.240.0.4}]}
";

const SHOP: &str = "\
apiVersion: v1
kind: Service
metadata: {name: shop, namespace: web}
spec:
  type: LoadBalancer
  selector: {app: shop}
  loadBalancerSourceRanges: [198.51.100.0/24]
  ports: [{name: http, port: 80}]
";

/// A desk with the cluster's file.
fn desk(name: &str) -> Desk {
    let desk = Desk::new(name);
    desk.write("cluster.yaml", CLUSTER);
    desk
}

/// The plan of this input beside the cluster, and what was said about it.
#[track_caller]
fn plan(desk: &Desk, input: impl AsRef<[u8]>, status: i32) -> (Value, String) {
    desk.write_bytes("input.yaml", input.as_ref());
    let mut arguments = vec!["-f", "input.yaml", "cluster.yaml", "-o", "json"];
    if desk.path("before.json").exists() {
        arguments.extend(["--state", "before.json"]);
    }
    let output = desk.run(&arguments);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{errors}");
    (parse(&output), errors)
}

/// Makes what `input` gives the state of later plans.
fn runs(desk: &Desk, input: &str) -> Value {
    let (before, _) = plan(desk, input, 0);
    desk.write("before.json", &before.to_string());
    before
}

/// Who may reach an address, by the security group.
fn sources(plan: &Value) -> Vec<String> {
    let rules = &plan["resources"]["networksecuritygroups/nsg"]["properties"]["securityRules"];
    let rules = rules.as_array().into_iter().flatten();
    let one = |rule: &Value| {
        let properties = &rule["properties"];
        let several = properties["sourceAddressPrefixes"].as_array();
        let mut sources: Vec<Value> = several.cloned().unwrap_or_default();
        sources.extend(properties.get("sourceAddressPrefix").cloned());
        sources.iter().map(|source| source.as_str().unwrap_or_default().to_owned()).collect()
    };
    rules.flat_map(one as fn(&Value) -> Vec<String>).collect()
}

#[test]
fn a_merged_type_is_the_type_that_was_there() {
    let desk = desk("merged-type");
    let before = runs(&desk, SHOP);
    let merged = SHOP.replace("  type: LoadBalancer\n", "  <<: {type: LoadBalancer}\n");
    let (after, _) = plan(&desk, merged, 0);
    assert_eq!(after["changes"], json!([]));
    assert_eq!(after["resources"], before["resources"]);
}

#[test]
fn a_created_service_keeps_the_node_ports_that_its_author_leaves_out() {
    let desk = desk("node-ports");
    let uid = "uid: 5d6a1c7e-0b1f-4c53-9d5e-3a2b1c0d9e8f";
    let left_out = SHOP.replace("namespace: web", &format!("namespace: web, {uid}"));
    runs(&desk, &left_out.replace("port: 80", "port: 80, nodePort: 30080"));
    for nothing in ["", ", nodePort: 0", ", nodePort: null"] {
        let input = left_out.replace("port: 80", &format!("port: 80{nothing}"));
        assert_eq!(plan(&desk, input, 0).0["changes"], json!([]), "{nothing}");
    }
}

#[test]
fn merged_source_ranges_keep_everybody_else_out() {
    let desk = desk("merged-ranges");
    let list = "apiVersion: v1\nkind: List\nitems:\n\
        - apiVersion: v1\n  kind: Service\n  metadata: {name: shop, namespace: web}\n  \
          spec: &shop\n    type: LoadBalancer\n    \
            loadBalancerSourceRanges: [198.51.100.0/24]\n    \
            ports: [{name: http, port: 80}]\n\
        - apiVersion: v1\n  kind: Service\n  metadata: {name: admin, namespace: web}\n  \
          spec:\n    <<: *shop\n    ports: [{name: http, port: 8443}]\n";
    let (plan, _) = plan(&desk, list, 0);
    assert_eq!(plan["services"].as_object().unwrap().len(), 2);
    assert_eq!(sources(&plan), ["198.51.100.0/24", "198.51.100.0/24"]);
}

#[test]
fn every_way_of_writing_gives_the_same_plan() {
    let desk = desk("writings");
    let (wanted, _) = plan(&desk, SHOP, 0);
    let value: Value = serde_norway::from_str(SHOP).unwrap();
    let utf16 = |text: &str, mark: &str| -> Vec<u8> {
        let text = format!("{mark}{text}");
        text.encode_utf16().flat_map(u16::to_le_bytes).collect()
    };
    let crlf = SHOP.replace('\n', "\r\n");
    let item = json!({"metadata": value["metadata"], "spec": value["spec"]});
    let list = json!({"apiVersion": "v1", "kind": "ServiceList", "items": [item]});
    for input in [
        crlf.as_bytes().to_vec(),
        format!("\u{feff}{SHOP}").into_bytes(),
        utf16(&crlf, "\u{feff}"),
        utf16(SHOP, ""),
        SHOP.encode_utf16().flat_map(u16::to_be_bytes).collect(),
        value.to_string().into_bytes(),
        list.to_string().into_bytes(),
        format!("---\n# nothing\n---\n{SHOP}...\n---\n").into_bytes(),
        format!("kind: List\napiVersion: v1\nitems:\n- {}", SHOP.trim_end().replace('\n', "\n  "))
            .into_bytes(),
    ] {
        let (given, _) = plan(&desk, &input, 0);
        assert_eq!(given, wanted, "{}", String::from_utf8_lossy(&input));
    }
}

#[test]
fn every_way_of_saying_nothing_gives_the_same_plan() {
    let desk = desk("nothing");
    let mut service: Value = serde_norway::from_str(SHOP).unwrap();
    service["metadata"]["namespace"] = json!("default");
    let (wanted, _) = plan(&desk, service.to_string(), 0);
    for (pointer, fields, nothings) in [
        ("/metadata", &["namespace"][..], &[json!(null), json!("")][..]),
        ("/metadata", &["labels", "annotations", "finalizers"], &[json!(null)]),
        ("/metadata", &["uid", "creationTimestamp", "resourceVersion"], &[json!(null), json!("")]),
        ("/metadata", &["generation"], &[json!(null), json!(0)]),
        ("/metadata", &["deletionTimestamp"], &[json!(null)]),
        ("/spec/ports/0", &["nodePort", "targetPort"], &[json!(null), json!(0)]),
        ("/spec/ports/0", &["protocol", "targetPort"], &[json!(null), json!("")]),
        ("/spec/ports/0", &["appProtocol"], &[json!(null)]),
        (
            "/spec",
            &["clusterIP", "externalTrafficPolicy", "sessionAffinity", "loadBalancerIP"],
            &[json!(null), json!("")],
        ),
        ("/spec", &["healthCheckNodePort"], &[json!(null), json!(0)]),
        ("/spec", &["clusterIPs", "externalIPs", "ipFamilies"], &[json!(null), json!([])]),
        (
            "/spec",
            &[
                "ipFamilyPolicy",
                "loadBalancerClass",
                "allocateLoadBalancerNodePorts",
                "internalTrafficPolicy",
                "sessionAffinityConfig",
            ],
            &[json!(null)],
        ),
        ("", &["status"], &[json!(null), json!({}), json!({"loadBalancer": null})]),
        ("", &["status"], &[json!({"loadBalancer": {"ingress": null}})]),
    ] {
        for (field, nothing) in
            fields.iter().flat_map(|field| nothings.iter().map(move |nothing| (field, nothing)))
        {
            let mut service = service.clone();
            let absent = service.pointer_mut(pointer).unwrap().as_object_mut().unwrap();
            absent.remove(*field);
            absent.insert((*field).to_owned(), nothing.clone());
            let (given, _) = plan(&desk, service.to_string(), 0);
            assert_eq!(given, wanted, "{pointer}/{field}: {nothing}");
        }
    }
    let mut absent = service.clone();
    absent["metadata"].as_object_mut().unwrap().remove("namespace");
    assert_eq!(plan(&desk, absent.to_string(), 0).0, wanted);
}

#[test]
fn a_node_and_our_own_kinds_may_say_nothing_too() {
    let desk = desk("nothing-else");
    let (wanted, _) = plan(&desk, SHOP, 0);
    for (from, to) in [
        ("metadata: {name: node-1}\n", "metadata: {name: node-1, labels: null}\nspec: null\n"),
        (
            "metadata: {name: node-1}\n",
            "metadata: {name: node-1}\nspec: {podCIDR: '', taints: null}\n",
        ),
        ("10.240.0.4}]}", "10.240.0.4}], conditions: null, nodeInfo: null}"),
        ("metadata: {name: default}\n", "metadata: {name: default}\nspec: null\n"),
        (
            "metadata: {name: default}\n",
            "metadata: {name: default}\nspec: {loadBalancerProfile: null, sku: null}\n",
        ),
    ] {
        desk.write("cluster.yaml", &CLUSTER.replace(from, to));
        assert_eq!(plan(&desk, SHOP, 0).0, wanted, "{to}");
    }
}

#[test]
fn a_namespace_that_says_nothing_is_default_and_the_service_the_same() {
    let desk = desk("namespace");
    runs(&desk, &SHOP.replace("namespace: web", "namespace: default"));
    for nothing in ["namespace: ''", "namespace: null", "namespace: "] {
        let (after, _) = plan(&desk, SHOP.replace("namespace: web", nothing), 0);
        assert_eq!(after["changes"], json!([]), "{nothing}");
        let keys: Vec<&String> = after["services"].as_object().unwrap().keys().collect();
        assert_eq!(keys, ["default/shop"]);
    }
}

#[test]
fn what_an_api_server_refuses_changes_nothing_that_runs() {
    let desk = desk("refused");
    let before = runs(&desk, SHOP);
    for (from, to, words) in [
        ("LoadBalancer", "Loadbalancer", "spec.type: Unsupported value: \"Loadbalancer\""),
        ("type: LoadBalancer", "Type: ClusterIP", "did you mean type?"),
        ("name: http, port: 80", "port: 80, protocol: tcp", "Unsupported value: \"tcp\""),
        ("port: 80", "port: 0", "spec.ports[0].port: Invalid value: 0"),
        ("port: 80", "port: eighty", "spec.ports[0].port: invalid type"),
        ("[{name: http, port: 80}]", "[{port: 80}, {port: 81}]", "several ports need names"),
        ("[{name: http, port: 80}]", "[]", "spec.ports: Required value"),
        (
            "selector:",
            "clusterIP: None\n  selector:",
            "spec.clusterIPs[0]: Invalid value: \"None\": may not be set to 'None' for Load",
        ),
        ("selector:", "ipFamilyPolicy: RequireDualStack\n  selector:", "not configured for dual"),
        ("selector:", "ipFamilies: [IPv6]\n  selector:", "spec.ipFamilies[0]: Invalid value"),
        ("loadBalancerSourceRanges", "loadbalancerSourceRanges", "did you mean loadBalancerSource"),
        ("198.51.100.0/24", "198.51.100.0", "has no length: write 198.51.100.0/32"),
        (
            "namespace: web",
            "namespace: web, \
             annotations: {service.beta.kubernetes.io/azure-load-balancer-intern: 'true'}",
            "write service.beta.kubernetes.io/azure-load-balancer-internal",
        ),
        ("metadata:", "metadata: &m", ""),
    ] {
        let status = if words.is_empty() { 0 } else { 1 };
        let (after, errors) = plan(&desk, SHOP.replace(from, to), status);
        assert_eq!(after["changes"], json!([]), "{to}: {errors}");
        assert_eq!(after["resources"], before["resources"], "{to}");
        let (told, was) = (&after["services"]["web/shop"], &before["services"]["web/shop"]);
        assert_eq!(told["status"], was["status"], "{to}");
        assert_eq!(told["finalizers"], was["finalizers"], "{to}");
        let line =
            |line: &str| line.starts_with("deguchi: Service web/shop: ") && line.contains(words);
        assert!(words.is_empty() || errors.lines().any(line), "{to}: {errors}");
    }
}

#[test]
fn who_is_refused_keeps_what_it_has_also_if_its_uid_is_not_given() {
    let desk = desk("without-uid");
    let uid = "uid: 5d6a1c7e-0b1f-4c53-9d5e-3a2b1c0d9e8f";
    let created = SHOP
        .replace("namespace: web", &format!("namespace: web, {uid}"))
        .replace("port: 80", "port: 80, nodePort: 30080");
    let before = runs(&desk, &created);
    for (from, to) in [
        ("LoadBalancer", "Loadbalancer"),
        ("port: 80", "port: eighty"),
        ("port: 80", "port: 80, protocol: tcp"),
    ] {
        let (after, _) = plan(&desk, SHOP.replace(from, to), 1);
        assert_eq!(after["resources"], before["resources"], "{to}");
        assert_eq!(after["changes"], json!([]), "{to}");
    }
}

#[test]
fn an_internal_service_that_is_refused_keeps_what_it_has_also_if_its_uid_is_not_given() {
    let desk = desk("internal-without-uid");
    let internal = |name: &str| {
        let annotation = "service.beta.kubernetes.io/azure-load-balancer-internal: \"true\"";
        SHOP.replace("name: shop", &format!("name: {name}, annotations: {{{annotation}}}"))
    };
    let created = |name: &str, uid: &str, ports: &str| {
        internal(name)
            .replace("namespace: web", &format!("namespace: web, uid: {uid}"))
            .replace("port: 80", ports)
    };
    let shop = created("shop", "5d6a1c7e-0b1f-4c53-9d5e-3a2b1c0d9e8f", "port: 80, nodePort: 30080");
    let till = created("till", "77a1c7e0-0b1f-4c53-9d5e-3a2b1c0d9e8f", "port: 81, nodePort: 30081");
    let before = runs(&desk, &format!("{shop}---\n{till}"));
    for mistake in ["port: eighty", "port: 80, protocol: tcp"] {
        let wrong = |name: &str| internal(name).replace("port: 80", mistake);
        for input in [
            format!("{}---\n{till}", wrong("shop")),
            format!("{}---\n{}", wrong("shop"), wrong("till")),
        ] {
            let (after, errors) = plan(&desk, input, 1);
            assert!(errors.contains("Service web/shop: "), "{errors}");
            assert_eq!(after["resources"], before["resources"], "{mistake}");
            assert_eq!(after["changes"], json!([]), "{mistake}");
            for key in ["web/shop", "web/till"] {
                let status = |plan: &Value| plan["services"][key]["status"].clone();
                assert_eq!(status(&after), status(&before), "{key}");
            }
        }
    }
    let (after, _) = plan(&desk, internal("shop").replace("port: 80", "port: eighty"), 1);
    let rules =
        after["resources"]["loadbalancers/kubernetes-internal"]["properties"]["loadBalancingRules"]
            .as_array();
    assert_eq!(rules.unwrap().len(), 1, "the other one was deleted");
}

#[test]
fn an_object_that_is_there_twice_changes_nothing() {
    let desk = desk("objects-twice");
    let before = runs(&desk, SHOP);
    for (kind, twin) in [
        (
            "Node node-1",
            "kind: Node\nmetadata: {name: node-1}\n\
             status: {addresses: [{type: InternalIP, address: 10.240.0.9}]}\n",
        ),
        ("PublicIPPool edge", "kind: PublicIPPool\nmetadata: {name: edge}\nspec: {prefixes: []}\n"),
        (
            "PublicIPAddress mine",
            "kind: PublicIPAddress\nmetadata: {name: mine}\n---\n\
             kind: PublicIPAddress\nmetadata: {name: mine}\nspec: {ipAddress: 203.0.113.9}\n",
        ),
        (
            "ClusterNetwork default",
            "kind: ClusterNetwork\nmetadata: {name: default}\n\
             spec: {outboundType: userDefinedRouting}\n",
        ),
    ] {
        let twin = twin.replace("kind: P", "apiVersion: deguchi.io/v1alpha1\nkind: P");
        for input in [format!("{SHOP}---\n{twin}"), format!("{twin}---\n{SHOP}")] {
            let (after, errors) = plan(&desk, input, 1);
            assert_eq!(after["resources"], before["resources"], "{kind}");
            assert_eq!(after["changes"], json!([]), "{kind}");
            let start = format!("deguchi: {kind}: ");
            let lines = errors.lines().filter(|line| line.starts_with(&start));
            assert_eq!(lines.count(), 1, "{errors}");
        }
    }
}

#[test]
fn what_an_api_server_refuses_of_other_kinds_changes_nothing_either() {
    let desk = desk("other-kinds");
    let before = runs(&desk, SHOP);
    for (from, to, words) in [
        ("{name: node-1}", "{name: node-1, labels: {a: b c}}", "Node node-1: metadata.labels[a]"),
        ("status: {", "spec: {podCIDRs: [x]}\nstatus: {", "Node node-1: spec.podCIDRs[0]"),
        ("{name: edge}", "{name: Edge_1}", "PublicIPPool Edge_1: metadata.name: Invalid value"),
        (
            "{name: default}",
            "{name: default, annotations: {a b: c}}",
            "ClusterNetwork default: metadata.annotations",
        ),
    ] {
        desk.write("cluster.yaml", &CLUSTER.replace(from, to));
        let (after, errors) = plan(&desk, SHOP, 1);
        assert!(errors.contains(words), "{errors}");
        assert_eq!(after["resources"], before["resources"], "{to}");
    }
}

#[test]
fn a_pool_that_is_refused_is_not_replaced_by_other_addresses() {
    let desk = desk("no-pool");
    desk.write("cluster.yaml", &CLUSTER.replace("[203.0.113.0/28]", "7"));
    let (after, errors) = plan(&desk, SHOP, 1);
    assert!(errors.contains("PublicIPPool edge: spec.prefixes"), "{errors}");
    assert_eq!(after["services"]["web/shop"]["status"], json!({}), "{errors}");
}

#[test]
fn a_label_of_a_node_that_is_nearly_one_that_counts_is_a_warning() {
    let desk = desk("labels");
    let label = |label: &str| {
        let labels = format!("{{name: node-1, labels: {{{label}: \"\"}}}}");
        desk.write("cluster.yaml", &CLUSTER.replace("{name: node-1}", &labels));
        plan(&desk, SHOP, 0).1
    };
    for (wrong, near) in [
        (
            "node.kubernetes.io/exclude-from-external-load-balancer",
            "node.kubernetes.io/exclude-from-external-load-balancers",
        ),
        (
            "node.kubernetes.io/exclude-from-external-loadbalancers",
            "node.kubernetes.io/exclude-from-external-load-balancers",
        ),
        (
            "nodes.kubernetes.io/exclude-from-external-load-balancers",
            "node.kubernetes.io/exclude-from-external-load-balancers",
        ),
        ("kubernetes.azure.com/Managed", "kubernetes.azure.com/managed"),
        ("kubernetes.azure.com/agent-pool", "kubernetes.azure.com/agentpool"),
        ("kubernetes.azure.io/agentpool", "kubernetes.azure.com/agentpool"),
        ("node-role.kubernetes.io/controlplane", "node-role.kubernetes.io/control-plane"),
    ] {
        let line = format!(
            "deguchi: warning: Node node-1: unknown label {wrong} is ignored: did you mean {near}?"
        );
        let errors = label(wrong);
        assert!(errors.lines().any(|found| found == line), "{line}: {errors}");
    }
    for known in [
        "node.kubernetes.io/exclude-from-external-load-balancers",
        "kubernetes.azure.com/agentpool",
        "kubernetes.azure.com/mode",
        "kubernetes.azure.com/cluster",
        "kubernetes.azure.com/nodepool-type",
        "kubernetes.azure.com/role",
        "node.kubernetes.io/instance-type",
        "node-role.kubernetes.io/master",
        "node-role.kubernetes.io/worker",
        "topology.kubernetes.io/zone",
    ] {
        let errors = label(known);
        assert!(!errors.contains("unknown label"), "{known}: {errors}");
    }
    let annotations = "{name: node-1, annotations: {deguchi.io/public-IP: \"true\"}}";
    desk.write("cluster.yaml", &CLUSTER.replace("{name: node-1}", annotations));
    let (_, errors) = plan(&desk, SHOP, 0);
    let words = "unknown annotation deguchi.io/public-IP is ignored: did you mean \
                 deguchi.io/public-ip?";
    assert!(errors.contains(words), "{errors}");
}

#[test]
fn a_text_that_cannot_be_read_is_one_line() {
    let desk = desk("one-line");
    desk.write("input.yaml", "a: [!x, y]\n");
    let output = desk.run(&["-f", "input.yaml"]);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{errors}");
    assert_eq!(errors.lines().count(), 1, "{errors}");
    assert!(errors.contains("line 1: a tag with a comma"), "{errors}");
}

#[test]
fn a_service_that_is_there_twice_stays_as_it_is() {
    let desk = desk("twice");
    let before = runs(&desk, SHOP);
    let open = SHOP.replace("  loadBalancerSourceRanges: [198.51.100.0/24]\n", "");
    for twice in [format!("{SHOP}---\n{open}"), format!("{open}---\n{SHOP}")] {
        let (after, errors) = plan(&desk, twice, 1);
        assert_eq!(after["resources"], before["resources"]);
        assert_eq!(errors.matches("Service web/shop: is there twice").count(), 1, "{errors}");
    }
}

#[test]
fn a_node_that_cannot_be_read_stays_in_its_pools() {
    let desk = desk("node");
    let before = runs(&desk, SHOP);
    desk.write("cluster.yaml", &CLUSTER.replace("[{type: InternalIP, address: 10.240.0.4}]", "7"));
    let (after, errors) = plan(&desk, SHOP, 1);
    assert!(errors.contains("Node node-1: status.addresses"), "{errors}");
    assert_eq!(after["resources"], before["resources"]);
}

#[test]
fn a_mistake_never_opens_a_new_service() {
    let desk = desk("open");
    for (from, to) in [
        ("loadBalancerSourceRanges", "loadbalancerSourceRanges"),
        ("loadBalancerSourceRanges", "loadBalancerSourceRange"),
        ("loadBalancerSourceRanges", "sourceRanges"),
        ("  loadBalancerSourceRanges", "loadBalancerSourceRanges"),
    ] {
        let input = SHOP.replace(from, to);
        // Taken out of the spec, the field stands after it.
        let input = match to.starts_with(' ') || from.starts_with(' ') {
            true => {
                let line = "loadBalancerSourceRanges: [198.51.100.0/24]\n";
                format!("{}{line}", input.replace(line, ""))
            }
            false => input,
        };
        let (plan, errors) = plan(&desk, &input, 1);
        assert_eq!(sources(&plan), [""; 0], "{input}");
        assert_eq!(plan["services"]["web/shop"]["status"], json!({}), "{errors}");
        assert!(errors.contains("open to everybody"), "{errors}");
    }
}

#[test]
fn unknown_fields_and_annotations_are_warnings_that_name_the_known_ones() {
    let desk = desk("unknown");
    let input = SHOP
        .replace("selector:", "loadBalancerIp: 203.0.113.9\n  selector:")
        .replace("port: 80", "port: 80, nodeport: 30080")
        .replace(
            "namespace: web",
            "namespace: web, annotations: {service.beta.kubernetes.io/azure-pip-tag: a=b}",
        );
    let (plan, errors) = plan(&desk, input, 0);
    assert_eq!(sources(&plan), ["198.51.100.0/24"]);
    for words in [
        "unknown field \"spec.loadBalancerIp\" is ignored: did you mean loadBalancerIP?",
        "unknown field \"spec.ports[0].nodeport\" is ignored: did you mean nodePort?",
        "unknown annotation service.beta.kubernetes.io/azure-pip-tag is ignored: did you mean \
         service.beta.kubernetes.io/azure-pip-tags?",
    ] {
        let line = format!("deguchi: warning: Service web/shop: {words}");
        assert!(errors.lines().any(|found| found == line), "{line}: {errors}");
    }
}

#[test]
fn families_follow_the_policy_and_the_cluster() {
    let desk = desk("families");
    let both = CLUSTER
        .replace("[203.0.113.0/28]", "[203.0.113.0/28, '2001:db8:1::/120']")
        .replace(
            "metadata: {name: node-1}\n",
            "metadata: {name: node-1}\nspec: {podCIDRs: [10.244.0.0/24, 'fd00:10::/80']}\n",
        )
        .replace("10.240.0.4}]", "10.240.0.4}, {type: InternalIP, address: 'fd00::4'}]");
    desk.write("cluster.yaml", &both);
    let open = SHOP.replace("  loadBalancerSourceRanges: [198.51.100.0/24]\n", "");
    for (policy, families) in [("SingleStack", 1), ("PreferDualStack", 2), ("RequireDualStack", 2)]
    {
        let input = open.replace("selector:", &format!("ipFamilyPolicy: {policy}\n  selector:"));
        let (plan, _) = plan(&desk, input, 0);
        let ingress = plan["services"]["web/shop"]["status"]["ingress"].as_array().unwrap();
        let is_v6 = |entry: &&Value| entry["ip"].as_str().unwrap().contains(':');
        assert_eq!(ingress.len(), families, "{policy}");
        assert_eq!(ingress.iter().filter(is_v6).count(), families - 1, "{policy}");
    }
}

#[test]
fn a_public_ip_of_ones_own_is_used_whatever_group_the_service_names() {
    let desk = desk("groups");
    let prefix = "service.beta.kubernetes.io";
    let named = SHOP.replace(
        "namespace: web",
        &format!(
            "namespace: web, annotations: {{{prefix}/azure-load-balancer-resource-group: network, \
             {prefix}/azure-pip-name: mine}}"
        ),
    );
    let with = |group: &str| {
        let ip = "apiVersion: deguchi.io/v1alpha1\nkind: PublicIPAddress\nmetadata: {name: mine}\n";
        format!("{ip}spec: {{ipAddress: 203.0.113.9{group}}}\n---\n{named}")
    };
    let address = |plan: &Value| plan["services"]["web/shop"]["status"]["ingress"][0]["ip"].clone();
    let (silent, errors) = plan(&desk, with(""), 0);
    assert_eq!(address(&silent), "203.0.113.9");
    assert!(errors.contains("\"network\" is ignored: PublicIPAddress mine"), "{errors}");
    assert!(errors.contains("write spec.resourceGroup"), "{errors}");
    let (told, errors) = plan(&desk, with(", resourceGroup: network"), 0);
    assert_eq!(address(&told), "203.0.113.9");
    assert!(!errors.contains("is ignored"), "{errors}");
    let id = told["resources"]["publicipaddresses/mine"]["id"].as_str().unwrap();
    assert!(id.contains("/resourceGroups/network/"), "{id}");
    let (other, errors) = plan(&desk, with(", resourceGroup: elsewhere"), 1);
    assert_eq!(address(&other), Value::Null);
    assert!(errors.contains("doesn't exist: create it in resource group network"), "{errors}");
}
