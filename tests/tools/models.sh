#!/usr/bin/env bash
# Plays the models of the engine's concurrency under its two model checkers, each with a build of its own.
#
# Usage: models.sh [NAME]        all models, or those whose names hold NAME
#
# COWSHED_SCHEDULES=1000000      orders that each model of tests/models plays (10000)
# COWSHED_SEED, COWSHED_SCHEDULE as tests/models/main.rs says
set -euo pipefail
cd "$(dirname "$0")/../.."
CARGO=${CARGO:-cargo}
TARGET=${CARGO_TARGET_DIR:-target}

# The same few large vectors come and go for each order that is played.
export MALLOC_MMAP_THRESHOLD_=67108864 MALLOC_TRIM_THRESHOLD_=1073741824

checker() {
    local name=$1
    shift
    RUSTFLAGS="${RUSTFLAGS:-} --cfg cowshed_model --cfg cowshed_model=\"$name\"" \
        CARGO_TARGET_DIR="$TARGET/models-$name" \
        $CARGO test --quiet --locked --profile models --package cowshed "$@"
}

checker shuttle --test models -- "$@"
checker loom --lib -- "models::${1:-}"
