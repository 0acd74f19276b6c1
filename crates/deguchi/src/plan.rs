//! `deguchi plan`: shows what a set of manifests becomes, without a cluster.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use model::planner::{Change, ClusterPlan, Plan, ServicePlan, plan};
use model::resources::Resources;
use serde::Serialize;
use std::collections::BTreeMap;

use crate::{plan_read, plan_table, print};

const EXAMPLE: &str = "\
Examples:
  deguchi plan -f service.yaml -f nodes.yaml
  deguchi plan -f manifests/ -o json > before.json
  deguchi plan -f manifests/ --state before.json
  kubectl get services,nodes -A -o yaml | deguchi plan -f -

Exit status: 0 all is well, 1 an object was refused, 2 misuse or an unreadable file.";

/// Show the load balancers, public IPs and security rules that Services become.
///
/// Reads Services, Nodes, and the kinds ClusterNetwork, PublicIPPool and PublicIPAddress; other
/// kinds are ignored. Nothing is written anywhere.
#[derive(clap::Args)]
#[command(after_help = EXAMPLE)]
pub struct Arguments {
    /// Kubernetes YAML or JSON: a file, a folder (its .yaml, .yml and .json files), or - for
    /// standard input
    #[arg(short, long = "filename", value_name = "PATH", required = true, num_args = 1..)]
    filenames: Vec<PathBuf>,

    /// JSON of an earlier plan: what exists now. Services in it that are not in the input were
    /// deleted
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,

    /// Azure cloud-config (JSON) of the provider
    #[arg(long, value_name = "FILE")]
    provider_config: Option<PathBuf>,

    /// How to print the plan
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// How a plan is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    /// For people
    #[default]
    Table,
    /// For programs, and for --state
    Json,
    /// The same as YAML
    Yaml,
}

/// The plan as programs get it.
#[derive(Serialize)]
struct Document<'a> {
    resources: &'a Resources,
    services: &'a BTreeMap<String, ServicePlan>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<&'a ClusterPlan>,
    changes: &'a [Change],
}

/// Runs the command.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let read = plan_read::read(
        &arguments.filenames,
        arguments.state.as_deref(),
        arguments.provider_config.as_deref(),
    )?;
    let mut plan = plan(read.input);
    for note in read.notes.iter().chain(&plan.warnings) {
        eprintln!("deguchi: warning: {note}");
    }
    let warnings = plan
        .services
        .iter()
        .flat_map(|(key, service)| service.events.iter().map(move |event| (key, event)));
    for (key, event) in warnings {
        // A refusal is told below, with its object.
        if let Some(warning) = event.strip_prefix("Warning ")
            && !warning.starts_with("SyncLoadBalancerFailed")
        {
            eprintln!("deguchi: warning: Service {key}: {warning}");
        }
    }
    plan.refused.splice(0..0, read.refused);
    for refused in &plan.refused {
        eprintln!("deguchi: {refused}");
    }
    show(&plan, arguments.output)?;
    Ok(if plan.refused.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn show(plan: &Plan, output: Output) -> Result<ExitCode> {
    let document = Document {
        resources: &plan.resources,
        services: &plan.services,
        cluster: plan.cluster.as_ref(),
        changes: &plan.changes,
    };
    match output {
        Output::Table => print::text(&plan_table::table(plan)),
        Output::Json => print::json(&document),
        // By way of JSON, so that both have the same fields in the same order.
        Output::Yaml => print::text(&serde_norway::to_string(&serde_json::to_value(&document)?)?),
    }
}
