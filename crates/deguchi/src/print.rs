//! How the binary speaks: results on standard output, everything else on standard error, exit
//! status 0 done, 1 a negative answer, 2 error or misuse.

use std::io::{ErrorKind, Write};
use std::process::ExitCode;

use anyhow::{Context, Result};
use serde::Serialize;

/// What a reading command prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs: stable field names.
    Json,
}

/// Writes a result. A reader that has seen enough and closed the pipe is no failure.
pub fn text(text: &str) -> Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        Ok(()) | Err(_) => Ok(ExitCode::SUCCESS),
    }
}

/// Writes a result as JSON.
pub fn json<T: Serialize>(value: &T) -> Result<ExitCode> {
    let mut lines = serde_json::to_string_pretty(value).context("cannot write JSON")?;
    lines.push('\n');
    text(&lines)
}

/// One line that says what failed and why.
pub fn failure(error: &anyhow::Error) -> ExitCode {
    let line = format!("{error:#}").split_whitespace().collect::<Vec<_>>().join(" ");
    eprintln!("deguchi: {line}");
    ExitCode::from(2)
}

/// Tells what long-running work is at.
pub fn progress(step: &str) {
    eprintln!("deguchi: {step}");
}
