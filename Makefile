# The commands of gemel's developers and first users. Each is one line that works by itself.

MINUTES ?= 60
SECONDS ?= 60
SEEDS ?= 2000
FAILOVERS ?= 300

.PHONY: demo test verify conformance model sim mutants fuzz bench bench-map failovers soak upgrade deb

# A whole cluster on this machine, two nodes and a witness, until Ctrl-C.
demo:
	scripts/prerequisites.sh demo
	cargo build --release --bins
	cargo run --release --bin gemel -- demo $(ARGS)

# Everything that CI checks, after installing the system packages that are missing.
test:
	scripts/prerequisites.sh test
	$(MAKE) --no-print-directory verify

# What CI checks. Writes nothing outside target/.
verify:
	scripts/verify.sh

# The whole of libiscsi's iscsi-test-cu with both sector sizes; ends with a table.
conformance:
	scripts/prerequisites.sh test
	cargo test --test conformance -- --nocapture

# The mirror and quorum protocol in every state of its large scopes, and what each broken rule would do.
model:
	cargo test --release --test protocol_model -- --ignored --nocapture --test-threads 1

# The simulator: random runs of the store, and of the whole cluster, with crashes and faults. SEED=n replays one seed,
# WORLD=store or WORLD=cluster takes one of the two. Ends in the summary.
sim:
	SEEDS=$(SEEDS) scripts/sim.sh

# Every seeded bug, and the seed that finds it. SEEDS is the most that are tried for each; MUTANT=Name takes one.
mutants:
	SEEDS=$(SEEDS) cargo test --lib -- every_mutant_is_found every_seeded_bug_is_found --nocapture --test-threads 1
	cargo test --test protocol_model every_broken_rule_is_caught -- --nocapture

# Each fuzz target for SECONDS, with the nightly toolchain and cargo-fuzz. What it finds goes to fuzz/found, beside the
# corpus that the tests replay.
fuzz:
	for target in $$(cargo +nightly fuzz list); do \
		mkdir -p fuzz/found/$$target; \
		cargo +nightly fuzz run $$target fuzz/found/$$target fuzz/corpus/$$target -- \
			-max_total_time=$(SECONDS) || exit 1; \
	done

# End to end over iSCSI on loopback, beside tgtd and the raw disk. CASES=random-write-32 picks some.
bench:
	scripts/prerequisites.sh bench
	cargo bench --bench e2e -- $(CASES)

# The map of a large pool, filled to 1/PART of 16 TiB: inserts, lookups, memory, opening it (docs/map.md).
bench-map:
	scripts/prerequisites.sh bench
	cargo bench --bench map -- $(or $(PART),512)

# A mirrored volume under load while one node after the other is killed; prints how long the host waited.
failovers:
	FAILOVERS=$(FAILOVERS) cargo test --test failover killing_either_node -- --nocapture

# Verified load for MINUTES each: on a pair whose members are killed, paused, stopped and given new disks, and on a
# single node that is killed at any moment.
soak:
	SOAK_MINUTES=$(MINUTES) cargo test --test pair_soak -- --nocapture
	SOAK_MINUTES=$(MINUTES) cargo test --test real_initiators -- --nocapture nothing_acknowledged_is_lost_by_sigkill

# An upgrade under load from the programs of the revision PREVIOUS, which are built first, to those of this tree.
upgrade:
	scripts/upgrade.sh $(PREVIOUS)

# Debian packages into target/deb, and a look at how they install, upgrade and leave (as root).
deb:
	scripts/deb.sh
	scripts/check-deb.sh
