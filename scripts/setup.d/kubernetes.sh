# shellcheck shell=bash
# What the tests of cria on Kubernetes need instead of a cluster: containerd and runc as a node has
# them, the description of their interface (CRI), and a busybox to make images of.

readonly CONTAINERD=$VENV/lib/containerd
readonly CONTAINERD_PROGRAMS="usr/bin/containerd usr/bin/containerd-shim-runc-v2 usr/bin/ctr usr/sbin/runc"

set_up_kubernetes() {
    [[ $EUID -eq 0 ]] || command -v sudo >/dev/null ||
        die "containerd needs root, and there is no sudo" "run as root: make setup-kubernetes"
    step "containerd and runc" containerd_is_there install_containerd
}

containerd_is_there() {
    local program
    for program in $CONTAINERD_PROGRAMS; do
        "$CONTAINERD/$program" -v >/dev/null 2>&1 || return
    done
    [[ -x $CONTAINERD/usr/bin/busybox ]] && [[ -f $(cri_description) ]] || return
    "$CONTAINERD/usr/bin/containerd" --version | awk '{ print $1, $3 }'
    "$CONTAINERD/usr/sbin/runc" --version | awk 'NR == 1 { print $1, $3 }'
}

cri_description() {
    echo "$CONTAINERD/usr/share/gocode/src/k8s.io/cri-api/pkg/apis/runtime/v1/api.proto"
}

install_containerd() {
    unpack_beside "$CONTAINERD" "$CONTAINERD_PROGRAMS" "containerd runc" \
        "busybox-static golang-k8s-cri-api-dev"
}
