# The only door. `make help` lists what there is.
SHELL := /bin/bash
JOBS ?= $(shell nproc)
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo -E)
.DEFAULT_GOAL := help
.PHONY: help deps build asan test demo lint tidy format sim fuzz fuzz-api bench sbom reproduce docs clean lab lab-ray lab-ways interop gpu-check

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

deps: ## install what is missing on Debian 12 / Ubuntu 24.04
	@tools/install-deps build demo test

build: ## release build of musterd, muster-relay, muster-agent, muster into build/release
	@tools/install-deps build
	@cmake --preset release -DBUILD_TESTING=OFF >/dev/null
	@cmake --build --preset release -j $(JOBS)

asan: ## build with address and undefined behaviour sanitizers (what the tests run)
	@cmake --preset asan >/dev/null
	@cmake --build --preset asan -j $(JOBS)

test: ## unit, contract, simulation, lint and system tests; ends with "N passed, N failed, N skipped"
	@tools/install-deps build demo test lint
	@python3 tools/test.py $(ARGS)

demo: build ## a control plane, machines behind NATs, a Ray cluster, a job, faults; KEEP=1 leaves it up
	@tools/install-deps demo
	@$(SUDO) python3 tools/demo.py --build build/release $(if $(KEEP),--keep) $(ARGS)

lint: ## formatting, dependency rule, tidy rules
	@tools/install-deps build lint
	@python3 tests/lint/lint.py

tidy: asan ## clang-tidy-16 over every source (make test: over those that read what strangers send)
	@tools/install-deps lint
	@python3 tools/tidy.py $(ROOM)

format: ## clang-format all sources in place
	@clang-format-16 -i $$(git ls-files 'src/*.h' 'src/*.cpp' 'tests/*.h' 'tests/*.cpp' 'bench/*.cpp')

sim: ## deterministic simulation: make sim SEED=7 STEPS=5000 | SEEDS=100 | SECONDS=180 | HOURS=2 | MUTANTS=1 | MUTANT=name (docs/simulation.md)
	@cmake --preset sim >/dev/null && cmake --build --preset sim -j $(JOBS) --target muster-sim
	@build/sim/muster-sim $(if $(SEED),--seed $(SEED)) $(if $(SEEDS),--seeds $(SEEDS)) $(if $(STEPS),--steps $(STEPS)) $(if $(HOURS),--hours $(HOURS)) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(MUTANTS),--mutants) $(if $(MUTANT),--mutant $(MUTANT)) $(if $(LOG),--log) $(if $(TWICE),--twice)

fuzz: ## parsers of foreign bytes under libFuzzer, and whether a planted bug of each is found: make fuzz NAME=yaml SECONDS=60 | MUTANTS=1 (docs/fuzzing.md)
	@tools/install-deps build test
	@python3 tools/fuzz.py --seconds $(or $(SECONDS),600) $(if $(NAME),--target $(NAME)) $(if $(MUTANTS),--mutants)

fuzz-api: build ## requests by the OpenAPI document as every role against a real musterd: make fuzz-api CASES=100000 SEED=1
	@tools/install-deps test
	@python3 tools/fuzz_api.py --cases $(or $(CASES),100000) --seed $(or $(SEED),1)

bench: ## one benchmark, JSON lines: make bench NAME=journal | NAME=overlay-throughput ARGS=--no-uso
	@tools/install-deps build bench
	@python3 tools/bench.py $(NAME) $(ARGS)

lab: build ## every kind of connection with every other, and faults of networks, through the shipped netd and relay; WRITE=1 puts tables and picture into docs/
	@tools/install-deps test
	@cmake --build --preset release -j $(JOBS) --target muster-nat-rig muster-slow-link
	@$(SUDO) python3 tests/lab/nat_lab.py --build build/release $(if $(WRITE),--write) $(ARGS)

lab-ray: build ## a Ray cluster across five kinds of connection computes while its ways change every 20 s (some minutes)
	@tools/install-deps demo test
	@$(SUDO) python3 tests/lab/ray_lab.py --build build/release $(ARGS)

lab-ways: build ## on a Ray cluster: what a member carries gets into the books of both owners, and a worker whose way stays slow is replaced (five minutes)
	@tools/install-deps demo test
	@$(SUDO) python3 tools/test.py --only system --no-build --module ways_test

interop: build ## our WireGuard against the kernel's (in a virtual machine) and wireguard-go's: make interop ARGS=--quick
	@tools/install-deps interop
	@cmake --build --preset release -j $(JOBS) --target muster-wg-peer
	@$(SUDO) python3 tests/lab/wg_interop.py --build build/release $(ARGS)

sbom: build ## bill of materials of the release build (CycloneDX JSON): build/release/sbom.json
	@python3 tools/sbom.py --out build/release/sbom.json

reproduce: ## builds the programs twice, elsewhere and otherwise, and compares them to the byte: make reproduce AGAINST=build/release
	@tools/install-deps build
	@python3 tools/reproduce.py $(if $(AGAINST),--against $(AGAINST)) $(ARGS)

docs: ## where the documentation is
	@ls README.md ARCHITECTURE.md CONTRIBUTING.md SECURITY.md docs/*.md docs/adr/*.md docs/security/*.md

gpu-check: build ## what the agent sees of the GPUs of this machine, and whether a container gets one (IMAGE=...)
	@$(SUDO) build/release/muster-agent gpu-check $(if $(IMAGE),--image $(IMAGE))

clean: ## remove build output
	@rm -rf build
