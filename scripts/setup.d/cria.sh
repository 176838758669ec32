# shellcheck shell=bash
# The virtual environment with cria and the tools of its developers.

set_up_cria() {
    step "virtual environment" venv_works make_venv
    step "cria and its tools" cria_is_installed install_cria
}

pip_install() {
    "$VENV/bin/python" -m pip install --disable-pip-version-check --no-input \
        --progress-bar off "$@"
}

venv_works() {
    "$VENV/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null &&
        "$VENV/bin/python" -c 'import pip' 2>/dev/null &&
        "$VENV/bin/python" --version
}

make_venv() {
    rm -rf "$VENV"
    "$(find_python)" -m venv "$VENV"
}

# The path is part of it: a checkout that was moved has commands that point to the old place.
cria_inputs() { echo "$PWD $(cat pyproject.toml "$CONSTRAINTS" | sha256sum)"; }

cria_is_installed() { stamp_is cria "$(cria_inputs)"; }

# Until 0.1 the distribution was called cria: removed after the new one, it would take the command along.
uninstall_old_name() {
    ! "$VENV/bin/python" -m pip show --quiet cria 2>/dev/null ||
        "$VENV/bin/python" -m pip uninstall --quiet --yes cria
}

install_cria() {
    uninstall_old_name
    pip_install --constraint "$CONSTRAINTS" --editable '.[dev]'
    put_stamp cria "$(cria_inputs)"
}
