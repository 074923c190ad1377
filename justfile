# The ordinary commands, by their short names. `just` alone lists them.

default:
    @just --list --unsorted

# Formatting, lints and tests: what .ci/run runs
check:
    .ci/run

# Run every test
test *ARGS:
    cargo test --workspace {{ ARGS }}

# Format all code
fmt:
    cargo fmt --all

# Lints, with warnings denied
lint:
    cargo clippy --workspace --all-targets -- -D warnings

# Replay the seeded tests (simulated cluster, raft simulator, crash tests) from one seed
sim SEED:
    TERRANE_SEED={{ SEED }} cargo test --workspace

# The media tests on zoned, FDP and conventional NVMe devices in a QEMU guest (--fetch gets what it takes, --help explains)
qemu-test *ARGS:
    ocssd/qemu/run {{ ARGS }}

# 10,000 seeded runs of random media operations, faults and power cuts on each kind of medium (docs of ocssd/tests/endurance)
endurance RUNS="10000":
    TERRANE_RUNS={{ RUNS }} cargo test -p terrane-ocssd --test endurance

# A three-node cluster under YCSB A that loses a leader half-way and must lose no write
demo *ARGS:
    cargo run --release --bin terrane-loadgen -- demo {{ ARGS }}

# A cluster on this machine until Ctrl-C, its data in DIR
local DIR *ARGS:
    cargo run --release --bin terrane -- local --dir {{ DIR }} {{ ARGS }}

# Load a running cluster: just load 127.0.0.1:7400 --workload a --clients 64
load ADDR *ARGS:
    cargo run --release --bin terrane-loadgen -- run --addr {{ ADDR }} {{ ARGS }}

# Terrane beside every peer (installs nothing: see docs/benchmarks.md for what the peers need)
compare *ARGS:
    RUSTFLAGS="-C target-cpu=native" cargo run --release --features peers -p terrane-loadgen -- compare {{ ARGS }}

# Lints and tests of the load generator with every peer compiled in; the first build of RocksDB takes long
peers:
    cargo clippy -p terrane-loadgen --features peers --all-targets -- -D warnings
    cargo test -p terrane-loadgen --features peers

# Raw io_uring, monoio, compio and glommio side by side (docs/decisions/0001)
runtimes *ARGS:
    cargo bench -p terrane-loadgen --features runtimes --bench runtimes -- {{ ARGS }}

# Print a node's configuration to start from
config:
    @cargo run --quiet --bin terrane -- config --example

# The index beside other ordered maps: bytes a key, ns an operation (docs/decisions/0009)
index *ARGS:
    cargo bench -p terrane-engine --bench index -- {{ ARGS }}

# An ordinary drive's write amplification, by a model of its translation layer (docs/benchmarks.md)
ftl *ARGS:
    cargo bench -p terrane-ocssd --bench ftl -- {{ ARGS }}

# Fuzz one decoder with libFuzzer until Ctrl-C (fuzz/src/lib.rs lists them; needs cargo-fuzz and a nightly compiler). What it
# finds new is below target/: put into fuzz/corpus/TARGET what shall be kept
fuzz TARGET *ARGS:
    mkdir -p target/fuzz-corpus/{{ TARGET }}
    cargo +nightly fuzz run --features libfuzzer {{ TARGET }} target/fuzz-corpus/{{ TARGET }} fuzz/corpus/{{ TARGET }} -- {{ ARGS }}

# Cached gets a second on one core (docs/benchmarks.md)
reads *ARGS:
    cargo bench -p terrane-engine --bench reads -- {{ ARGS }}
