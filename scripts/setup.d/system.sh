# shellcheck shell=bash
# What only the distribution's package manager can bring, and the right to ask it.

# as_root COMMAND...: directly, or through sudo.
as_root() {
    if [[ $EUID -eq 0 ]]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        echo "this needs root and there is no sudo: $*" >&2
        return 1
    fi
}

install_packages() {
    command -v apt-get >/dev/null || {
        echo "this host has no apt-get; install what corresponds to: $*" >&2
        return 1
    }
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y --no-install-recommends "$@" && return
    echo "trying again with fresh package lists"
    as_root apt-get update
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
}

# The first Python >= 3.11 that runs; plain python3 is preferred.
find_python() {
    local name
    for name in python3 python3.13 python3.12 python3.11; do
        "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        command -v "$name"
        return
    done
    return 1
}

missing_system_packages() {
    local python
    if ! python=$(find_python); then
        echo python3 python3-venv
    elif ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
        "$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])'
    fi
    # vLLM's kernels are linked with it.
    ldconfig_knows libnuma.so.1 || echo libnuma1
    # CRIU calls it for network namespaces.
    find_program ip >/dev/null || echo iproute2
    # The tests see that the locks CRIU makes with it are taken away again.
    find_program iptables >/dev/null || echo iptables
}

ldconfig_knows() { PATH=$PATH:/usr/sbin:/sbin ldconfig -p | grep -q "$1"; }

# Debian keeps /usr/sbin off an ordinary user's PATH.
find_program() { PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin command -v "$1"; }

system_packages_are_there() { [[ -z $(missing_system_packages) ]]; }

install_system_packages() {
    local missing
    mapfile -t missing < <(missing_system_packages | tr ' ' '\n')
    install_packages "${missing[@]}"
    find_python >/dev/null || {
        echo "cria needs Python 3.11 or newer; this host's is $(python3 --version)" >&2
        return 1
    }
}
