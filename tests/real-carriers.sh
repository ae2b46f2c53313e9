#!/usr/bin/env bash
# Runs the process tests over carriers that others have written: a relay in Rust (nostr-rs-relay, from crates.io), an IPFS node
# in JavaScript (js-ipfs, from npm), and nginx and HAProxy in front of a service. What is missing is installed: apt needs root,
# and the relay's build takes some minutes the first time. Everything is below target/carriers.
#
#   bash tests/real-carriers.sh
#
# RELAYS and IPFS name others that run already: RELAYS=wss://relay.example.org bash tests/real-carriers.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

relay_version=0.8.12
ipfs_version=0.66.1
place=$PWD/${CARGO_TARGET_DIR:-target}/carriers
mkdir -p "$place"
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true' EXIT

step() { printf '\n== %s\n' "$*"; }
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# Waits until somebody listens on a port.
listens() {
    for _ in {1..120}; do
        (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null && return
        kill -0 "${pids[-1]}" 2>/dev/null || { echo "error: $2 ended, see $place" >&2; exit 1; }
        sleep 0.5
    done
    echo "error: $2 does not listen on port $1, see $place" >&2
    exit 1
}

missing=()
command -v protoc >/dev/null || missing+=(protobuf-compiler cmake pkg-config libssl-dev)
command -v nginx >/dev/null || missing+=(nginx-light)
command -v haproxy >/dev/null || missing+=(haproxy)
command -v npm >/dev/null || missing+=(nodejs npm)
if ((${#missing[@]})); then
    step "apt-get install ${missing[*]}"
    apt-get update -qq
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi

if [[ ! ${RELAYS:-} ]]; then
    source=$place/nostr-rs-relay-$relay_version
    if [[ ! -x $source/target/debug/nostr-rs-relay ]]; then
        step "nostr-rs-relay $relay_version"
        curl -fsSL "https://static.crates.io/crates/nostr-rs-relay/nostr-rs-relay-$relay_version.crate" | tar -xz -C "$place"
        # Its lock file names a version of time that newer compilers refuse.
        (cd "$source" && cargo update -p time@0.3.25 && cargo build)
    fi
    port=$(free_port)
    rm -rf "$place/relay" && mkdir "$place/relay"
    printf '[network]\naddress = "127.0.0.1"\nport = %s\n[limits]\nmax_event_bytes = 262144\nmax_ws_message_bytes = 262144\nmax_ws_frame_bytes = 262144\n' \
        "$port" >"$place/relay/config.toml"
    "$source/target/debug/nostr-rs-relay" --db "$place/relay" --config "$place/relay/config.toml" >"$place/relay/log" 2>&1 &
    pids+=($!)
    listens "$port" nostr-rs-relay
    RELAYS=ws://127.0.0.1:$port
fi

if [[ ! ${IPFS:-} ]]; then
    if [[ ! -x $place/node_modules/.bin/jsipfs ]]; then
        step "js-ipfs $ipfs_version"
        npm install --prefix "$place" --no-audit --no-fund --ignore-scripts "ipfs@$ipfs_version"
    fi
    # It is of 2023: older than a function of Node 22 that its dependencies use by now, and their addresses are of another version,
    # so that it cannot listen for peers. Nobody is to reach it but we.
    printf '%s\n' 'Promise.withResolvers ??= function () {' '  let resolve, reject;' \
        '  const promise = new Promise((yes, no) => { resolve = yes; reject = no; });' '  return { promise, resolve, reject };' '};' \
        >"$place/resolvers.cjs"
    export IPFS_PATH=$place/ipfs NODE_OPTIONS="--require $place/resolvers.cjs"
    rm -rf "$IPFS_PATH"
    port=$(free_port)
    "$place/node_modules/.bin/jsipfs" init --empty-repo >"$place/ipfs.log" 2>&1
    python3 - "$IPFS_PATH/config" "$port" "$(free_port)" <<'PYTHON'
import json, sys
path, api, gateway = sys.argv[1:]
config = json.load(open(path))
config["Addresses"].update(Swarm=[], API=f"/ip4/127.0.0.1/tcp/{api}", Gateway=f"/ip4/127.0.0.1/tcp/{gateway}", RPC="/ip4/127.0.0.1/tcp/0")
config["Bootstrap"] = []
json.dump(config, open(path, "w"))
PYTHON
    "$place/node_modules/.bin/jsipfs" daemon --offline >>"$place/ipfs.log" 2>&1 &
    pids+=($!)
    listens "$port" js-ipfs
    unset NODE_OPTIONS
    IPFS=http://127.0.0.1:$port
fi

step "Tests over $RELAYS, $IPFS, $(command -v nginx), $(command -v haproxy)"
BTCR2_RELAYS=$RELAYS BTCR2_IPFS=$IPFS cargo test --locked --test it -- --nocapture real_carriers:: proxies::
