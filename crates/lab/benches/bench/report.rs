//! Results as tables on standard output and as JSON under `target/bench/`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::measure::{Machine, Spread};

/// Rows under headings, printed in columns.
pub struct Table {
    headings: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub fn new(headings: &[&str]) -> Table {
        Table { headings: headings.iter().map(ToString::to_string).collect(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    /// Prints it: the first column to the left, the others to the right.
    pub fn print(&self, title: &str) {
        println!("\n{title}");
        let all = || std::iter::once(&self.headings).chain(&self.rows);
        let widths: Vec<usize> = (0..self.headings.len())
            .map(|column| all().map(|row| row[column].chars().count()).max().unwrap_or(0))
            .collect();
        for row in all() {
            let mut line = format!("  {:<width$}", row[0], width = widths[0]);
            for (cell, width) in row.iter().zip(&widths).skip(1) {
                line.push_str(&format!("  {cell:>width$}"));
            }
            println!("{}", line.trim_end());
        }
    }
}

/// Least, middle and most, in one cell.
pub fn three(spread: &Spread) -> String {
    let places = if spread.median < 100.0 { 1 } else { 0 };
    format!("{:.places$} / {:.places$} / {:.places$}", spread.min, spread.median, spread.max)
}

/// A number in a cell.
pub fn one(value: f64) -> String {
    if value.abs() < 10.0 { format!("{value:.2}") } else { format!("{value:.1}") }
}

/// What a result should be at most.
#[derive(Clone, Debug, Serialize)]
pub struct Target {
    /// What is compared with what.
    pub name: String,
    /// The median of the ratios of each round.
    pub value: f64,
    /// What it must not exceed.
    pub must: f64,
    /// What it should not exceed.
    pub aim: f64,
    /// `aim`, `must` or `missed`.
    pub verdict: &'static str,
}

impl Target {
    /// A target and how the result stands to it.
    pub fn new(name: impl Into<String>, value: f64, must: f64, aim: f64) -> Target {
        let verdict = match value {
            value if value <= aim => "aim",
            value if value <= must => "must",
            _ => "missed",
        };
        Target { name: name.into(), value, must, aim, verdict }
    }
}

/// Prints how the results stand to their targets.
pub fn print_targets(targets: &[Target]) {
    let mut table = Table::new(&["ratio", "value", "must", "aim", ""]);
    for target in targets {
        let words = match target.verdict {
            "aim" => "pass, as aimed at".into(),
            "must" => {
                format!("pass, {:.0} % above the aim", (target.value / target.aim - 1.0) * 100.0)
            }
            _ => format!("MISSED by {:.0} %", (target.value / target.must - 1.0) * 100.0),
        };
        let [value, must, aim] = [target.value, target.must, target.aim].map(|v| format!("{v:.2}"));
        table.row([target.name.clone(), value, must, aim, words]);
    }
    table.print("Targets (medians of ratios taken in the same round; at most)");
}

/// One bench's results as they are written.
#[derive(Serialize)]
struct Document<'a, T> {
    machine: &'a Machine,
    #[serde(flatten)]
    results: &'a T,
}

/// Writes results to `target/bench/NAME.json`.
pub fn write<T: Serialize>(name: &str, machine: &Machine, results: &T) -> Result<()> {
    let directory = directory()?;
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let path = directory.join(format!("{name}.json"));
    let mut text = serde_json::to_string_pretty(&Document { machine, results })?;
    text.push('\n');
    fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    println!("\n  written to {}", path.display());
    Ok(())
}

/// `bench` beside the build profiles: this program lies in `target/PROFILE/deps`.
fn directory() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let target = own.ancestors().nth(3).context("this program lies in no target directory")?;
    Ok(target.join("bench"))
}
