//! Runs the system's own tools (`ip`, `nft`, `ethtool`) and turns a failure into one line that
//! names the command and what it said.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};

/// Runs a tool and returns what it printed.
pub fn run(program: &str, arguments: &[&str]) -> Result<String> {
    run_with_input(program, arguments, "")
}

/// Runs a tool with something to read.
pub fn run_with_input(program: &str, arguments: &[&str], input: &str) -> Result<String> {
    let shown = || format!("`{program} {}`", arguments.join(" "));
    let mut child = Command::new(program)
        .args(arguments)
        // Ctrl-C is for us: a tool that it ended half-way would have to be cleaned up after.
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => anyhow!(
                "`{program}` is not installed: on Debian and Ubuntu, `apt-get install {}`",
                package(program)
            ),
            _ => anyhow!(error).context(format!("cannot start {}", shown())),
        })?;
    if let Some(mut pipe) = child.stdin.take() {
        // A tool that stops reading early says why on its standard error.
        let _ = pipe.write_all(input.as_bytes());
    }
    let output =
        child.wait_with_output().with_context(|| format!("cannot wait for {}", shown()))?;
    if !output.status.success() {
        bail!("{} failed: {}", shown(), complaint(&String::from_utf8_lossy(&output.stderr), input));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs many `ip` commands at once, one a line, inside a network namespace if one is given.
pub fn ip(namespace: Option<&str>, lines: &[String]) -> Result<()> {
    let mut arguments = Vec::new();
    if let Some(namespace) = namespace {
        arguments.extend(["-n", namespace]);
    }
    arguments.extend(["-batch", "-"]);
    let mut input = lines.join("\n");
    input.push('\n');
    run_with_input("ip", &arguments, &input).map(|_| ())
}

/// What a failed tool said, with the input line that it means (`ip -batch` gives a number).
fn complaint(stderr: &str, input: &str) -> String {
    let text = stderr.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = stderr
        .lines()
        .find_map(|line| line.strip_prefix("Command failed -:"))
        .and_then(|number| number.trim().parse::<usize>().ok())
        .and_then(|number| input.lines().nth(number.checked_sub(1)?));
    match line {
        Some(line) => format!("{text} (`{line}`)"),
        None if text.is_empty() => "it said nothing".to_owned(),
        None => text,
    }
}

fn package(program: &str) -> &str {
    match program {
        "ip" => "iproute2",
        "nft" => "nftables",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_command_and_what_it_said() {
        let error = run("sh", &["-c", "echo no way >&2; exit 3"]).unwrap_err().to_string();
        assert_eq!(error, "`sh -c echo no way >&2; exit 3` failed: no way");
    }

    #[test]
    fn a_missing_tool_is_named_with_its_package() {
        let error = run("no-such-tool", &[]).unwrap_err().to_string();
        assert!(error.contains("apt-get install no-such-tool"), "{error}");
    }

    #[test]
    fn a_failed_batch_names_its_line() {
        let said = "RTNETLINK answers: File exists\nCommand failed -:2\n";
        assert_eq!(
            complaint(said, "link add a\nlink add b\n"),
            "RTNETLINK answers: File exists Command failed -:2 (`link add b`)"
        );
    }
}
