# shellcheck shell=bash
# CRIU >= 4.1 with its Python package: what is there, else the distribution's, else a newer suite's
# packages unpacked in .venv/lib/criu, with their own libraries, beside the system.

readonly CRIU_AT_LEAST=4.1
readonly PRIVATE_CRIU=$VENV/lib/criu

set_up_criu() {
    [[ $EUID -eq 0 ]] || command -v sudo >/dev/null ||
        die "CRIU needs root, and there is no sudo" "run as root: make setup"
    step "CRIU" a_suitable_criu_is_there install_criu
}

# In cria's own order. A CRIU that the user names is used or refused, never passed over.
a_suitable_criu_is_there() {
    local criu
    if [[ -n ${CRIA_CRIU-} ]]; then
        is_suitable "$CRIA_CRIU"
        return
    fi
    for criu in "$VENV/bin/criu" "$(find_program criu)"; do
        is_suitable "$criu" && return
    done
    return 1
}

is_suitable() { [[ -x $1 ]] && is_new_enough "$1" && has_pycriu "$1" && works_here "$1" && describe "$1"; }

describe() { echo "$(criu_version "$1") at $1"; }

criu_version() { "$1" --version 2>/dev/null | sed -n 's/^Version: *//p'; }

is_new_enough() {
    local version
    version=$(criu_version "$1")
    [[ -n $version ]] && printf '%s\n' "$CRIU_AT_LEAST" "$version" | sort --version-sort --check=quiet
}

# Where cria looks: beside the program, importable, the system's.
has_pycriu() {
    local prefix
    prefix=$(dirname "$(dirname "$(realpath "$1")")")
    compgen -G "$prefix/lib/python3*/*-packages/pycriu/images/fdinfo_pb2.py" >/dev/null ||
        "$VENV/bin/python" -c 'import pycriu' 2>/dev/null ||
        [[ -f /usr/lib/python3/dist-packages/pycriu/images/fdinfo_pb2.py ]]
}

works_here() { as_root "$1" check >/dev/null 2>&1; }

install_criu() {
    [[ -z ${CRIA_CRIU-} ]] || {
        refuse_criu "$CRIA_CRIU"
        return 1
    }
    command -v apt-get >/dev/null || {
        echo "only Debian and Ubuntu are known here. Install CRIU $CRIU_AT_LEAST or newer with its" \
            "Python package pycriu, then: CRIA_CRIU=/path/to/criu make setup" >&2
        return 1
    }
    if distribution_has_it; then
        install_packages criu "$(pycriu_package)"
        a_suitable_criu_is_there && return
        echo "the distribution's CRIU does not pass its own check here; taking a newer one"
    fi
    build_private_criu
    a_suitable_criu_is_there || {
        refuse_criu "$VENV/bin/criu"
        return 1
    }
}

# Say why on stderr, the first reason only: the others follow from it.
refuse_criu() {
    if [[ ! -x $1 ]]; then
        echo "$1 is not a program" >&2
    elif ! is_new_enough "$1"; then
        echo "$1 is not CRIU $CRIU_AT_LEAST or newer: $("$1" --version 2>&1 | head -n 1)" >&2
    elif ! has_pycriu "$1"; then
        echo "$1 has no pycriu beside it, nor have .venv and the system" >&2
    else
        echo "this host does not let CRIU work: $1 check" >&2
        as_root "$1" check >&2
    fi
}

# The distribution's own -------------------------------------------------------------------------

distribution_has_it() {
    local candidate
    apt-cache show criu >/dev/null 2>&1 || as_root apt-get update
    candidate=$(apt-cache policy criu | sed -n 's/^ *Candidate: *//p')
    [[ -n $candidate ]] && dpkg --compare-versions "$candidate" ge "$CRIU_AT_LEAST"
}

pycriu_package() {
    local name
    for name in python3-pycriu python3-criu; do
        apt-cache show "$name" >/dev/null 2>&1 && echo "$name" && return
    done
    echo "no package here holds pycriu" >&2
    return 1
}

# A newer suite's, in a prefix of its own ----------------------------------------------------------

build_private_criu() {
    unpack_beside "$PRIVATE_CRIU" usr/sbin/criu criu python3-pycriu
    ln -sfn ../lib/criu/usr/sbin/criu "$VENV/bin/criu"
}
