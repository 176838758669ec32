"""Find CRIU's Python package pycriu, and load single message modules of it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Protocol, TypeVar

from cria.errors import PycriuMissing

M_co = TypeVar("M_co", covariant=True)


class Message(Protocol):
    """What cria uses of every protobuf message."""

    def SerializeToString(self) -> bytes: ...  # noqa: N802 - protobuf's name
    def ClearField(self, field: str, /) -> None: ...  # noqa: N802 - protobuf's name


class _Descriptor(Protocol):
    @property
    def fields_by_name(self) -> Mapping[str, object]: ...


class MessageClass(Protocol[M_co]):
    """A generated message class."""

    DESCRIPTOR: _Descriptor

    def __call__(self, **fields: object) -> M_co: ...
    def FromString(self, data: bytes, /) -> M_co: ...  # noqa: N802 - protobuf's name


_SYSTEM = Path("/usr/lib/python3/dist-packages")
_LOADING = threading.Lock()


def find_pycriu(program: Path | None = None) -> Path:
    """Return the directory of pycriu: beside the CRIU `program`, else installed, else the system's.

    The one beside the program comes first because it was built from the same source.
    """
    places: list[Path] = []
    for site in _sites(program):
        package = site / "pycriu"
        if (package / "images" / "fdinfo_pb2.py").is_file():
            return package
        places.append(package)
    raise PycriuMissing(
        "CRIU's Python package pycriu was not found",
        details="\n".join(f"not at {package}" for package in dict.fromkeys(places)),
    )


def load(name: str, program: Path | None = None) -> ModuleType:
    """Load the module `<name>_pb2` of pycriu's images, such as "fdinfo" with its `file_entry`.

    A module is loaded once, from the pycriu of the first `program`. Raises PycriuMissing.
    """
    with _LOADING:  # what another thread is loading stands in sys.modules already
        loaded = sys.modules.get(f"{name}_pb2")
        return loaded if loaded is not None else _import_image_module(name, find_pycriu(program))


def load_rpc(program: Path) -> ModuleType:
    """Load pycriu's rpc_pb2 without the package around it. Raises PycriuMissing."""
    path = find_pycriu(program) / "rpc_pb2.py"
    spec = importlib.util.spec_from_file_location("pycriu_rpc_pb2", path)
    if spec is None or spec.loader is None:
        raise PycriuMissing(f"{path} does not load", details="Python cannot import it")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (OSError, ImportError, TypeError, AttributeError) as error:
        raise PycriuMissing(f"{path} does not load", details=_why(error)) from error
    return module


def _import_image_module(name: str, package: Path) -> ModuleType:
    # The generated modules import each other by bare name ("import regfile_pb2"). pycriu itself appends
    # their directory to sys.path for that, and so does this, for as long as the import takes.
    images = str(package / "images")
    sys.path.append(images)
    try:
        return importlib.import_module(f"{name}_pb2")
    except (ImportError, TypeError, AttributeError) as error:
        raise PycriuMissing(
            f"pycriu's {name}_pb2 does not load", details=f"from {images}: {_why(error)}"
        ) from error
    finally:
        sys.path.remove(images)


def _why(error: Exception) -> str:
    """Return the error with the versions on which it depends whether generated code loads."""
    from importlib.metadata import PackageNotFoundError, version  # takes 30 ms to load

    try:
        protobuf = version("protobuf")
    except PackageNotFoundError:
        protobuf = "is not installed"
    return f"{error}\nprotobuf {protobuf}, Python {sys.version.split()[0]}"


def _sites(program: Path | None) -> Iterator[Path]:
    if program is not None:
        lib = program.resolve().parent.parent / "lib"
        yield lib / "python3" / "dist-packages"
        for python in sorted(lib.glob("python3*")):
            yield python / "site-packages"
            yield python / "dist-packages"
    spec = importlib.util.find_spec("pycriu")
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin).parent.parent
    yield _SYSTEM
