"""The memory of a checkpoint as clones share it: made once, looked at before it is used again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import msgspec

from cria.criu.images import CriuImages
from cria.criu.images.files import AddedFile, FilesImage, add_files
from cria.errors import CannotShare, NoSpace
from cria.events import OnBytes
from cria.memory.shared import directory as places
from cria.memory.shared.builder import build
from cria.memory.shared.directory import SharedMemory, SharedProcess
from cria.memory.shared.selection import Allocators, Selection, select_mappings
from cria.model.manifest import MANIFEST, MEMORY, GpuState
from cria.system import digests

VERSION = 1


class _Part(msgspec.Struct, frozen=True, kw_only=True):
    """A file as it was when it was made. Whoever writes to one later cannot keep its change time."""

    name: str
    inode: int
    size_bytes: int
    changed_ns: int


class _Description(msgspec.Struct, frozen=True, kw_only=True):
    version: int = VERSION
    processes: tuple[SharedProcess, ...]
    mapped: tuple[AddedFile, ...]
    parts: tuple[_Part, ...]


class BackingStore:
    """The files for one checkpoint, in a directory that is named by what the checkpoint holds."""

    def __init__(
        self, path: Path, images: CriuImages, gpu_state: GpuState | None, place: Path | None
    ) -> None:
        """`path` is the checkpoint's, `images` its images. Raises CannotShare where its memory is not in plain images."""
        if (path / MEMORY).exists():
            raise CannotShare(
                f"the memory of {path} is compressed",
                remedy="take a checkpoint without --compress",
            )
        self._images = images
        self._ranks = frozenset(gpu_state.ranks if gpu_state is not None else ())
        self._is_beside = place is None
        self.place = (place or places.default_directory(path)).absolute()
        # The manifest has the digest of every part and the time of the dump.
        self._key = digests.whole(path / MANIFEST)[:32]
        self.directory = self.place / self._key
        self._description: _Description | None = None

    def ensure(self, moved: OnBytes) -> SharedMemory:
        """Make it, unless it is there and as it was made; `moved` is told the bytes.

        Restores that want the same at once wait for the first. Raises CannotShare, NoSpace or NotWritable.
        """
        places.prepare(self.place)
        with places.locked(self.place):
            self._description = self._read()
            made = self._description is None
            # In a directory that somebody named, others may be about to use theirs.
            if made and self._is_beside:
                places.remove_unused(self.place, self._key)
            if made:
                self._description = self._make(moved)
        return self._told(made)

    def link_into(self, view: Path, files: FilesImage) -> FilesImage:
        """Replace in a private view of the images what is shared by mappings of the files here.

        Returns `files`, the files.img of the view, with the files here.
        """
        assert self._description is not None
        for part in self._description.parts:
            if part.name.endswith(".img"):
                link = view / part.name
                link.unlink(missing_ok=True)
                link.symlink_to(self.directory / part.name)
        # Where they are now: the directory may have been moved, with the checkpoint beside it.
        return add_files(files, [self._there(each) for each in self._description.mapped])

    def _told(self, made: bool) -> SharedMemory:
        assert self._description is not None
        known = self._description.processes
        return SharedMemory(
            place=str(self.directory),
            made=made,
            shared_bytes=sum(process.shared_bytes for process in known),
            copied_bytes=sum(process.copied_bytes for process in known),
            processes=known,
        )

    def _read(self) -> _Description | None:
        """The description of what is there; None where it is not as it was made."""
        try:
            text = (self.directory / places.DESCRIPTION).read_bytes()
            found = msgspec.json.decode(text, type=_Description)
            whole = found.version == VERSION and found.parts == _parts(self.directory)
        except (OSError, msgspec.DecodeError):
            return None
        return found if whole else None

    def _make(self, moved: OnBytes) -> _Description:
        """Under another name until it is whole."""
        partial = self.directory.with_suffix(places.PARTIAL)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(mode=0o700)
            processes, made = self._fill(partial, moved)
            found = _Description(processes=processes, mapped=made, parts=_parts(partial))
            _write(partial / places.DESCRIPTION, msgspec.json.encode(found))
            shutil.rmtree(self.directory, ignore_errors=True)
            partial.rename(self.directory)
        except OSError as error:
            raise _no_space(self.place, error) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return found

    def _fill(
        self, out: Path, moved: OnBytes
    ) -> tuple[tuple[SharedProcess, ...], tuple[AddedFile, ...]]:
        from concurrent.futures import ThreadPoolExecutor  # only needed where it is not there yet

        images, partial = self._images, CriuImages(out, self._images.program)
        paths = {file.file_id: file.path for file in images.regular_files()}
        highest = images.files.highest_id
        known = [images.memory(pid) for pid in images.pids]
        allocators = Allocators()
        choices = [
            select_mappings(m, self._why_not(m.pid) or allocators.why_not(m, paths)) for m in known
        ]
        # A file for each process: CRIU takes a child's mapping for its parent's where both are at one
        # address and of one file, whatever their offsets.
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            futures = [
                pool.submit(
                    build,
                    images,
                    partial,
                    each,
                    choice,
                    file_id=highest + number,
                    room=places.largest_growth(),
                    moved=moved,
                )
                for number, (each, choice) in enumerate(zip(known, choices, strict=True), start=1)
                if choice.mappings
            ]
        made = tuple(self._there(future.result()) for future in futures)
        return tuple(_process(m.pid, c) for m, c in zip(known, choices, strict=True)), made

    def _there(self, made: AddedFile) -> AddedFile:
        """The file under the name that it will have."""
        return msgspec.structs.replace(made, path=str(self.directory / Path(made.path).name))

    def _why_not(self, pid: int) -> str | None:
        return "it holds what was on a GPU" if pid in self._ranks else None


def _process(pid: int, choice: Selection) -> SharedProcess:
    return SharedProcess(
        pid=pid,
        shared_bytes=choice.shared_bytes,
        copied_bytes=choice.copied_bytes,
        why_not=choice.why_not,
    )


def _parts(directory: Path) -> tuple[_Part, ...]:
    return tuple(_part(path) for path in _made(directory))


def _made(directory: Path) -> Iterable[Path]:
    return sorted(path for path in directory.iterdir() if path.name != places.DESCRIPTION)


def _part(path: Path) -> _Part:
    found = path.lstat()
    return _Part(
        name=path.name,
        inode=found.st_ino,
        size_bytes=found.st_size,
        changed_ns=found.st_ctime_ns,
    )


def _write(path: Path, text: bytes) -> None:
    with path.open("xb") as file:
        path.chmod(0o600)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _no_space(place: Path, error: OSError) -> CannotShare | NoSpace:
    if error.errno in places.NO_SPACE:
        return NoSpace(
            f"{place} has no space for the memory that clones share",
            details=error.strerror,
            remedy="name a directory that has: --share-in DIR",
        )
    return CannotShare(f"{place} cannot hold memory that clones share", details=str(error))
