//! `deguchi plan` as people and programs call it: what it reads, what it prints, how it ends.

mod desk;

use desk::{Desk, parse};
use serde_json::{Value, json};

const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: a, namespace: default, uid: 11111111-1111-1111-1111-111111111111}
spec:
  type: LoadBalancer
  ports:
  - {name: http, port: 80, nodePort: 30080, protocol: TCP}
";

const NODE: &str = "\
apiVersion: v1
kind: Node
metadata: {name: n1}
status:
  addresses: [{type: InternalIP, address: 10.240.0.4}]
";

#[test]
fn several_documents_lists_folders_and_standard_input_are_read() {
    let desk = Desk::new("inputs");
    let both = format!("{SERVICE}---\n{NODE}---\n");
    desk.write("both.yaml", &both);
    let wanted = desk.json(&["-f", "both.yaml"]);
    assert_eq!(wanted["services"]["default/a"]["status"], json!({"ingress": [{"ip": "20.1.0.1"}]}));
    let service: Value = serde_norway::from_str(SERVICE).unwrap();
    let node: Value = serde_norway::from_str(NODE).unwrap();
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [service, node]});
    desk.write("list.json", &list.to_string());
    assert_eq!(desk.json(&["-f", "list.json"]), wanted);
    desk.write("folder/a.yml", SERVICE);
    desk.write("folder/b.yaml", NODE);
    desk.write("folder/notes.txt", "not: read");
    assert_eq!(desk.json(&["-f", "folder"]), wanted);
    desk.write("node.json", &node.to_string());
    desk.write("service.yaml", SERVICE);
    assert_eq!(desk.json(&["-f", "service.yaml", "node.json"]), wanted);
    assert_eq!(desk.json(&["-f", "service.yaml", "-f", "node.json"]), wanted);
    let piped = desk.run_with(&["-f", "-", "-o", "json"], &both);
    assert_eq!(parse(&piped), wanted);
    desk.write("two.json", &format!("{service}\n{node}\n"));
    assert_eq!(desk.json(&["-f", "two.json"]), wanted);
}

#[test]
fn objects_may_be_as_bare_as_metadata_and_spec() {
    let desk = Desk::new("bare");
    desk.write(
        "bare.json",
        r#"[
        {"metadata": {"name": "a", "namespace": "default", "uid": "1"},
         "spec": {"ports": [{"port": 80, "nodePort": 30080}]}},
        {"metadata": {"name": "n1"},
         "status": {"addresses": [{"type": "InternalIP", "address": "10.240.0.4"}]}}
    ]"#,
    );
    let plan = desk.json(&["-f", "bare.json"]);
    assert_eq!(plan["services"]["default/a"]["status"]["ingress"][0]["ip"], "20.1.0.1");
    let pool = &plan["resources"]["loadbalancers/kubernetes"]["properties"]["backendAddressPools"];
    let member = &pool[0]["properties"]["loadBalancerBackendAddresses"][0];
    assert_eq!(member["name"], "n1");
}

#[test]
fn steps_are_chained_with_the_state_and_end_where_they_began() {
    let desk = Desk::new("chain");
    desk.write("a.yaml", SERVICE);
    desk.write("n.yaml", NODE);
    let first = desk.json(&["-f", "a.yaml", "n.yaml"]);
    desk.write("first.json", &first.to_string());
    let again = desk.json(&["-f", "a.yaml", "n.yaml", "--state", "first.json"]);
    assert_eq!(again["changes"], json!([]));
    assert_eq!(again["resources"], first["resources"]);
    assert_eq!(again["services"]["default/a"]["events"], json!([]));
    let gone = desk.json(&["-f", "n.yaml", "--state", "first.json"]);
    let told = &gone["services"]["default/a"];
    assert_eq!(told["finalizers"], json!([]));
    assert_eq!(told["status"], json!({}));
    assert_eq!(
        told["events"],
        json!([
            "Normal DeletingLoadBalancer: Deleting load balancer",
            "Normal DeletedLoadBalancer: Deleted load balancer",
        ])
    );
    let keys: Vec<&String> = gone["resources"].as_object().unwrap().keys().collect();
    assert_eq!(keys, ["networksecuritygroups/nsg"]);
    assert_eq!(
        gone["resources"]["networksecuritygroups/nsg"]["properties"],
        json!({"securityRules": []})
    );
}

#[test]
fn a_state_may_be_cut_short() {
    let desk = Desk::new("state");
    desk.write("a.yaml", SERVICE);
    desk.write("n.yaml", NODE);
    let first = desk.json(&["-f", "a.yaml", "n.yaml"]);
    let mut cut = first["resources"].clone();
    shorten(&mut cut);
    for (key, resource) in cut.as_object_mut().unwrap() {
        let resource = resource.as_object_mut().unwrap();
        resource.remove("id");
        if !key.starts_with("loadbalancers/") {
            resource.remove("name");
        }
    }
    let address = &mut cut["publicipaddresses/kubernetes-a1111111111111111111111111111111"];
    address["properties"].as_object_mut().unwrap().remove("ipAddress");
    desk.write("cut.json", &json!({"resources": cut}).to_string());
    let again = desk.json(&["-f", "a.yaml", "n.yaml", "--state", "cut.json"]);
    assert_eq!(again["resources"], first["resources"]);
    let gone = desk.json(&["-f", "n.yaml", "--state", "cut.json"]);
    assert_eq!(gone["services"]["default/a"]["events"].as_array().unwrap().len(), 2);
}

#[test]
fn a_provider_configuration_sets_names_and_limits() {
    let desk = Desk::new("config");
    desk.write("a.yaml", SERVICE);
    desk.write(
        "config.json",
        r#"{
        "loadBalancerName": "mylb", "resourceGroup": "group", "tags": "env=test",
        "aadClientId": "x", "whatIsThis": 1
    }"#,
    );
    let output = desk.run(&["-f", "a.yaml", "--provider-config", "config.json", "-o", "json"]);
    assert_eq!(output.status.code(), Some(0));
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    let warning = "deguchi: warning: config.json: unknown key \"whatIsThis\" is ignored";
    assert!(errors.lines().any(|line| line == warning), "{errors}");
    assert!(!errors.contains("aadClientId"), "{errors}");
    let plan = parse(&output);
    let balancer = &plan["resources"]["loadbalancers/mylb"];
    assert_eq!(balancer["tags"], json!({"env": "test"}));
    assert!(balancer["id"].as_str().unwrap().contains("/resourceGroups/group/"));
    let ports: Vec<Value> = (1..=301)
        .map(|n| json!({"name": format!("p{n}"), "port": n, "nodePort": 30000 + n}))
        .collect();
    let big = json!({
        "kind": "Service", "metadata": {"name": "big", "uid": "2"},
        "spec": {"type": "LoadBalancer", "ports": ports},
    });
    desk.write("big.json", &big.to_string());
    assert_eq!(desk.run(&["-f", "big.json"]).status.code(), Some(0));
    let output = desk.run(&["-f", "big.json", "--provider-config", "config.json"]);
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn what_the_provider_refuses_at_its_start_is_one_line_and_status_two() {
    let desk = Desk::new("refused");
    desk.write("a.yaml", SERVICE);
    for (config, line) in [
        (
            r#"{"loadBalancerSku": "basic", "disableOutboundSNAT": true}"#,
            "disableOutboundSNAT should only set when loadBalancerSKU is standard",
        ),
        (
            r#"{"clusterServiceLoadBalancerHealthProbeMode": "odd"}"#,
            "clusterServiceLoadBalancerHealthProbeMode odd is not supported",
        ),
        (
            r#"{"loadBalancerBackendPoolConfigurationType": "odd"}"#,
            "loadBalancerBackendPoolConfigurationType odd is not supported",
        ),
        (
            r#"{"multipleStandardLoadBalancerConfigurations": [{"name": "kubernetes"}]}"#,
            "several standard load balancers per cluster are not supported",
        ),
        (r#"{"disableOutboundSNAT": "maybe"}"#, "neither true nor false"),
        ("[1]", "is one JSON object"),
        ("{", "config.json"),
    ] {
        desk.write("config.json", config);
        let output = desk.run(&["-f", "a.yaml", "--provider-config", "config.json"]);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{config}: {errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
        assert!(errors.contains(line), "{line}: {errors}");
        assert_eq!(output.stdout, b"");
    }
}

#[test]
fn a_refused_object_is_named_with_its_field_and_the_rest_is_planned() {
    let desk = Desk::new("objects");
    for (object, parts) in [
        (
            "kind: Service\nmetadata: {name: x, uid: '9'}\nspec: {ports: [{port: '80'}]}",
            ["Service default/x", "spec.ports[0].port", "a whole number"],
        ),
        (
            "kind: Service\nmetadata: {name: x, uid: '9', annotations: {b: true}}\nspec: {}",
            ["Service default/x", "metadata.annotations.b", "put it in quotes"],
        ),
        (
            "kind: Service\nmetadata: {name: x, uid: '9'}\nspec: {type: LoadBalancer}",
            ["Service default/x", "spec.ports", "needs a port"],
        ),
        (
            "kind: Service\nmetadata: {name: a}\nspec: {type: LoadBalancer, ports: [{port: 1}]}",
            ["Service default/a", "there twice", "remove one"],
        ),
        ("kind: Service\nmetadata: {}\nspec: {}", ["Service in", "metadata.name", "needs a name"]),
        ("metadata: {name: x}", ["x.yaml document 1", "no kind", "apiVersion and kind"]),
        (
            "kind: Node\nmetadata: {name: x}\nstatus: {addresses: 7}",
            ["Node x", "status.addresses", "integer `7`"],
        ),
        (
            "kind: PublicIPPool\nmetadata: {name: x}\nspec: {prefixes: [203.0.113.9/24]}",
            ["PublicIPPool x", "203.0.113.9/24", "write 203.0.113.0/24"],
        ),
        (
            "kind: PublicIPAddress\nmetadata: {name: x}\nspec: {ipAddress: nonsense}",
            ["PublicIPAddress x", "spec.ipAddress", "IP address"],
        ),
        (
            "kind: ClusterNetwork\nmetadata: {name: default}\nspec: {outboundType: odd}",
            ["ClusterNetwork default", "UnsupportedOutboundType", "userDefinedRouting"],
        ),
    ] {
        desk.write("x.yaml", object);
        desk.write("y.yaml", SERVICE);
        let output = desk.run(&["-f", "y.yaml", "x.yaml", "-o", "json"]);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{object}: {errors}");
        let told = |line: &&str| parts.iter().all(|part| line.contains(part));
        assert!(errors.lines().any(|line| told(&line)), "{parts:?}: {errors}");
        let events = parse(&output)["services"]["default/a"]["events"].clone();
        let last = "Normal EnsuredLoadBalancer: Ensured load balancer";
        // Without its pool there is no address to give: nobody falls back on another one. And of a
        // Service that is there twice nobody knows which is meant.
        if !object.contains("PublicIPPool") && !object.contains("name: a}") {
            assert_eq!(events.as_array().unwrap().last().unwrap(), last, "{object}");
        }
    }
}

#[test]
fn an_unreadable_service_keeps_what_it_has() {
    let desk = Desk::new("keeps");
    desk.write("a.yaml", SERVICE);
    let first = desk.json(&["-f", "a.yaml"]);
    desk.write("first.json", &first.to_string());
    desk.write("a.yaml", &SERVICE.replace("port: 80,", "port: eighty,"));
    let output = desk.run(&["-f", "a.yaml", "--state", "first.json", "-o", "json"]);
    assert_eq!(output.status.code(), Some(1));
    let plan = parse(&output);
    assert_eq!(plan["resources"], first["resources"]);
    assert_eq!(plan["changes"], json!([]));
    assert_eq!(plan["services"]["default/a"]["status"], first["services"]["default/a"]["status"]);
    let event = plan["services"]["default/a"]["events"][1].as_str().unwrap();
    assert!(event.contains("spec.ports[0].port") && event.contains("eighty"), "{event}");
}

#[test]
fn misuse_ends_with_status_two_and_one_line() {
    let desk = Desk::new("misuse");
    desk.write("a.yaml", SERVICE);
    desk.write("bad.yaml", "a: [");
    desk.write("text.yaml", "just words");
    desk.write("state.json", r#"{"services": {}}"#);
    std::fs::create_dir(desk.path("empty")).unwrap();
    for (arguments, part) in [
        (&["-f", "nowhere.yaml"][..], "nowhere.yaml"),
        (&["-f", "bad.yaml"][..], "bad.yaml: not YAML"),
        (&["-f", "text.yaml"][..], "is not an object"),
        (&["-f", "empty"][..], "has no .yaml"),
        (&["-f", "a.yaml", "--state", "nowhere.json"][..], "nowhere.json"),
        (&["-f", "a.yaml", "--state", "state.json"][..], "has no \"resources\""),
        (&["-f", "-", "-"][..], "given twice"),
    ] {
        let output = desk.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {errors}");
        assert!(errors.contains(part), "{part}: {errors}");
        assert_eq!(output.stdout, b"");
    }
    assert_eq!(desk.run(&[]).status.code(), Some(2));
    assert_eq!(desk.run(&["-f", "a.yaml", "-o", "xml"]).status.code(), Some(2));
}

#[test]
fn objects_of_other_kinds_and_groups_are_ignored_with_a_word() {
    let desk = Desk::new("kinds");
    let others = "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {name: k}\n\
                  ---\nkind: Deployment\nmetadata: {name: d}\n";
    desk.write("all.yaml", &format!("{SERVICE}---\n{others}"));
    let output = desk.run(&["-f", "all.yaml", "-o", "json"]);
    assert_eq!(output.status.code(), Some(0));
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(errors.contains("ignored: Deployment (1), Service (1)"), "{errors}");
    assert_eq!(parse(&output)["services"].as_object().unwrap().len(), 1);
}

#[test]
fn the_table_tells_addresses_listeners_and_changes() {
    let desk = Desk::new("table");
    desk.write("all.yaml", &format!("{SERVICE}---\n{NODE}"));
    let output = desk.run(&["-f", "all.yaml"]);
    let page = String::from_utf8(output.stdout).unwrap();
    for line in [
        "default/a  20.1.0.1  EnsuringLoadBalancer, EnsuredLoadBalancer",
        "Load balancer kubernetes (Standard)",
        "20.1.0.1  80/Tcp  unchanged  Tcp:30080  1      a1111111111111111111111111111111-TCP-80",
        "500       Allow   Tcp       Internet  20.1.0.1  80",
        "+ loadbalancers/kubernetes",
    ] {
        assert!(page.lines().any(|found| found == line), "{line}\n{page}");
    }
    let yaml = desk.run(&["-f", "all.yaml", "-o", "yaml"]);
    let yaml: Value = serde_norway::from_slice(&yaml.stdout).unwrap();
    assert_eq!(yaml, desk.json(&["-f", "all.yaml"]));
}

#[test]
fn help_has_an_example() {
    let output = Desk::new("help").run(&["--help"]);
    let help = String::from_utf8(output.stdout).unwrap();
    assert!(help.contains("deguchi plan -f service.yaml"), "{help}");
}

/// Cuts every id to its last two segments.
fn shorten(value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match (key.as_str(), value.as_str()) {
                    ("id", Some(id)) => {
                        let mut last: Vec<&str> = id.rsplit('/').take(2).collect();
                        last.reverse();
                        *value = json!(last.join("/"));
                    }
                    _ => shorten(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(shorten),
        _ => {}
    }
}
