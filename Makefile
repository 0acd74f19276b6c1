# The one list of commands. `make` alone prints it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup build lab test test-kernels lint bench fuzz mutants clean

# cargo installs bpf-linker into its own folder, and ip and nft live in sbin on Debian.
CARGO_HOME ?= $(HOME)/.cargo
export PATH := $(CARGO_HOME)/bin:$(PATH):/usr/sbin:/sbin
CARGO ?= cargo

# Network namespaces and eBPF need root. Only what needs it gets it: cargo itself runs as you, so
# that nothing under target/ belongs to root.
ifneq ($(shell id -u),0)
SUDO := $(if $(shell command -v sudo),sudo -E env PATH=$(PATH),)
# Asked in the recipe, since set-up may only just have brought rustc.
AS_ROOT = export CARGO_TARGET_$$(rustc -vV | sed -n 's/^host: //p' | tr a-z- A-Z_)_RUNNER='$(SUDO)';
NEEDS_ROOT = $(if $(SUDO),,@echo 'make $@: needs root (network namespaces, eBPF), and there is \
no sudo here: run it as root' >&2; exit 1)
endif

help: ## print this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

setup: ## install what building and testing need and this machine lacks
	@scripts/setup

build: setup ## leave the one binary in target/release/deguchi
	$(CARGO) build --release --locked --package deguchi

lab: ## set up, build, play the cases with real packets, print the table
	$(NEEDS_ROOT)
	@$(MAKE) --no-print-directory build
	$(SUDO) target/release/deguchi lab replay

test: ## set up, then run all tests: unit, property, kernel, lab
	$(NEEDS_ROOT)
	@$(MAKE) --no-print-directory setup
	$(AS_ROOT) $(CARGO) test --locked --workspace --exclude ebpf --no-fail-fast

# Needs no root: the tests are root of another machine.
test-kernels: ## boot Debian's kernels (6.1, its realtime flavour, newest) in QEMU, play tests there
	@scripts/test-kernels

lint: setup ## formatting, clippy, licences (cargo-deny) and shell scripts, each as far as installed
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --exclude ebpf --all-targets -- --deny warnings
	@if $(CARGO) deny --version >/dev/null 2>&1; then $(CARGO) deny --all-features check bans licenses sources; \
	else echo 'lint: no cargo-deny here, licences and sources not checked' >&2; fi
	@if command -v shellcheck >/dev/null; then shellcheck scripts/* .ci/run; \
	else echo 'lint: no shellcheck here, shell scripts not checked' >&2; fi

bench: setup ## measure; results as a table and as JSON under target/ (minutes, wants an idle machine)
	$(NEEDS_ROOT)
	$(CARGO) bench --locked --package model
	$(AS_ROOT) $(CARGO) bench --locked --package lab

fuzz: setup ## random packets, manifests, cloud-configs and storms, long (ITERATIONS=1000000, SEED=N)
	$(NEEDS_ROOT)
	$(AS_ROOT) ITERATIONS=$${ITERATIONS:-1000000} $(CARGO) test --locked \
		--package datapath --package lab --test fuzz --test kernel -- --nocapture random arbitrary
	PROPTEST_CASES=$$(( $${ITERATIONS:-1000000} / 100 )) $(CARGO) test --locked \
		--package model --test planner_properties
	SIM_STEPS=$$(( $${ITERATIONS:-1000000} / 200 )) $(CARGO) test --locked \
		--package model --test sim --test sim_large -- --nocapture storm

# Some mutants are the same program and some never end, which cargo-mutants calls a failure.
mutants: ## take the packet path and the leases apart, piece by piece: a test must fail (cargo-mutants)
	mkdir -p target/leases
	-$(CARGO) mutants --package datapath --no-shuffle --timeout 60 --output target \
		$(addprefix --file crates/datapath/src/,flow.rs fragment.rs icmp.rs ingress.rs egress.rs search.rs quota.rs) \
		--cargo-arg=--locked $(addprefix --cargo-arg=--test=,cases ports rfc)
	-PROPTEST_CASES=32 $(CARGO) mutants --package model --no-shuffle --timeout 60 \
		--output target/leases --cargo-arg=--locked \
		$(addprefix --file crates/model/src/,lease.rs ports.rs allocation.rs) \
		$(addprefix --cargo-arg=--test=,leases leases_properties rfc)

clean: ## remove what was built
	$(CARGO) clean
