"""Find CRIU's Python package and load single message modules of it, without the package's own import."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from cria.errors import PycriuMissing

_SYSTEM = Path("/usr/lib/python3/dist-packages")
_LOADING = threading.Lock()


def find_pycriu(criu_binary: Path | None = None) -> Path:
    """The directory of the pycriu package: beside `criu_binary`, else installed, else the system's.

    The one beside the program comes first because it was built from the same source.
    """
    looked: list[Path] = []
    for site in _sites(criu_binary):
        package = site / "pycriu"
        if (package / "images" / "fdinfo_pb2.py").is_file():
            return package
        looked.append(package)
    raise PycriuMissing(
        "CRIU's Python package pycriu was not found",
        details="\n".join(f"not at {package}" for package in dict.fromkeys(looked)),
    )


def load(name: str, criu_binary: Path | None = None) -> ModuleType:
    """The module `<name>_pb2` of pycriu's images, e.g. `load("fdinfo").file_entry`.

    A process keeps to the pycriu that it loaded from first. Source of the layout: criu/images/*.proto.
    """
    with _LOADING:  # what another thread is loading is among the loaded already
        loaded = sys.modules.get(f"{name}_pb2")
        return loaded if loaded is not None else _import(name, find_pycriu(criu_binary))


def _import(name: str, package: Path) -> ModuleType:
    # The generated modules import each other by bare name ("import regfile_pb2"), as pycriu itself
    # arranges for with an entry at the end of sys.path.
    images = str(package / "images")
    sys.path.append(images)
    try:
        return importlib.import_module(f"{name}_pb2")
    except (ImportError, TypeError, AttributeError) as error:
        raise PycriuMissing(
            f"pycriu's {name}_pb2 does not load",
            details=f"from {images}: {error}\nprotobuf {_protobuf()}, Python {sys.version.split()[0]}",
        ) from error
    finally:
        sys.path.remove(images)


def _protobuf() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("protobuf")
    except PackageNotFoundError:
        return "is not installed"


def _sites(criu_binary: Path | None) -> Iterator[Path]:
    if criu_binary is not None:
        lib = criu_binary.resolve().parent.parent / "lib"
        yield lib / "python3" / "dist-packages"
        for python in sorted(lib.glob("python3*")):
            yield python / "site-packages"
            yield python / "dist-packages"
    spec = importlib.util.find_spec("pycriu")
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin).parent.parent
    yield _SYSTEM
