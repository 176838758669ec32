"""Checkpoint archives as container runtimes write them, made of a few messages and no CRIU."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from cria.criu import program
from cria.criu.images import framing
from cria.criu.images.directory import CriuImages
from cria.criu.images.files import FilesImage
from cria.criu.images.framing import COMMON
from cria.criu.messages import load
from cria.system.compression import Compression, compression_of, reader, writer

LOOPBACK = 0x0100007F
UNKNOWN_FIELD = b"\xfa\x3f\x03abc"  # field 1023, three bytes: what a newer CRIU might add
PAGES = bytes(range(256)) * 5000
CONFIG = {
    "id": "0123456789ab",
    "name": "server",
    "rootfsImageName": "registry.example/model:1",
    "rootfsImageRef": "registry.example/model@sha256:00",
    "runtime": "runc",
    "checkpointedTime": "2026-01-01T00:00:00Z",
}
CONTAINERD = {
    "io.kubernetes.cri.container-name": "server",
    "io.kubernetes.cri.sandbox-name": "engine-0",
    "io.kubernetes.cri.sandbox-namespace": "models",
}
CRI_O = {
    "io.container.manager": "cri-o",
    "io.kubernetes.container.name": "server",
    "io.kubernetes.pod.name": "engine-0",
    "io.kubernetes.pod.namespace": "models",
}
PODMAN = {"io.container.manager": "libpod"}


def word(number: int) -> bytes:
    return number.to_bytes(4, "little")


def image(kind: int, *messages: Any, common: bool = True) -> bytes:
    header = (word(COMMON) if common else b"") + word(kind)
    return framing.join(header, (message.SerializeToString() for message in messages))


def complete(message: Any) -> Any:
    """Set every required field that `message` lacks to zero or empty, and return it."""
    while missing := message.FindInitializationErrors():
        *way, last = missing[0].split(".")
        owner = message
        for name in way:
            key, _, index = name.partition("[")
            owner = getattr(owner, key)
            owner = owner[int(index[:-1])] if index else owner
        if owner.DESCRIPTOR.fields_by_name[last].message_type:
            getattr(owner, last).SetInParent()
        else:
            setattr(owner, last, getattr(owner, last))
    return message


def inet(fdinfo: ModuleType, number: int, port: int, to: int = 0, **fields: Any) -> Any:
    """Return a listener on `port`, or a connection from there to the port `to`, all on loopback."""
    message = fdinfo.file_entry(type=4, id=number)
    isk = {"id": number, "ino": 100 + number, "family": 2, "type": 1, "proto": 6, "ns_id": 7}
    isk |= {"state": 1 if to else 10, "src_port": port, "dst_port": to, "flags": 2, "backlog": 0}
    isk |= {"src_addr": [LOOPBACK], "dst_addr": [LOOPBACK if to else 0]} | fields
    message.isk.SetInParent()
    for name, value in isk.items():
        field = getattr(message.isk, name)
        field.extend(value) if isinstance(value, list) else setattr(message.isk, name, value)
    return complete(message)


def unix(fdinfo: ModuleType, number: int, name: bytes) -> Any:
    message = fdinfo.file_entry(type=5, id=number)
    fields = {"id": number, "ino": 100 + number, "type": 1, "state": 10, "name": name}
    message.usk.SetInParent()
    for field, value in fields.items():
        setattr(message.usk, field, value)
    return complete(message)


def engine(fdinfo: ModuleType) -> tuple[Any, ...]:
    """Return the sockets of an engine: HTTP on 8000 with a client from outside, and a pair through a listener on 5000."""
    return (
        inet(fdinfo, 1, 8000, src_addr=[0]),
        inet(fdinfo, 2, 8000, 60000),
        inet(fdinfo, 3, 5000),
        inet(fdinfo, 4, 5000, 40000),
        inet(fdinfo, 5, 40000, 5000),
        unix(fdinfo, 6, b"\0name"),
        unix(fdinfo, 7, b"/tmp/socket"),
    )


def members(
    fdinfo: ModuleType, *sockets: Any, annotations: Mapping[str, str] = CONTAINERD
) -> dict[str, bytes]:
    """Return the files of an archive, in the order in which containerd writes them."""
    core, pstree = load("core", program.find()), load("pstree", program.find())
    task = core.core_entry(mtype=1)
    task.tc.comm = "python"
    held = [fdinfo.fdinfo_entry(id=n, type=4, fd=n, flags=0) for n in (1, 3)]
    process = {"args": ["serve", "--port", "8000"], "env": ["PORT=8000", "SIZE=18000"]}
    return {
        "checkpoint/core-7.img": image(framing.CORE, complete(task)),
        "checkpoint/fdinfo-2.img": image(framing.FDINFO, *held),
        "checkpoint/files.img": image(framing.FILES, *(sockets or engine(fdinfo))),
        "checkpoint/ids-7.img": image(framing.IDS, complete(core.task_kobj_ids_entry(files_id=2))),
        "checkpoint/inventory.img": image(framing.INVENTORY, common=False),
        "checkpoint/pages-1.img": PAGES,
        "checkpoint/pages-2.img": PAGES[:5000],
        "checkpoint/pstree.img": image(
            framing.PSTREE, complete(pstree.pstree_entry(pid=7, threads=[7, 8]))
        ),
        "config.dump": json.dumps(CONFIG).encode(),
        "dump.log": b"nothing to tell",
        "rootfs-diff.tar": b"not looked into",
        "spec.dump": json.dumps({"annotations": dict(annotations), "process": process}).encode(),
        "status.dump": b'{"annotations": {"ports": "[{\\"containerPort\\":8000}]"}}',
    }


def tar(files: Mapping[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    """Return a tar of `files`, with the directory that runtimes put first."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        directory = tarfile.TarInfo("checkpoint/")
        directory.type, directory.mode = tarfile.DIRTYPE, 0o700
        archive.addfile(directory)
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            # A broken number makes an extended header in a pax tar, as containerd's times do.
            entry.size, entry.mode, entry.mtime = len(content), 0o600, 1700000000.5
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def stored(path: Path, content: bytes, compression: Compression = "none") -> Path:
    with path.open("wb") as file, writer(file, compression) as stream:
        stream.write(content)
    return path


def files_of(path: Path) -> dict[str, bytes]:
    """Return the files in the archive at `path`, which may be compressed."""
    with path.open("rb") as file:
        kind = compression_of(file.read(8))
        file.seek(0)
        content = reader(file, kind).read()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        files = {member.name: archive.extractfile(member) for member in archive if member.isfile()}
        return {name: file.read() for name, file in files.items() if file}


def sockets_of(path: Path) -> tuple[Any, ...]:
    return parsed(path).inet_sockets


def parsed(path: Path) -> FilesImage:
    contents = {"files.img": files_of(path)["checkpoint/files.img"]}
    return CriuImages(path, program.find(), contents=contents).files
