# Duet. `make help` lists the targets.
#
# One target folder outside the checkout serves every clone, so that RocksDB is compiled once a machine.
# CARGO_TARGET_DIR=… make … puts it elsewhere.
CARGO_TARGET_DIR ?= $(HOME)/.cache/duet/target
export CARGO_TARGET_DIR
# Compiler caching where it is installed: RocksDB is most of a first build.
ifneq ($(wildcard /usr/lib/ccache/cc),)
export PATH := /usr/lib/ccache:$(PATH)
endif

BIN := $(CARGO_TARGET_DIR)/debug
SEEDS ?= 200
FROM ?= 0
DIR ?= $(CURDIR)/.playground
BENCH ?= $(CARGO_TARGET_DIR)/bench
TRAIN := $(CARGO_TARGET_DIR)/train

# How releases are compiled: by a profile of what runs (specs/performance.md; PROFILE= leaves it out), and on x86 with checksums
# in hardware. Whatever is built for release must be built alike, or all of it is built again. The code of duetd is then laid
# out by a profile of its own, where BOLT is installed (LAYOUT= leaves it out).
PROFILE ?= packaging/profile/duet.profdata.gz
X86 := $(filter x86_64,$(shell uname -m))
BOLT ?= $(lastword $(wildcard /usr/lib/llvm-*/bin/llvm-bolt))
LAYOUT ?= $(if $(and $(X86),$(BOLT)),packaging/profile/duetd.yaml.gz)
HARDWARE := $(if $(X86),-msse4.2 -mpclmul)
ifneq ($(PROFILE),)
# Named by what is in it, and written once: whenever it is newer, cargo compiles everything anew.
PROFDATA := $(CARGO_TARGET_DIR)/profile/$(shell cksum <$(PROFILE) | cut -d' ' -f1).profdata
BY_PROFILE := -Cprofile-use=$(PROFDATA) -Cllvm-args=-pgo-warn-missing-function=false -Cllvm-args=-no-pgo-warn-mismatch
endif
# Names of functions have no dots in them: BOLT takes what is called x.warm.y for a part of x.
NAMES := -Csymbol-mangling-version=v0
TUNED = DUET_RELOCS=$(if $(LAYOUT),duet-node) CXXFLAGS="$(strip $(CXXFLAGS) $(HARDWARE))" RUSTFLAGS="$(strip $(RUSTFLAGS) $(NAMES) $(if $(HARDWARE),--cfg duet_sse42) $(1))" cargo build --release
RELEASE = $(call TUNED,$(BY_PROFILE))
DUETD := $(CARGO_TARGET_DIR)/release/duetd
DUET := $(CARGO_TARGET_DIR)/release/duet
LAY := BOLT=$(BOLT) packaging/profile/layout

.DEFAULT_GOAL := help
.PHONY: help deps build release linked profile layout demo playground test check fix man deb deb-test run-tests sim model figures bench-switch bench-build bench-etcd bench-redis bench-scale bench-floor soak clean-playground

help: ## lists the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

deps: ## installs, or names, what the build needs beside Rust, a C compiler and make
	@sh packaging/deps

build: deps ## builds duetd and duet
	cargo build --workspace --bins

release: linked ## builds duetd and duet for use (compiles RocksDB once more)
	@$(if $(LAYOUT),$(LAY) apply $(DUETD) $(LAYOUT),echo "the code of duetd lies as it was compiled: no BOLT (apt-get install bolt-19), or LAYOUT=")

linked: deps $(PROFDATA)
ifneq ($(PROFILE),)
	@[ "$$(rustc --version)" = "$$(cat $(dir $(PROFILE))rustc)" ] || \
	 echo "the profile is of $$(cat $(dir $(PROFILE))rustc), which names functions otherwise than this one: make profile"
endif
	$(RELEASE) -p duet-node -p duet-cli

ifneq ($(PROFILE),)
$(PROFDATA):
	@mkdir -p $(@D)
	gzip -dc $(PROFILE) >$@.part && mv $@.part $@
endif

# Build scripts and macros leave counts, too: nobody wants those.
profile: deps ## takes anew the profiles by which releases are built (compiles everything twice; wants llvm-profdata)
	rm -rf $(TRAIN)/raw
	CARGO_TARGET_DIR=$(TRAIN) LLVM_PROFILE_FILE=$(TRAIN)/build/%m.profraw $(call TUNED,-Cprofile-generate=$(TRAIN)/raw) -p duet-node -p duet-cli
	packaging/profile/train $(TRAIN)/release
	packaging/profile/counts $(TRAIN)/raw packaging/profile
	$(if $(LAYOUT),$(MAKE) layout)

layout: linked ## takes anew only the one by which the code of duetd is laid out (wants BOLT)
	rm -rf $(TRAIN)/layout
	$(LAY) count $(DUETD) $(TRAIN)/layout/bin/duetd $(TRAIN)/layout/raw
	cp $(DUET) $(TRAIN)/layout/bin
	packaging/profile/train $(TRAIN)/layout/bin
	$(LAY) keep $(DUETD) $(TRAIN)/layout/raw $(LAYOUT)

demo: build ## both modes on three nodes: a leader killed, a partition, modes switched under load, nothing lost
	$(BIN)/duet demo --data data/UnicodeData.txt

playground: build ## a three-node cluster on this machine, until Ctrl-C (DIR=…)
	$(BIN)/duet playground --dir $(DIR)

check: deps ## formatting, lints, documentation, licences; writes nothing into the checkout
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features -- -D warnings
	cargo clippy -p duet-node -p duet-cli -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items
	@if cargo deny --version >/dev/null 2>&1; then cargo deny check bans licenses sources; \
	 else echo "cargo-deny is not installed: licences and sources are not checked"; fi
	@if command -v promtool >/dev/null 2>&1; then cd packaging/prometheus && promtool check rules duet.rules.yml && promtool test rules duet.rules.test.yml; \
	 else echo "promtool is not installed: the alerts are not tested"; fi
	@if command -v nix-instantiate >/dev/null 2>&1; then nix-instantiate --parse flake.nix packaging/module.nix >/dev/null && echo "the flake parses"; \
	 else echo "nix-instantiate is not installed: the flake is not parsed"; fi

fix: ## formats, and applies what clippy can mend by itself
	cargo fmt --all
	cargo clippy --workspace --all-targets --all-features --fix --allow-dirty --allow-staged

test: check run-tests ## everything that must pass (what .ci/run calls)

# Builds the binaries, too, with what tests need in them.
run-tests: deps
	@if cargo nextest --version >/dev/null 2>&1; then \
	   DUET_BIN_DIR=$(BIN) cargo nextest run --workspace --all-features --no-fail-fast; \
	 else DUET_BIN_DIR=$(BIN) cargo test --workspace --all-features --lib --bins --tests; fi
	DUET_BIN_DIR=$(BIN) cargo test --workspace --all-features --doc

sim: deps ## the simulation over any number of seeds: SEEDS=1000 FROM=0
	DUET_SIM_SEEDS=$(SEEDS) DUET_SIM_FROM=$(FROM) cargo test -p duet-tests --all-features --test simulation --test eventual_simulation --test switch_simulation -- --nocapture

model: ## explores the models of the mode switch exhaustively (several minutes)
	cargo run -p duet-model

soak: deps ## long forms of what CI runs briefly: both simulations, the model of anti-entropy, its cost among a million records
	$(MAKE) sim SEEDS=2000
	DUET_EVENTUAL_SEEDS=5000 cargo test -p duet-engine-eventual --all-features --test model -- --include-ignored

man: deps ## the manual pages and completions, into the target folder (pages/)
	cargo run -q -p duet-package -- $(CARGO_TARGET_DIR)/pages

# Binutils' strip breaks what BOLT has laid out; that has no debug information any more.
PACKED := $(CARGO_TARGET_DIR)/release/packed
deb: release ## a Debian package, into the target folder (debian/); wants cargo-deb
	rm -rf $(CARGO_TARGET_DIR)/release/pages
	cargo run -q -p duet-package -- $(CARGO_TARGET_DIR)/release/pages
	gzip -9n $(CARGO_TARGET_DIR)/release/pages/man*/*
	@cargo deb --version >/dev/null 2>&1 || { echo "cargo-deb is not installed: cargo install cargo-deb --locked" >&2; exit 1; }
	mkdir -p $(PACKED) && cp $(DUETD) $(DUET) $(PACKED)
	strip -g $(PACKED)/duet $(if $(LAYOUT),,$(PACKED)/duetd)
	cargo deb --no-build --no-strip -p duet-package -o $(CARGO_TARGET_DIR)/debian/

deb-test: deb ## installs, runs, upgrades, removes and purges the package in a container of its own; wants root
	packaging/install-test "$$(ls -t $(CARGO_TARGET_DIR)/debian/duet_*.deb | head -n 1)"

figures: build ## measures what the README claims (several minutes)
	DUET_BIN_DIR=$(BIN) cargo run -p duet-tests --all-features --bin figures

bench-switch: release ## for how long clients wait at a switch, by size and divergence: BENCH=folder, SHORT=1 for a quick look
	DUET_BIN_DIR=$(CARGO_TARGET_DIR)/release cargo run -p duet-tests --all-features --bin bench-switch -- $(BENCH) $(if $(SHORT),short)

# What is measured and what measures are built apart: together they would share features of tokio that only tests need.
bench-build: release
	$(RELEASE) -p duet-bench --features peers --bins

# ROUNDS=5 SECONDS=5 of each measurement, CONNECTIONS=1 of Duet's clients, RECORDS=10000000 of bench-scale, SHORT=1 for a
# quick look.
# The load shares the machine with what it measures: one thread of it, whoever is measured.
BESIDE = TOKIO_WORKER_THREADS=1 DUET_BIN_DIR=$(CARGO_TARGET_DIR)/release
ASKED = $(BENCH) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SECONDS),--seconds $(SECONDS)) \
        $(if $(CONNECTIONS),--connections $(CONNECTIONS)) $(if $(RECORDS),--records $(RECORDS)) $(if $(SHORT),--short)

bench-etcd: bench-build ## the same load before Duet and etcd, in turns: ROUNDS=5 SECONDS=5, BENCH=folder, SHORT=1
	$(BESIDE) $(CARGO_TARGET_DIR)/release/bench-etcd $(ASKED)

bench-redis: bench-build ## the same before Duet and redis, plain and over TLS
	$(BESIDE) $(CARGO_TARGET_DIR)/release/bench-redis $(ASKED)

bench-scale: bench-build ## ten million records beside a hundred thousand, a hundred namespaces beside one: RECORDS=10000000
	$(BESIDE) $(CARGO_TARGET_DIR)/release/bench-scale $(ASKED)

bench-floor: bench-build ## what one client's request costs this machine in messages and syncs alone: BENCH=folder
	$(CARGO_TARGET_DIR)/release/bench-floor $(BENCH)

clean-playground: ## removes the playground's directory
	rm -rf $(DIR)
