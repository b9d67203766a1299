# What the scripts share: sourced, not run. Finds or installs what is missing, and says clearly what it can't.
# shellcheck shell=bash

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '\033[1m%s\033[0m\n' "== $*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ]; }

# Runs a command as root: directly, or with sudo if that needs no question or there is somebody to ask.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif have sudo && { sudo -n true 2>/dev/null || [ -t 0 ]; }; then
        sudo "$@"
    else
        return 126
    fi
}

# need_packages PACKAGE…: installs those Debian packages that are missing.
need_packages() {
    have dpkg-query && have apt-get ||
        die "this isn't a Debian-like system: please install by hand what these Debian packages hold: $*"
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
    done
    [ ${#missing[@]} = 0 ] && return
    say "installing: ${missing[*]}"
    # RUNLEVEL=1: a package that brings a service doesn't start it.
    local install=(env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y --no-install-recommends "${missing[@]}")
    as_root "${install[@]}" >/dev/null 2>&1 || {
        as_root apt-get update >/dev/null && as_root "${install[@]}" >/dev/null
    } || die "couldn't install. As root, run: apt-get update && apt-get install ${missing[*]}"
    local service
    for service in transmission-daemon nginx; do
        case " ${missing[*]} " in
        *" $service "*)
            # It came for the tests alone: not as a service of this machine.
            have systemctl && as_root systemctl disable --now "$service" >/dev/null 2>&1 || true
            ;;
        esac
    done
}

# need_programs PROGRAM:PACKAGE…: installs the packages of those programs that aren't there.
need_programs() {
    local missing=() pair
    for pair in "$@"; do
        have "${pair%%:*}" || missing+=("${pair#*:}")
    done
    [ ${#missing[@]} = 0 ] || need_packages "${missing[@]}"
}

# Whether the cargo that is found is new enough for this workspace.
cargo_is_new_enough() {
    local wanted found
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
    found=$(cargo --version 2>/dev/null | cut -d ' ' -f 2)
    [ -n "$found" ] && [ "$(printf '%s\n%s\n' "$wanted" "$found" | sort -V | head -n 1)" = "$wanted" ]
}

# need_cargo: a C compiler for the crates that need one, and a Rust that is new enough.
need_cargo() {
    need_programs cc:build-essential
    [ -d "$HOME/.cargo/bin" ] && PATH="$PATH:$HOME/.cargo/bin"
    cargo_is_new_enough && return
    local wanted
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
    say "Rust $wanted or newer is missing: installing it with rustup"
    if ! have rustup; then
        if have apt-cache && apt-cache show rustup >/dev/null 2>&1; then
            need_packages rustup
        else
            need_programs curl:curl
            curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs |
                sh -s -- -y --no-modify-path --profile minimal --component clippy,rustfmt >/dev/null ||
                die "couldn't install Rust. Install $wanted or newer by hand, as https://rustup.rs says."
        fi
        PATH="$HOME/.cargo/bin:$PATH"
    fi
    have rustup && ! cargo_is_new_enough && rustup toolchain install stable --profile minimal --component clippy,rustfmt
    cargo_is_new_enough || die "cargo is missing or older than $wanted. See https://rustup.rs."
}

# need_fuse: what a mount needs from the machine. /dev/fuse can't be installed, so it is only a warning here; the
# program and the tests say it again.
need_fuse() {
    [ "$(id -u)" = 0 ] || need_programs fusermount3:fuse3
    [ -e /dev/fuse ] || as_root modprobe fuse 2>/dev/null || true
    [ -e /dev/fuse ] ||
        printf 'warning: /dev/fuse is missing: load the fuse module, or start the container with --device /dev/fuse --cap-add SYS_ADMIN\n' >&2
}

# need_peers: the real peers and the tools of the tests. Without rights to install, the affected tests are skipped by
# name; in CI they fail.
need_peers() {
    local packages=(python3-libtorrent transmission-daemon transmission-cli aria2 attr fuse3 iproute2 nftables procps util-linux mount rsync qemu-utils file ffmpeg golang-go fio sqlite3 zip unzip squashfs-tools nginx openssl)
    if [ "${CI:-}" = true ] || [ "$(id -u)" = 0 ] || { have sudo && sudo -n true 2>/dev/null; }; then
        need_packages "${packages[@]}"
    else
        local package
        for package in "${packages[@]}"; do
            dpkg-query -W "$package" >/dev/null 2>&1 ||
                printf 'note: %s is missing, and so are some tests (apt-get install %s)\n' "$package" "$package" >&2
        done
    fi
}

# peers_python: the Python that has libtorrent, the distribution's first.
peers_python() {
    local python
    for python in /usr/bin/python3 python3; do
        "$python" -c 'import libtorrent' 2>/dev/null && printf '%s\n' "$python" && return
    done
    die "no python3 with libtorrent: apt-get install python3-libtorrent"
}

# build_release: the program as users run it; quiet unless it fails. Prints its path.
build_release() {
    local target="${CARGO_TARGET_DIR:-target}"
    say "building (some minutes the first time)"
    local log
    log=$(mktemp)
    cargo build --release --locked --bin torrentfs >"$log" 2>&1 || { cat "$log" >&2; rm -f "$log"; die "the build failed"; }
    rm -f "$log"
    printf '%s\n' "$target/release/torrentfs"
}
