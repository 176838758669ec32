"""Errors of this host: exit statuses 10 to 19."""

from __future__ import annotations

from cria.errors.base import CriaError


class PrivilegeMissing(CriaError):
    """cria lacks root or a capability that CRIU needs."""

    code = "privilege-missing"
    exit_status = 10
    default_remedy = "run the same command as root: sudo -E env PATH=$PATH cria ..."


class CriuMissing(CriaError):
    """No CRIU program was found."""

    code = "criu-missing"
    exit_status = 11
    default_remedy = "install CRIU 4.1 or newer, or name it: export CRIA_CRIU=/path/to/criu"


class CriuUnsuitable(CriaError):
    """The CRIU that was found cannot work on this host."""

    code = "criu-unsuitable"
    exit_status = 12
    default_remedy = "install CRIU 4.1 or newer, or name it: export CRIA_CRIU=/path/to/criu"


class PycriuMissing(CriaError):
    """CRIU's Python package is missing or does not load."""

    code = "pycriu-missing"
    exit_status = 13
    default_remedy = (
        "install the package that belongs to your CRIU (Debian: apt install python3-pycriu)"
    )


class NotWritable(CriaError):
    """A file or directory that cria has to write cannot be written."""

    code = "not-writable"
    exit_status = 14


class NoSpace(CriaError):
    """The disk or the memory has too little room."""

    code = "no-space"
    exit_status = 15
    default_remedy = "free space, or write to another file system with -o"


class HookUnsafe(CriaError):
    """Somebody else could change what a user's hook does."""

    code = "hook-unsafe"
    exit_status = 16
    default_docs = "hooks/README.md"


class HookFailed(CriaError):
    """A user's hook failed or took too long; the dump or restore was undone."""

    code = "hook-failed"
    exit_status = 17
    default_remedy = "mend the hook and try again, or leave it out"
    default_docs = "hooks/README.md"


class CudaUnsuitable(CriaError):
    """This host cannot take an engine's GPU memory, or cannot give it back."""

    code = "cuda-unsuitable"
    exit_status = 18
    default_remedy = "pip install 'cria[cuda]', and a driver of NVIDIA of 570 or newer"
    default_docs = "docs/how-to/gpu.md"


class NodeUnsuitable(CriaError):
    """A node lacks what the action script needs there."""

    code = "node-unsuitable"
    exit_status = 19
    default_docs = "docs/how-to/kubernetes-node.md"
