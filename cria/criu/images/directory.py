"""The images of one dump: each is read once, and what was decoded is kept."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from cria.criu.images import files, framing, memory, summary
from cria.criu.images.files import FilesImage, ImageSocket, RegularFile, UnixSocket
from cria.criu.images.framing import Image
from cria.criu.images.memory import Memory, Run
from cria.criu.images.schema import PstreeEntry, Schema, decoding
from cria.criu.images.summary import MACHINES, Holder, ImageInventory, ImageProcess
from cria.criu.messages import MessageClass
from cria.errors import CheckpointMissing, NotWritable

M = TypeVar("M")


class CriuImages:
    """The images in a directory, or those of an archive in memory.

    An image is read when it is first asked for. All that is read raises CheckpointMissing where there is
    no such image and CheckpointDamaged where it is not whole. Threads may share an instance.
    """

    def __init__(
        self,
        path: Path,
        program: Path | None = None,
        *,
        contents: Mapping[str, bytes] | None = None,
    ) -> None:
        """Decode with the pycriu that belongs to the CRIU `program`.

        Without `contents` the images are the files in the directory `path`. With `contents`, whole
        images by their names, they are of the archive `path`, which is not read.
        """
        self.path = path
        self.program = program
        self.schema = Schema(program)
        self._contents = contents
        self._memory: dict[int, Memory] = {}

    @cached_property
    def files(self) -> FilesImage:
        """files.img."""
        image = self._read(files.NAME, framing.FILES)
        return FilesImage(image, self.schema, self._called(files.NAME))

    def inet_sockets(self) -> tuple[ImageSocket, ...]:
        """Return every inet socket, in the order of files.img."""
        return self.files.inet_sockets

    def unix_sockets(self) -> tuple[UnixSocket, ...]:
        """Return every unix socket, in the order of files.img."""
        return self.files.unix_sockets

    def regular_files(self) -> tuple[RegularFile, ...]:
        """Return every regular file, in the order of files.img."""
        return self.files.regular_files

    @cached_property
    def inventory(self) -> ImageInventory:
        """How the images were made."""
        name = "inventory.img"
        entries = self._messages(name, framing.INVENTORY, self.schema.inventory_entry)
        if not entries:
            raise framing.damaged(self._called(name), "it holds no entry")
        return summary.inventory(entries[0])

    @cached_property
    def processes(self) -> tuple[ImageProcess, ...]:
        """Every process, parents before children."""
        return tuple(map(summary.process, self._pstree))

    @cached_property
    def remapped_ids(self) -> frozenset[int]:
        """The IDs in files.img of the files that had no path at the dump."""
        name = "remap-fpath.img"
        entries = self._if_present(name, framing.REMAP_FPATH, self.schema.remap_entry)
        return frozenset(entry.orig_id for entry in entries)

    @cached_property
    def holders(self) -> tuple[Holder, ...]:
        """Every process with its name and the files that it has open; zombies have none."""
        return tuple(map(self._holder, self._pstree))

    @property
    def pids(self) -> list[int]:
        """The processes whose memory is in the images, ascending."""
        return sorted(int(path.stem.split("-")[1]) for path in self.path.glob("mm-*.img"))

    def memory(self, pid: int) -> Memory:
        """Return the mappings of a process, and where its pages lie in its pages file."""
        if pid not in self._memory:
            pages_id, runs = self._pagemap(pid)
            image = self.mm(pid)
            with decoding(self._called(memory.mm_name(pid))):
                mappings = memory.mappings(image, self.schema)
            read = Memory(pid=pid, pages_id=pages_id, mappings=mappings, runs=runs)
            memory.check_pages_file(read, self.path)
            self._memory[pid] = read
        return self._memory[pid]

    def runs(self, pid: int) -> tuple[Run, ...]:
        """Return the runs of a pagemap, whatever is in the pages file."""
        return self._pagemap(pid)[1]

    def mm(self, pid: int) -> Image:
        """Read the image with the mappings of a process; see cria.criu.images.memory to edit it."""
        name = memory.mm_name(pid)
        image = self._read(name, framing.MM)
        if not image.entries:
            raise framing.damaged(self._called(name), "it holds no entry")
        return image

    def queued_bytes(self, inode: int) -> int:
        """Return how much is in the queues, both ways, of the connected TCP socket `inode`."""
        path = self.path / f"tcp-stream-{inode:x}.img"
        payload = framing.first(path, framing.TCP_STREAM)  # the content of the queues follows it
        with decoding(path):
            entry = self.schema.tcp_stream_entry.FromString(payload)
        return entry.inq_len + entry.outq_len

    # Only images that are not published yet are written to.

    def write_files(self, changed: FilesImage) -> None:
        """Replace files.img. Raises NotWritable or NoSpace."""
        changed.write(self.path)
        self.files = changed

    def write_pagemap(self, pid: int, pages_id: int, runs: Iterable[Run]) -> None:
        """Replace the pagemap of a process: the pages of `runs` must lie in the pages file in this order."""
        image = memory.make_pagemap(pages_id, runs, self.schema)
        framing.write(self.path / memory.pagemap_name(pid), image)
        self._memory.pop(pid, None)

    def write_mm(self, pid: int, image: Image) -> None:
        """Replace the image with the mappings of a process."""
        framing.write(self.path / memory.mm_name(pid), image)
        self._memory.pop(pid, None)

    @cached_property
    def _pstree(self) -> tuple[PstreeEntry, ...]:
        return self._messages("pstree.img", framing.PSTREE, self.schema.pstree_entry)

    def _holder(self, entry: PstreeEntry) -> Holder:
        name = f"core-{entry.pid}.img"
        cores = self._if_present(name, framing.CORE, self.schema.core_entry)
        core = cores[0] if cores else None
        return Holder(
            pid=entry.pid,
            parent=entry.ppid,
            name=core.tc.comm if core is not None else "",
            threads=len(entry.threads),
            machine=MACHINES.get(core.mtype, "") if core is not None else "",
            file_ids=self._file_ids(entry.pid),
        )

    def _file_ids(self, pid: int) -> frozenset[int]:
        ids = self._if_present(f"ids-{pid}.img", framing.IDS, self.schema.ids_entry)
        if not ids:
            return frozenset()
        name = f"fdinfo-{ids[0].files_id}.img"
        entries = self._if_present(name, framing.FDINFO, self.schema.fdinfo_entry)
        return frozenset(entry.id for entry in entries)

    def _pagemap(self, pid: int) -> tuple[int, tuple[Run, ...]]:
        name = memory.pagemap_name(pid)
        image = self._read(name, framing.PAGEMAP)
        with decoding(self._called(name)):
            return memory.pagemap(image, self.schema)

    def _messages(self, name: str, kind: int, message: MessageClass[M]) -> tuple[M, ...]:
        image = self._read(name, kind)
        with decoding(self._called(name)):
            return tuple(map(message.FromString, image.entries))

    def _if_present(self, name: str, kind: int, message: MessageClass[M]) -> tuple[M, ...]:
        return self._messages(name, kind, message) if self._has(name) else ()

    def _has(self, name: str) -> bool:
        if self._contents is None:
            return (self.path / name).exists()
        return name in self._contents

    def _read(self, name: str, kind: int) -> Image:
        if self._contents is None:
            return framing.read(self.path / name, kind)
        if name not in self._contents:
            raise CheckpointMissing(f"{self._called(name)} does not exist")
        return framing.parse(self._contents[name], self._called(name), kind)

    def _called(self, name: str) -> object:
        """Return what errors call an image."""
        return self.path / name if self._contents is None else f"{name} in {self.path}"


def private_view(images_dir: Path, view: Path) -> Path:
    """Make `view` a directory of links to the images in `images_dir`, and return it.

    A restore writes its own files.img over the link and leaves the original alone. Logs and statistics
    are left out, for CRIU would write through their links. Raises NotWritable.
    """
    try:
        view.mkdir(parents=True, exist_ok=True)
        target = images_dir.resolve()
        # Strings, not Path: there are a hundred names, and every restore waits for this.
        for name in os.listdir(target):  # noqa: PTH208
            if name.endswith(".img") or name == "parent":
                os.symlink(f"{target}/{name}", f"{view}/{name}")  # noqa: PTH211
    except OSError as error:
        raise NotWritable(
            f"{view} cannot hold a view of {images_dir}", details=str(error)
        ) from error
    return view
