//! `deguchi lab-host`: one process of a lab, started by `deguchi lab up`.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::ValueEnum;
use lab::handle::Role;
use lab::host::Host;
use lab::place::Place;

/// Be one process of a lab. `deguchi lab up` starts these.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  deguchi lab-host agent --host node1 --lab lab")]
pub struct Arguments {
    /// What to be.
    part: Part,
    /// On which host.
    #[arg(long)]
    host: Option<Host>,
    /// Of which lab.
    #[arg(long = "lab", value_name = "NAME")]
    name: String,
}

#[derive(Clone, Copy, ValueEnum)]
enum Part {
    Controller,
    Agent,
    Mux,
    Pods,
    Internet,
}

/// Runs until ended.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let place = Place::new(&arguments.name)?;
    let host = || arguments.host.context("--host is missing");
    let role = match arguments.part {
        Part::Controller => Role::Controller,
        Part::Agent | Part::Mux => Role::Machine(host()?),
        Part::Pods => Role::Pods(host()?),
        Part::Internet => Role::Internet,
    };
    lab::role::run(&place, role)?;
    Ok(ExitCode::SUCCESS)
}
