#!/usr/bin/env bash
# Runs the process tests over third-party carriers: relays in Rust (nostr-rs-relay, from crates.io), Python
# (nostr-relay, from PyPI) and JavaScript (@nostr-relay/core and relays, from npm), an IPFS node in JavaScript (js-ipfs, from npm),
# and nginx, HAProxy and Caddy in front of a service. What is missing is installed: apt needs root, and the relay in Rust takes some
# minutes to build the first time.
#
#   bash tests/real-carriers.sh
#
# Everything is installed below CARRIERS (target/carriers by default). RELAYS and IPFS name instances that already run:
#   RELAYS=wss://relay.example.org,wss://relay.example.net bash tests/real-carriers.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

relay_version=0.8.12
python_relay_version=1.14
node_relay_version=0.0.40
shared_relay_version=1.0.3
ipfs_version=0.66.1
place=${CARRIERS:-$PWD/${CARGO_TARGET_DIR:-target}/carriers}
mkdir -p "$place"
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true' EXIT

step() { printf '\n== %s\n' "$*"; }
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# Waits until a program listens on a port.
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
command -v caddy >/dev/null || missing+=(caddy)
command -v npm >/dev/null || missing+=(nodejs npm)
python3 -c 'import ensurepip' 2>/dev/null || missing+=(python3-venv)
if ((${#missing[@]})); then
    step "apt-get install ${missing[*]}"
    apt-get update -qq
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
fi

rust_relay() {
    local source=$place/nostr-rs-relay-$relay_version
    if [[ ! -x $source/target/debug/nostr-rs-relay ]]; then
        step "nostr-rs-relay $relay_version"
        curl -fsSL "https://static.crates.io/crates/nostr-rs-relay/nostr-rs-relay-$relay_version.crate" | tar -xz -C "$place"
        # Its lock file names a version of the crate time that newer compilers refuse.
        (cd "$source" && cargo update -p time@0.3.25 && cargo build)
    fi
    rm -rf "$place/relay" && mkdir "$place/relay"
    printf '[network]\naddress = "127.0.0.1"\nport = %s\n[limits]\nmax_event_bytes = 262144\nmax_ws_message_bytes = 262144\nmax_ws_frame_bytes = 262144\n' \
        "$1" >"$place/relay/config.toml"
    "$source/target/debug/nostr-rs-relay" --db "$place/relay" --config "$place/relay/config.toml" >"$place/relay/log" 2>&1 &
}

# Its own limit is 4,096 characters, as long as a message of a cohort of some ten members.
python_relay() {
    if [[ ! -x $place/python/bin/nostr-relay ]]; then
        step "nostr-relay $python_relay_version (Python)"
        python3 -m venv "$place/python"
        "$place/python/bin/pip" install --quiet "nostr-relay==$python_relay_version"
    fi
    rm -rf "$place/python-relay" && mkdir "$place/python-relay"
    cat >"$place/python-relay/config.yaml" <<YAML
storage:
  sqlalchemy.url: sqlite+aiosqlite:///$place/python-relay/events.sqlite3
  num_concurrent_reqs: 10
  num_concurrent_adds: 2
  validators: [nostr_relay.validators.is_not_too_large, nostr_relay.validators.is_signed, nostr_relay.validators.is_recent]
max_event_size: 262144
gunicorn:
  bind: 127.0.0.1:$1
  workers: 1
YAML
    HOME=$place/python-relay "$place/python/bin/nostr-relay" -c "$place/python-relay/config.yaml" serve \
        >"$place/python-relay/log" 2>&1 &
}

# A library: this is the server of its example.
node_relay() {
    local home=$place/node-relay
    if [[ ! -d $home/node_modules/@nostr-relay ]]; then
        step "@nostr-relay/core $node_relay_version (JavaScript)"
        npm install --prefix "$home" --no-audit --no-fund --loglevel=error "@nostr-relay/core@$node_relay_version" \
            "@nostr-relay/event-repository-sqlite@$node_relay_version" "@nostr-relay/validator@$node_relay_version" ws@8
    fi
    cat >"$home/server.cjs" <<'JAVASCRIPT'
const { WebSocketServer } = require('ws');
const { NostrRelay } = require('@nostr-relay/core');
const { EventRepositorySqlite } = require('@nostr-relay/event-repository-sqlite');
const { Validator } = require('@nostr-relay/validator');
const repository = new EventRepositorySqlite(':memory:');
const [relay, validator] = [new NostrRelay(repository), new Validator()];
repository.init().then(() => new WebSocketServer({ host: '127.0.0.1', port: Number(process.argv[2]) }).on('connection', (socket, request) => {
  relay.handleConnection(socket, request.socket.remoteAddress);
  socket.on('error', () => {});
  socket.on('close', () => relay.handleDisconnect(socket));
  socket.on('message', async (data) => {
    try {
      await relay.handleMessage(socket, await validator.validateIncomingMessage(data));
    } catch (error) {
      socket.send(JSON.stringify(['NOTICE', error.message]));
    }
  });
}));
JAVASCRIPT
    node "$home/server.cjs" "$1" >"$home/log" 2>&1 &
}

# It has one map of subscriptions for all connections. It refuses every event as badly signed, since it calls a function that
# nostr-tools has removed. So its signature checks are turned off; our programs verify everything themselves.
shared_relay() {
    local home=$place/shared-relay
    if [[ ! -d $home/node_modules/relays ]]; then
        step "relays $shared_relay_version (JavaScript)"
        npm install --prefix "$home" --no-audit --no-fund --loglevel=error "relays@$shared_relay_version"
    fi
    (cd "$home" && exec node -e "require('relays/server').createServer({ port: $1, skipGun: true, nostr: { disableUpstream: true, disableSignature: true } })") \
        >"$home/log" 2>&1 &
}

if [[ ! ${RELAYS:-} ]]; then
    for relay in rust_relay python_relay node_relay shared_relay; do
        port=$(free_port)
        "$relay" "$port"
        pids+=($!)
        listens "$port" "$relay"
        path=
        [[ $relay == shared_relay ]] && path=/nostr
        RELAYS=${RELAYS:+$RELAYS,}ws://127.0.0.1:$port$path
    done
fi

if [[ ! ${IPFS:-} ]]; then
    if [[ ! -x $place/node_modules/.bin/jsipfs ]]; then
        step "js-ipfs $ipfs_version"
        npm install --prefix "$place" --no-audit --no-fund --ignore-scripts "ipfs@$ipfs_version"
    fi
    # It is from 2023: its dependencies use a function of Node 22 by now, and another version of addresses, so that it cannot listen
    # for peers. Only this script uses it.
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

step "Tests over $RELAYS, $IPFS, $(command -v nginx), $(command -v haproxy), $(command -v caddy)"
BTCR2_RELAYS=$RELAYS BTCR2_IPFS=$IPFS cargo test --locked --test it -- --nocapture real_carriers:: proxies::
