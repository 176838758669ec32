"""The backing store of a checkpoint: files with its memory that all clones on this host map."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import msgspec

from cria.criu.images.directory import CriuImages
from cria.criu.images.files import AddedFile, FilesImage, add_files
from cria.criu.images.memory import Memory
from cria.errors import CannotShare, NoSpace
from cria.events import OnBytes
from cria.memory.shared import directory as directories
from cria.memory.shared.builder import build
from cria.memory.shared.directory import SharedMemory, SharedProcess
from cria.memory.shared.selection import Allocators, Selection, select_mappings
from cria.model.manifest import MANIFEST, MEMORY, GpuState
from cria.system import digests
from cria.system.host import memory_and_swap

VERSION = 1
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class _File(msgspec.Struct, frozen=True, kw_only=True):
    """A file as it was when it was built: a program that writes to it later changes `changed_ns`."""

    name: str
    inode: int
    size_bytes: int
    changed_ns: int


class _Description(msgspec.Struct, frozen=True, kw_only=True):
    version: int = VERSION
    processes: tuple[SharedProcess, ...]
    mapped: tuple[AddedFile, ...]
    files: tuple[_File, ...] = msgspec.field(name="parts")


class BackingStore:
    """The backing store of one checkpoint, in a directory named by a digest of the checkpoint."""

    _description: _Description  # set by ensure()

    def __init__(
        self,
        checkpoint: Path,
        images: CriuImages,
        gpu_state: GpuState | None,
        directory: Path | None,
    ) -> None:
        """Use the backing store in `directory`, or beside the checkpoint where it is None.

        Raises CannotShare where the memory of the checkpoint is compressed.
        """
        if (checkpoint / MEMORY).exists():
            raise CannotShare(
                f"the memory of {checkpoint} is compressed",
                remedy="take a checkpoint without --compress",
            )
        self._images = images
        self._gpu_pids = frozenset(gpu_state.ranks if gpu_state is not None else ())
        self._is_default = directory is None
        self._directory = (directory or directories.default_directory(checkpoint)).absolute()
        # The manifest has the digest of every part and the time of the dump.
        self._key = digests.whole(checkpoint / MANIFEST)[:32]
        self.path = self._directory / self._key

    def ensure(self, moved: OnBytes) -> SharedMemory:
        """Build the backing store, unless it exists and nobody has changed it.

        Calls `moved` with the bytes that are copied. Of several restores that need it at once, the first
        builds it and the others wait. Raises CannotShare, NoSpace or NotWritable.
        """
        directories.prepare(self._directory)
        with directories.locked(self._directory):
            description = self._read()
            is_missing = description is None
            if description is None:
                # Only in the checkpoint's own directory: in one that a user named, another restore may
                # be about to use a backing store that no process maps yet.
                if self._is_default:
                    directories.remove_unused(self._directory, self._key)
                description = self._build(moved)
        self._description = description
        return SharedMemory(
            place=str(self.path),
            made=is_missing,
            shared_bytes=sum(process.shared_bytes for process in description.processes),
            copied_bytes=sum(process.copied_bytes for process in description.processes),
            processes=description.processes,
        )

    def link_into(self, view: Path, files: FilesImage) -> FilesImage:
        """Let a private view of the images map the files of the backing store.

        Returns `files`, the files.img of the view, with these files. ensure() must have been called.
        """
        for file in self._description.files:
            if file.name.endswith(".img"):
                link = view / file.name
                link.unlink(missing_ok=True)
                link.symlink_to(self.path / file.name)
        # By the path that they have now: the directory may have been moved together with the checkpoint.
        return add_files(files, [self._final(file) for file in self._description.mapped])

    def _read(self) -> _Description | None:
        """Return the description, or None where there is no store or a file of it was changed."""
        try:
            content = (self.path / directories.DESCRIPTION).read_bytes()
            description = msgspec.json.decode(content, type=_Description)
            is_valid = description.version == VERSION and description.files == _files(self.path)
        except (OSError, msgspec.DecodeError):
            return None
        return description if is_valid else None

    def _build(self, moved: OnBytes) -> _Description:
        """Build the store under another name, and rename it when it is complete."""
        partial = self.path.with_suffix(directories.PARTIAL)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(mode=0o700)
            processes, mapped = self._build_files(partial, moved)
            description = _Description(processes=processes, mapped=mapped, files=_files(partial))
            _write(partial / directories.DESCRIPTION, msgspec.json.encode(description))
            shutil.rmtree(self.path, ignore_errors=True)
            partial.rename(self.path)
        except OSError as error:
            raise _building_failed(self._directory, error) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return description

    def _build_files(
        self, target: Path, moved: OnBytes
    ) -> tuple[tuple[SharedProcess, ...], tuple[AddedFile, ...]]:
        from concurrent.futures import ThreadPoolExecutor  # only a first restore builds a store

        images, partial = self._images, CriuImages(target, self._images.program)
        highest_id = images.files.highest_id
        memories = [images.memory(pid) for pid in images.pids]
        selections = self._select(memories)
        # No mapping can grow to more than all memory and swap of this host.
        growth = memory_and_swap()
        # A file for each process. In one file for all, CRIU takes a child's mapping for one inherited from
        # its parent where both are of that file and at one address, although their offsets differ.
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            futures = [
                pool.submit(
                    build,
                    images,
                    partial,
                    memory,
                    selection.mappings,
                    file_id=highest_id + number,
                    growth=growth,
                    moved=moved,
                )
                for number, (memory, selection) in enumerate(
                    zip(memories, selections, strict=True), start=1
                )
                if selection.mappings
            ]
        mapped = tuple(self._final(future.result()) for future in futures)
        processes = (
            _shared_process(memory.pid, selection)
            for memory, selection in zip(memories, selections, strict=True)
        )
        return tuple(processes), mapped

    def _select(self, memories: list[Memory]) -> list[Selection]:
        paths = {file.file_id: file.path for file in self._images.regular_files()}
        allocators = Allocators()
        return [
            select_mappings(memory, self._why_not(memory.pid) or allocators.why_not(memory, paths))
            for memory in memories
        ]

    def _why_not(self, pid: int) -> str | None:
        return "it holds GPU memory" if pid in self._gpu_pids else None

    def _final(self, file: AddedFile) -> AddedFile:
        """Return a file of the store with the path that it has in the complete store."""
        return msgspec.structs.replace(file, path=str(self.path / Path(file.path).name))


def _shared_process(pid: int, selection: Selection) -> SharedProcess:
    return SharedProcess(
        pid=pid,
        shared_bytes=selection.shared_bytes,
        copied_bytes=selection.copied_bytes,
        why_not=selection.why_not,
    )


def _files(directory: Path) -> tuple[_File, ...]:
    """Return all files of a store but its description."""
    paths = sorted(path for path in directory.iterdir() if path.name != directories.DESCRIPTION)
    return tuple(_file(path) for path in paths)


def _file(path: Path) -> _File:
    status = path.lstat()
    return _File(
        name=path.name,
        inode=status.st_ino,
        size_bytes=status.st_size,
        changed_ns=status.st_ctime_ns,
    )


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        path.chmod(0o600)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _building_failed(directory: Path, error: OSError) -> CannotShare | NoSpace:
    if error.errno in _NO_SPACE:
        return NoSpace(
            f"{directory} has no space for the memory that clones share",
            details=error.strerror,
            remedy="name a directory that has: --share-in DIR",
        )
    return CannotShare(f"{directory} cannot hold memory that clones share", details=str(error))
