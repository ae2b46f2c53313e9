#!/usr/bin/env bash
# Runs every fuzz target, or those that are named, for so many seconds each:
#
#   fuzz/run.sh SECONDS [TARGET...]
#
# Needs cargo-fuzz (cargo install cargo-fuzz); without it, the script prints that it is skipped, and succeeds. Inputs that a run
# discovers go to fuzz/found, not to the committed corpora; findings are in fuzz/artifacts.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

seconds=${1:?usage: fuzz/run.sh SECONDS [TARGET...]}
shift
if ! command -v cargo-fuzz >/dev/null; then
    echo "skipped: fuzzing (cargo-fuzz is not installed: cargo install cargo-fuzz)"
    exit 0
fi

# There is no unsafe code here, so a sanitizer would find nothing, and it needs a nightly compiler; SANITIZER=address runs one
# for the C code of libsecp256k1.
sanitizer=${SANITIZER:-none}
if (($#)); then targets=("$@"); else mapfile -t targets < <(cargo fuzz list); fi

cargo fuzz build --sanitizer "$sanitizer"
for target in "${targets[@]}"; do
    printf '\n== %s, %s s\n' "$target" "$seconds"
    mkdir -p "found/$target"
    # The longest input that is worth trying is a participant's round; hangs and memory count as findings.
    cargo fuzz run --sanitizer "$sanitizer" "$target" "found/$target" "corpus/$target" -- \
        -max_total_time="$seconds" -max_len=16384 -timeout=10 -rss_limit_mb=2048 -dict=wire.dict -print_final_stats=1
done
