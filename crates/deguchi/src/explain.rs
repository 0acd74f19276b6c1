//! `deguchi explain`: by which address a pod leaves, why, and what would change that.

use std::fmt::Write;
use std::net::Ipv4Addr;
use std::process::ExitCode;

use anyhow::{Context, Result};
use lab::view;
use model::cluster::Quotas;
use model::explain::{ExplainError, Explanation, Question};
use model::lease::LeaseState;
use model::method::{Method, Protocol};
use model::nearest::nearest;
use node::inspect::AgentView;
use node::maps::FlowRoom;
use serde::Serialize;

use crate::{lab as lab_command, print};

/// Tell by which address a pod leaves, why, by which ports, and how answers come back.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  deguchi explain pod1-1\n  \
    deguchi explain pod1-1 --to 198.51.100.2:443 --protocol tcp -o json")]
pub struct Arguments {
    #[command(flatten)]
    which: lab_command::Which,
    /// A pod, as name or namespace/name; or a node.
    pod: String,
    /// Destination; without one, the Internet at large.
    #[arg(long, value_name = "IP[:PORT]")]
    to: Option<Destination>,
    /// tcp, udp or icmp.
    #[arg(long, default_value = "tcp", value_name = "PROTOCOL")]
    protocol: Protocol,
    /// How to print it.
    #[arg(long, short, value_enum, default_value_t)]
    output: print::Output,
}

/// An address, with or without a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Destination {
    address: Ipv4Addr,
    port: Option<u16>,
}

impl std::str::FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, port) = match text.split_once(':') {
            Some((address, port)) => (address, Some(port)),
            None => (text, None),
        };
        let wrong = || format!("{text:?} is not an IPv4 address with or without :PORT");
        let port = port.map(str::parse).transpose().map_err(|_| wrong())?;
        Ok(Destination { address: address.parse().map_err(|_| wrong())?, port })
    }
}

/// Answers from the lab's objects and the node's own tables.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let lab = arguments.which.find()?;
    let objects = view::snapshot(&lab.store())?;
    let to = arguments.to;
    let mut question = Question {
        source: arguments.pod.clone(),
        destination: to.map(|to| to.address),
        port: to.and_then(|to| to.port),
        protocol: arguments.protocol,
        ports_in_use: None,
    };
    let explanation =
        model::explain::explain(&objects, &question).map_err(|error| suggest(error, &objects))?;
    if let Some(destination) = to {
        let (address, port) = (destination.address, destination.port);
        let node = lab.host(&explanation.node)?;
        if explanation.method.translates() {
            lab::life::require_root("explain --to")?;
            let used = lab::in_use::ports(&lab.place, node, address, port, arguments.protocol)?;
            question.ports_in_use = Some(used);
        }
    }
    let explanation = model::explain::explain(&objects, &question)
        .context("the cluster changed while it was looked at")?;
    let answer = Answer { flow_table: flow_table(&lab, &explanation.node)?, explanation };
    match arguments.output {
        print::Output::Json => print::json(&answer),
        print::Output::Text => print::text(&told(&answer.explanation, answer.flow_table)),
    }
}

/// An explanation, and what only the node itself knows.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    #[serde(flatten)]
    explanation: Explanation,
    #[serde(skip_serializing_if = "Option::is_none")]
    flow_table: Option<FlowRoom>,
}

/// How many flows the node has room for. Without root nobody may look, and a node without an agent
/// has none.
fn flow_table(lab: &lab::handle::Lab, node: &str) -> Result<Option<FlowRoom>> {
    let Ok(agent) = AgentView::open(lab.place.name(), node) else { return Ok(None) };
    Ok(Some(agent.flow_room()?))
}

fn suggest(error: ExplainError, objects: &model::objects::Objects) -> anyhow::Error {
    let ExplainError::NotFound(name) = &error else { return error.into() };
    let pods = objects.pods.values().map(|pod| pod.metadata.name.as_str());
    let known = pods.chain(objects.nodes.keys().map(String::as_str));
    match nearest(name, known) {
        Some(near) => anyhow::anyhow!("{error}: did you mean {near}?"),
        None => error.into(),
    }
}

/// An explanation as lines of a label and a value.
#[derive(Default)]
struct Page(String);

impl Page {
    fn line(&mut self, label: &str, value: &str) {
        let _ = writeln!(self.0, "{}", format!("{label:<14}{value}").trim_end());
    }
}

fn told(explanation: &Explanation, flow_table: Option<FlowRoom>) -> String {
    let mut page = Page::default();
    tell_way(explanation, &mut page);
    if explanation.method.translates() {
        tell_ports(explanation, flow_table, &mut page);
    }
    page.line("Because", "");
    for (number, step) in explanation.why.iter().enumerate() {
        let answer = if step.answer { "yes" } else { "no" };
        let value = format!("{} {answer}: {}", step.question, step.found);
        page.line(&format!("  {}.", number + 1), &value);
    }
    if let Some(back) = &explanation.return_path {
        let muxes: Vec<&str> = back.muxes.iter().map(|mux| mux.name.as_str()).collect();
        let node = back.node_address.map_or_else(String::new, |address| format!(" ({address})"));
        let way = format!("router, {}, {}{node}", muxes.join(" or "), explanation.node);
        page.line("Answers by", &way);
        for entry in &back.entries {
            page.line("", entry);
        }
    }
    for change in &explanation.would_change {
        page.line("Changes with", change);
    }
    for pending in &explanation.pending {
        page.line("Pending", pending);
    }
    page.0
}

/// From where to where, by what, and as whom.
fn tell_way(explanation: &Explanation, page: &mut Page) {
    let source = match explanation.source_address {
        Some(address) => format!("{} ({address})", explanation.source),
        None => explanation.source.clone(),
    };
    page.line("From", &format!("{source} on {}", explanation.node));
    page.line("To", &format!("{} over {}", destination(explanation), explanation.protocol));
    let method = match &explanation.via {
        Some(via) => format!("{}: {via}", explanation.method),
        None => explanation.method.to_string(),
    };
    page.line("Leaves by", &method);
    match explanation.address {
        Some(address) => page.line("Seen as", &address.to_string()),
        None if explanation.method.translates() => page.line("Seen as", "no address yet"),
        None if explanation.method == Method::None => {
            page.line("Seen as", "nobody: there is no way out, packets are dropped");
        }
        None => page.line("Seen as", "not ours to say: nothing is translated here"),
    }
    for frontend in &explanation.frontends {
        page.line("", &format!("{} ({})", frontend.address, frontend.name));
    }
}

/// What translation has to spend.
fn tell_ports(explanation: &Explanation, flow_table: Option<FlowRoom>, page: &mut Page) {
    let used = explanation.ports_in_use.map_or_else(String::new, |used| {
        format!(", {used} in use towards {}", destination(explanation))
    });
    page.line("Ports", &format!("{} usable{used}", explanation.ports_usable));
    for range in &explanation.ports {
        let state = match range.state {
            LeaseState::Usable => "",
            _ => " (not for new connections)",
        };
        page.line("", &format!("{}:{}-{}{state}", range.address, range.first, range.last));
    }
    page.line("Idle", &format!("{} minutes", explanation.idle_timeout_in_minutes));
    if let Some(quotas) = explanation.quotas {
        page.line("Quota", &limits(quotas));
    }
    if let Some(room) = flow_table {
        page.line("Flow table", &room.to_string());
    }
}

fn destination(explanation: &Explanation) -> &str {
    explanation.destination.as_deref().unwrap_or("the Internet")
}

fn limits(quotas: Quotas) -> String {
    let pod = match quotas.flows_per_pod {
        Some(limit) => format!("{limit} flows of the pod"),
        None => "half of the flow table for the pod".into(),
    };
    let namespace = quotas
        .flows_per_namespace
        .map_or_else(String::new, |limit| format!(", {limit} flows of its namespace"));
    format!("{pod}{namespace} on the node at a time")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_an_address_with_or_without_a_port() {
        let address = Ipv4Addr::new(198, 51, 100, 2);
        assert_eq!("198.51.100.2".parse(), Ok(Destination { address, port: None }));
        assert_eq!("198.51.100.2:443".parse(), Ok(Destination { address, port: Some(443) }));
        for wrong in ["", "host:80", "198.51.100.2:", "198.51.100.2:99999", "::1"] {
            assert!(wrong.parse::<Destination>().is_err(), "{wrong}");
        }
    }
}
