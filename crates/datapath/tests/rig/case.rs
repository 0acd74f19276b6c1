//! Case files: tables, packets in, what is to be seen, packets out. `tests/cases/README.md` is
//! their grammar.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use datapath::Drop;

use super::{Hook, Machine, Observed, Way, frame, second, tables::Tables};

/// What one run of a case reached.
pub type Reached = BTreeSet<&'static str>;

/// Where the case files are, seen from any crate of the workspace.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../datapath/tests/cases")
}

/// All case files, in order.
pub fn files() -> Vec<PathBuf> {
    let mut files = Vec::new();
    for hook in ["egress", "ingress", "mux"] {
        let folder = folder().join(hook);
        let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
        files.extend(entries.map(|entry| entry.expect("a readable entry").path()));
    }
    files.sort();
    assert!(files.len() > 10, "the case files are gone");
    files
}

/// Plays one case file on a machine. With `rewrite`, what is said of verdicts is taken from the
/// machine instead of compared.
pub fn play(path: &Path, machine: &mut dyn Machine, rewrite: bool) -> Result<Reached, String> {
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    if !text.starts_with("# ") {
        return Err("line 1: the first line must say what the case shows".into());
    }
    let mut player = Player {
        machine,
        tables: Tables::default(),
        words: BTreeMap::new(),
        bound: BTreeMap::new(),
        reached: Reached::new(),
        is_started: false,
    };
    let lines: Vec<&str> = text.lines().collect();
    let mut said = Vec::new();
    let mut at = 0;
    while at < lines.len() {
        let step = player.line(&lines, &mut at, rewrite);
        said.extend(step.map_err(|problem| format!("line {}: {problem}", at + 1))?);
        at += 1;
    }
    if rewrite {
        let mut lines: Vec<String> = lines.into_iter().map(Into::into).collect();
        for (at, text) in said {
            lines[at] = text;
        }
        fs::write(path, lines.join("\n") + "\n").map_err(|error| error.to_string())?;
    }
    Ok(player.reached)
}

struct Player<'a> {
    machine: &'a mut dyn Machine,
    tables: Tables,
    /// Words that stand for others, from `let`.
    words: BTreeMap<String, String>,
    /// Numbers that earlier packets showed.
    bound: BTreeMap<String, u64>,
    reached: Reached,
    is_started: bool,
}

impl Player<'_> {
    /// Plays the line at `at` and those that belong to it; lines to be rewritten come back.
    fn line(
        &mut self,
        lines: &[&str],
        at: &mut usize,
        rewrite: bool,
    ) -> Result<Vec<(usize, String)>, String> {
        let line = lines[*at].trim();
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "" | "#" => {}
            "use" => {
                let path = folder().join("tables").join(format!("{rest}.txt"));
                let text = fs::read_to_string(&path).map_err(|error| format!("{rest}: {error}"))?;
                let lines: Vec<&str> = text.lines().collect();
                for at in 0..lines.len() {
                    self.line(&lines, &mut { at }, false)
                        .map_err(|problem| format!("{rest}, line {}: {problem}", at + 1))?;
                }
            }
            "let" => {
                let (name, value) = rest.split_once(' ').ok_or("let wants a name and a value")?;
                self.words.insert(format!("${name}"), value.into());
            }
            "wait" => {
                self.start();
                self.machine.wait(rest.parse().map_err(|_| "wait wants seconds")?);
            }
            "flows" => {
                let wanted: usize = rest.parse().map_err(|_| "flows wants a number")?;
                self.start();
                let flows = self.machine.flows();
                if flows.len() != wanted {
                    return Err(format!("{} flow entries, not {wanted}: {flows:#?}", flows.len()));
                }
            }
            "egress" | "own" | "ingress" | "mux"
                if rest.is_empty() || rest.starts_with("times ") =>
            {
                let hook = match word {
                    "egress" => Hook::Egress,
                    "own" => Hook::Own,
                    "ingress" => Hook::Ingress,
                    _ => Hook::Mux,
                };
                let times = rest.strip_prefix("times ").unwrap_or("1");
                let times: u64 = times.parse().map_err(|_| "times wants a number")?;
                return self.step(hook, times, lines, at, rewrite);
            }
            _ => {
                if self.is_started {
                    return Err(format!("{word}: tables are written before the first packet"));
                }
                if !self.tables.line(&self.plain(line))? {
                    return Err(format!("{word}: neither a table nor a step"));
                }
            }
        }
        Ok(Vec::new())
    }

    fn start(&mut self) {
        if !self.is_started {
            self.machine.start(&self.tables);
            self.is_started = true;
        }
    }

    /// Plays a step: `in`, `say`, and `out` where the packet is changed.
    fn step(
        &mut self,
        hook: Hook,
        times: u64,
        lines: &[&str],
        at: &mut usize,
        rewrite: bool,
    ) -> Result<Vec<(usize, String)>, String> {
        self.start();
        let (mut given, mut say, mut out) = (None, None, None);
        while let Some(line) = lines.get(*at + 1).filter(|line| line.starts_with("  ")) {
            *at += 1;
            let (word, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
            match word {
                "in" => given = Some(rest),
                "say" => say = Some((*at, rest)),
                "out" => out = Some(rest),
                other => return Err(format!("{other}: not one of in, say, out")),
            }
        }
        let given = given.ok_or("a step wants a packet")?;
        let (say_at, say) = say.ok_or("a step wants what is to be said of it")?;
        let mut said = Vec::new();
        for turn in 0..times {
            self.bound.insert("i".into(), turn);
            let packet = frame::build(&self.numbers(&self.plain(given))?)
                .map_err(|problem| format!("in: {problem}"))?;
            if !self.machine.takes(hook, &packet) {
                continue;
            }
            let observed = self.machine.pass(hook, &packet);
            self.reached.extend(observed.counted.iter().map(|(name, _)| *name));
            let saying = saying(&observed);
            if rewrite {
                said = vec![(say_at, format!("  say {saying}"))];
            } else if !agrees(&saying, say) {
                return Err(format!(
                    "turn {turn} of {given}\n  says {saying}\n  not  {say}\n{}",
                    observed.frame.as_deref().map(frame::dump).unwrap_or_default()
                ));
            }
            self.compare(out, &packet, &observed)
                .map_err(|problem| format!("turn {turn} of {given}\n{problem}"))?;
        }
        Ok(said)
    }

    /// Compares what came out with what should, which another library builds.
    fn compare(
        &mut self,
        out: Option<&str>,
        given: &[u8],
        observed: &Observed,
    ) -> Result<(), String> {
        let Some(found) = &observed.frame else {
            return out.map_or(Ok(()), |out| Err(format!("no packet came out; expected: {out}")));
        };
        let Some(out) = out else {
            return if found == given {
                Ok(())
            } else {
                Err(format!("changed, and no out line says how:\n{}", frame::dump(found)))
            };
        };
        second::check(found).map_err(|problem| format!("{problem}:\n{}", frame::dump(found)))?;
        let out = self.plain(out);
        let (mut nearest, mut distance) = (Vec::new(), usize::MAX);
        for (name, value) in candidates(&out, found)? {
            let text = out.clone();
            let text = match &name {
                Some(name) => {
                    self.bound.insert(name.clone(), value);
                    replace_range(&text, value)
                }
                None => text,
            };
            let expected =
                frame::build(&self.numbers(&text)?).map_err(|problem| format!("out: {problem}"))?;
            if &expected == found {
                return Ok(());
            }
            let differing = expected.iter().zip(found).filter(|(one, other)| one != other).count()
                + expected.len().abs_diff(found.len());
            if differing < distance {
                (nearest, distance) = (expected, differing);
            }
        }
        Err(format!("expected {out}\n{}found\n{}", frame::dump(&nearest), frame::dump(found)))
    }

    /// Puts in what `let` words stand for.
    fn plain(&self, line: &str) -> String {
        let words = line.split_ascii_whitespace();
        let words = words.map(|word| self.words.get(word).map_or(word, String::as_str));
        words.collect::<Vec<_>>().join(" ")
    }

    /// Puts numbers in place of `{name}` and `{name+number}`.
    fn numbers(&self, line: &str) -> Result<String, String> {
        let mut text = String::new();
        let mut rest = line;
        while let Some((before, after)) = rest.split_once('{') {
            let (inside, behind) = after.split_once('}').ok_or("{ without }")?;
            let mut sum = 0;
            for part in inside.split('+') {
                sum += match part.parse::<u64>() {
                    Ok(number) => number,
                    Err(_) => *self.bound.get(part).ok_or(format!("{part} is not known yet"))?,
                };
            }
            text += before;
            text += &sum.to_string();
            rest = behind;
        }
        Ok(text + rest)
    }
}

/// What an out line leaves open: `{name:low-high}` binds the number that fits. Only numbers that
/// stand somewhere in the packet can fit; the lowest is tried too, so that there is one to show.
fn candidates(line: &str, found: &[u8]) -> Result<Vec<(Option<String>, u64)>, String> {
    let Some((name, low, high)) = range(line)? else { return Ok(vec![(None, 0)]) };
    let numbers = found.windows(2).map(|two| u64::from(u16::from_be_bytes([two[0], two[1]])));
    let fitting: BTreeSet<u64> = numbers.filter(|number| (low..=high).contains(number)).collect();
    let all = fitting.into_iter().chain([low]);
    Ok(all.map(|value| (Some(name.clone()), value)).collect())
}

fn range(line: &str) -> Result<Option<(String, u64, u64)>, String> {
    let inside = line.split('{').skip(1).filter_map(|part| part.split_once('}'));
    let mut ranges = inside.filter_map(|(inside, _)| inside.split_once(':'));
    let Some((name, bounds)) = ranges.next() else { return Ok(None) };
    if ranges.next().is_some() {
        return Err("one open number a line is enough".into());
    }
    let wrong = || format!("{bounds}: not a range");
    let (low, high) = bounds.split_once('-').ok_or_else(wrong)?;
    let number = |text: &str| text.parse().map_err(|_| wrong());
    Ok(Some((name.into(), number(low)?, number(high)?)))
}

/// The line with its open number filled in.
fn replace_range(line: &str, value: u64) -> String {
    let mut text = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once('{') {
        let (inside, behind) = after.split_once('}').unwrap_or((after, ""));
        let number = if inside.contains(':') { value.to_string() } else { format!("{{{inside}}}") };
        text = text + before + &number;
        rest = behind;
    }
    text + rest
}

/// Whether what is said is what should be; `name*` stands for any number of that counter, none
/// among them.
fn agrees(saying: &str, say: &str) -> bool {
    let any: Vec<&str> = say.split(' ').filter_map(|word| word.strip_suffix('*')).collect();
    let wanted = say.split(' ').filter(|word| !word.ends_with('*'));
    let found = saying.split(' ');
    wanted.eq(found.filter(|word| !any.contains(&word.split('*').next().unwrap_or_default())))
}

/// The name of the reason with this number.
fn reason(number: u8) -> Option<&'static str> {
    Drop::ALL.get(usize::from(number)).map(|reason| reason.name())
}

/// What there is to say of a packet.
fn saying(observed: &Observed) -> String {
    let mut words = vec![
        match observed.way {
            Way::On => "on",
            Way::Dropped => "dropped",
            Way::Back => "back",
        }
        .to_owned(),
    ];
    for (name, times) in &observed.counted {
        words.push(if *times == 1 { (*name).into() } else { format!("{name}*{times}") });
    }
    if let Some(notice) = &observed.notice {
        words.push(format!("notice:{}", notice.policy));
        // What the sender is told depends on it; the counter says it in words.
        assert!(observed.counted.iter().any(|(name, _)| reason(notice.reason) == Some(*name)));
    }
    words.join(" ")
}
