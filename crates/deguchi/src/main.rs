//! The one binary: reads the command line, runs one subcommand, turns its outcome into an exit
//! status. What a subcommand does is in the file of its name.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod counter_view;
mod echo;
mod explain;
mod file;
mod lab;
mod lab_host;
mod lab_view;
mod plan;
mod plan_read;
mod plan_table;
mod print;

/// LoadBalancer Services and explainable egress SNAT for any Kubernetes cluster on Linux.
#[derive(Parser)]
#[command(name = "deguchi", version, propagate_version = true, disable_help_subcommand = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Lab(lab::Arguments),
    Explain(explain::Arguments),
    Plan(plan::Arguments),
    Echo(echo::Arguments),
    #[command(hide = true)]
    LabHost(lab_host::Arguments),
}

fn main() -> ExitCode {
    let outcome = match CommandLine::parse().command {
        Command::Lab(arguments) => lab::run(arguments),
        Command::Explain(arguments) => explain::run(&arguments),
        Command::Plan(arguments) => plan::run(arguments),
        Command::Echo(arguments) => echo::run(arguments),
        Command::LabHost(arguments) => lab_host::run(arguments),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => print::failure(&error),
    }
}
