//! No two modules of a crate lean on each other: each can be read and changed after those that it
//! names.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter::Peekable,
    str::Chars,
};

use crate::{File, clean, tree};

/// Modules of a crate that may name each other, each circle with its reason.
const CIRCLES: &[(&str, &[&str], &str)] = &[(
    "crates/datapath",
    &["drain", "mux"],
    "the mux asks where a flow is, and that reads and notes in the mux's tables",
)];

#[test]
fn no_modules_of_a_crate_name_each_other_in_a_circle() {
    let found = circles(&tree());
    let is_known =
        |circle: &Circle| CIRCLES.iter().any(|(package, modules, _)| circle.is(package, modules));
    clean(found.iter().filter(|circle| !is_known(circle)).map(Circle::complaint).collect());
    for (package, modules, _) in CIRCLES {
        assert!(
            found.iter().any(|circle| circle.is(package, modules)),
            "{package}: {} are no circle",
            modules.join(", ")
        );
    }
}

#[test]
fn a_circle_of_modules_is_seen() {
    let seen = |a: &str, b: &str, c: &str| {
        let file = |name: &str, text: &str| File::new(&format!("crates/x/src/{name}.rs"), text);
        let tree = [
            file("lib", "mod a;\nmod b;\npub use crate::a::A;\n"),
            file("a", a),
            file("b/mod", b),
            file("b/c", c),
            File::new("crates/y/src/b.rs", "use crate::a::A;\n"),
        ];
        circles(&tree).iter().map(Circle::complaint).collect::<Vec<_>>()
    };
    assert_eq!(seen("use crate::b::B;\n", "fn b() {}\n", "use crate::a::A;\n"), [""; 0]);
    let two = ["crates/x: `a`, `b` name each other"];
    assert_eq!(seen("use crate::b::B;\n", "fn b() -> crate::a::A {\n", ""), two);
    assert_eq!(seen("use crate::{\n    b::{self, B},\n};\n", "use crate::{d, a::A};\n", ""), two);
    let three = ["crates/x: `a`, `b`, `b::c` name each other"];
    assert_eq!(seen("use crate::b;\n", "use crate::b::{B, c::C};", "use crate::a;\n"), three);
    // Neither words nor tests make one.
    assert_eq!(seen("use crate::b;\n", "// As in crate::a.\n//! [`crate::a`]\n", ""), [""; 0]);
    let test = "fn b() {}\n#[cfg(test)]\nmod tests {\n    use crate::a;\n}\n";
    assert_eq!(seen("use crate::b;\n", test, ""), [""; 0]);
}

/// Modules of a crate that name each other, be it by way of others.
struct Circle {
    package: String,
    /// In order of their names.
    modules: Vec<String>,
}

impl Circle {
    fn is(&self, package: &str, modules: &[&str]) -> bool {
        self.package == package && self.modules == modules
    }

    fn complaint(&self) -> String {
        format!("{}: `{}` name each other", self.package, self.modules.join("`, `"))
    }
}

fn circles(tree: &[File]) -> Vec<Circle> {
    let mut crates: BTreeMap<String, BTreeMap<String, &str>> = BTreeMap::new();
    for file in tree.iter().filter(|file| file.is("rs")) {
        let path = file.path.with_extension("");
        let path = path.to_string_lossy();
        let Some((package, module)) = path.split_once("/src/") else { continue };
        let module = module.trim_end_matches("/mod").replace('/', "::");
        // What stands at the top hands on what the modules have, and names them all.
        if !matches!(&*module, "lib" | "main") {
            crates.entry(package.to_owned()).or_default().insert(module, &file.text);
        }
    }
    let mut found = Vec::new();
    for (package, modules) in crates {
        let arrows: BTreeMap<&str, BTreeSet<&str>> = modules
            .iter()
            .map(|(from, text)| {
                let named = names(text);
                let targets = named.iter().filter_map(|path| owner(path, &modules));
                (from.as_str(), targets.filter(|to| to != from).collect())
            })
            .collect();
        let reached: BTreeMap<&str, BTreeSet<&str>> =
            arrows.keys().map(|from| (*from, reach(from, &arrows))).collect();
        let mut seen = BTreeSet::new();
        for (from, targets) in &reached {
            if targets.contains(from) && !seen.contains(from) {
                let circle: Vec<&str> =
                    targets.iter().copied().filter(|to| reached[to].contains(from)).collect();
                seen.extend(circle.iter().copied());
                let modules = circle.into_iter().map(str::to_owned).collect();
                found.push(Circle { package: package.clone(), modules });
            }
        }
    }
    found
}

/// All that can be come to from a module, along one arrow or more.
fn reach<'a>(from: &str, arrows: &BTreeMap<&str, BTreeSet<&'a str>>) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut open: Vec<&str> = arrows[from].iter().copied().collect();
    while let Some(to) = open.pop() {
        if reached.insert(to) {
            open.extend(&arrows[to]);
        }
    }
    reached
}

/// The module that a path within the crate leads to.
fn owner<'a>(path: &str, modules: &'a BTreeMap<String, &str>) -> Option<&'a str> {
    let mut path = path;
    loop {
        if let Some((module, _)) = modules.get_key_value(path) {
            return Some(module);
        }
        path = path.rsplit_once("::")?.0;
    }
}

/// What stands behind `crate::` in the part of a file that is no test, each path by itself.
fn names(text: &str) -> Vec<String> {
    let product = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let code: Vec<&str> =
        product.lines().map(|line| line.split("//").next().unwrap_or("")).collect();
    let code = code.join("\n");
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        spread("", &mut code[at + "crate::".len()..].chars().peekable(), &mut found);
    }
    found
}

/// Reads a path or a tree of them, as far as it goes.
fn spread(before: &str, rest: &mut Peekable<Chars<'_>>, found: &mut Vec<String>) {
    let mut path = before.to_owned();
    while rest.next_if(|sign| sign.is_whitespace()).is_some() {}
    while let Some(sign) =
        rest.next_if(|sign| sign.is_alphanumeric() || matches!(sign, '_' | ':' | '{'))
    {
        if sign != '{' {
            path.push(sign);
            continue;
        }
        // BOUND: each turn takes a sign.
        while rest.peek().is_some() {
            spread(&path, rest, found);
            if rest.next() == Some('}') {
                return;
            }
        }
        return;
    }
    found.push(path);
}
