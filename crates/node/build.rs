//! Builds the kernel programs and leaves the objects in `OUT_DIR/ebpf/bpfel-unknown-none/release`.
//!
//! Rust has no ready core library for `bpfel-unknown-none` unless a distribution ships one. So
//! there are two ways: Debian's compiler, which has it, and rustup's nightly, which builds it from
//! `rust-src`. `DEGUCHI_EBPF_TOOLCHAIN=debian|nightly` chooses; otherwise the first that works.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

const TARGET: &str = "bpfel-unknown-none";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const CHOICE: &str = "DEGUCHI_EBPF_TOOLCHAIN";
const SETUP: &str = "run scripts/setup, which installs it";

fn main() {
    println!("cargo::rerun-if-env-changed={CHOICE}");
    for path in ["../ebpf", "../datapath/src", "../datapath/Cargo.toml"] {
        println!("cargo::rerun-if-changed={path}");
    }
    if let Err(problem) = build() {
        println!("cargo::error={problem}");
        std::process::exit(1);
    }
}

fn build() -> Result<(), String> {
    if !says_something("bpf-linker", &["--version"]) {
        return Err(format!("bpf-linker is not in PATH: {SETUP}"));
    }
    let mut cargo = toolchain()?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo gave no OUT_DIR")?);
    // OUT_DIR is <target>/<profile>/build/<package>/out.
    let shared = out.ancestors().nth(4).unwrap_or(&out).join("ebpf");
    // The flags of the outer build are meant for the host and would change its compiler too.
    for variable in
        ["RUSTFLAGS", "RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "CARGO_BUILD_TARGET", "RUSTDOC"]
    {
        cargo.env_remove(variable);
    }
    cargo
        .args(["build", "--release", "--package", "ebpf", "--target", TARGET])
        .args(["--manifest-path", "../ebpf/Cargo.toml"])
        // A directory of its own, since the outer cargo holds the lock of the usual one; the same
        // for every profile, so that the programs are built once.
        .arg("--target-dir")
        .arg(&shared)
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            ["-Clinker=bpf-linker", "-Clink-arg=--btf", "-Cdebuginfo=2"].join("\x1f"),
        );
    let status = cargo.status().map_err(|error| format!("cannot start cargo: {error}"))?;
    if !status.success() {
        return Err(format!("the kernel programs do not build: {status}"));
    }
    let built = shared.join(TARGET).join("release");
    let kept = out.join("ebpf").join(TARGET).join("release");
    copy_programs(&built, &kept)
        .map_err(|error| format!("cannot copy the kernel programs to {}: {error}", kept.display()))
}

/// Copies the files that cargo leaves at the top: one for each program.
fn copy_programs(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_program = !name.to_string_lossy().contains('.');
        if is_program && entry.file_type()?.is_file() {
            std::fs::copy(entry.path(), to.join(name))?;
        }
    }
    Ok(())
}

fn toolchain() -> Result<Command, String> {
    let choice = env::var(CHOICE).unwrap_or_default();
    match choice.as_str() {
        "debian" if debian_has_core() => Ok(debian()),
        "debian" => Err(format!("{DEBIAN_RUSTC} has no core for {TARGET}: {SETUP}")),
        "nightly" if nightly_has_source() => Ok(nightly()),
        "nightly" => Err(format!("rustup's nightly with rust-src is missing: {SETUP}")),
        "" if debian_has_core() => Ok(debian()),
        "" if nightly_has_source() => Ok(nightly()),
        "" => Err(format!(
            "no compiler for {TARGET}: neither Debian's with a ready core nor rustup's nightly \
             with rust-src: {SETUP}"
        )),
        _ => Err(format!("{CHOICE}={choice}: must be debian or nightly")),
    }
}

fn debian() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1");
    cargo
}

fn nightly() -> Command {
    let mut cargo = Command::new("rustup");
    cargo.args(["run", "nightly", "cargo", "-Zbuild-std=core"]);
    cargo.env_remove("RUSTC").env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO");
    cargo
}

fn debian_has_core() -> bool {
    let Some(directory) = answer(DEBIAN_RUSTC, &["--print", "target-libdir", "--target", TARGET])
    else {
        return false;
    };
    std::fs::read_dir(directory.trim()).is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
    })
}

fn nightly_has_source() -> bool {
    answer("rustup", &["run", "nightly", "rustc", "--print", "sysroot"]).is_some_and(|sysroot| {
        Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core").is_dir()
    })
}

fn says_something(program: &str, arguments: &[&str]) -> bool {
    answer(program, arguments).is_some()
}

fn answer(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
