"""An archive is read with its origin and sizes; one that is broken or could do harm is refused with the reason."""

from __future__ import annotations

import json
import tarfile
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import pytest
from runtime_archives import (
    CONTAINERD,
    CRI_O,
    PAGES,
    PODMAN,
    image,
    members,
    stored,
    tar,
    word,
)

from cria.criu import program
from cria.criu.images import framing
from cria.errors import CheckpointDamaged, CheckpointMissing, CriaError
from cria.kubernetes.archive.plan import plan_archive, sockets
from cria.kubernetes.archive.reader import read_archive
from cria.network.requests import PortRequests
from cria.system.compression import Compression

Files = dict[str, bytes]


@pytest.mark.parametrize("compressed", ["none", "gzip", "zstd"])
def test_an_archive_is_read_with_its_sizes(
    compressed: Compression, files: Files, tmp_path: Path
) -> None:
    path = stored(tmp_path / "checkpoint.tar", tar(files), compressed)

    archive = read_archive(path)

    assert archive.compression == compressed
    assert archive.sizes.pages == len(PAGES) + 5000
    assert archive.sizes.rootfs == len(files["rootfs-diff.tar"])
    assert archive.sizes.archive == path.stat().st_size
    assert archive.sizes.unpacked == len(tar(files))
    (holder,) = archive.criu_images(program.find()).holders
    assert (holder.pid, holder.name, holder.threads, holder.machine) == (7, "python", 2, "amd64")


@pytest.mark.parametrize(
    ("annotations", "runtime", "pod"),
    [(CONTAINERD, "containerd", "engine-0"), (CRI_O, "CRI-O", "engine-0"), (PODMAN, "podman", "")],
)
def test_each_runtime_is_known_by_its_annotations(
    annotations: Mapping[str, str], runtime: str, pod: str, fdinfo: ModuleType, tmp_path: Path
) -> None:
    origin = read_archive(
        stored(tmp_path / "a", tar(members(fdinfo, annotations=annotations)))
    ).origin

    assert (origin.runtime, origin.pod, origin.container) == (runtime, pod, "server")
    assert (origin.image, origin.oci_runtime) == ("registry.example/model:1", "runc")


def test_sockets_name_the_processes_that_hold_them(archive: Path) -> None:
    images = read_archive(archive).criu_images(program.find())

    assert {socket.id: socket.owner for socket in sockets(images)} == {
        1: "PID 7 (python)",
        2: "",
        3: "PID 7 (python)",
        4: "",
        5: "",
    }


def without(files: Files, name: str) -> Files:
    return {key: value for key, value in files.items() if key != name}


def twice(files: Files) -> bytes:
    more = tar({"checkpoint//./files.img": files["checkpoint/files.img"]})
    return tar(files)[: -(20 * 512)].rstrip(b"\0") + bytes(512) + more


def renamed(files: Files, name: str) -> bytes:
    return tar(files | {name: b""})


def with_member(files: Files, kind: bytes, link: str) -> bytes:
    entry = tarfile.TarInfo("checkpoint/more.img")
    entry.type, entry.linkname = kind, link
    return entry.tobuf() + tar(files)


def announcing(files: Files, name: str, size: int) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size = size
    return entry.tobuf() + tar(files)


DAMAGED: dict[str, tuple[Callable[[Files], bytes], str]] = {
    "cut off in the middle": (lambda files: tar(files)[:9000], "ends too early"),
    "cut off before its end": (
        lambda files: tar(files).rstrip(b"\0")[: -len(files["status.dump"])],
        "ends too early",
    ),
    "without files.img": (
        lambda files: tar(without(files, "checkpoint/files.img")),
        "lacks checkpoint/files.img",
    ),
    "without pstree.img": (
        lambda files: tar(without(files, "checkpoint/pstree.img")),
        "lacks checkpoint/pstree.img",
    ),
    "with two files.img": (
        lambda files: tar({"./checkpoint/files.img": b""} | files),
        "'checkpoint/files.img' is there twice",
    ),
    "with two pages": (
        lambda files: tar(files | {"checkpoint//pages-1.img": b""}),
        "'checkpoint/pages-1.img' is there twice",
    ),
    "with an absolute name": (lambda files: renamed(files, "/etc/passwd"), "leads out of it"),
    "with a name that goes up": (
        lambda files: renamed(files, "checkpoint/../../x"),
        "leads out of it",
    ),
    "with a link out": (lambda files: with_member(files, tarfile.SYMTYPE, "/"), "symbolic link"),
    "with a hard link": (lambda files: with_member(files, tarfile.LNKTYPE, "a"), "hard link"),
    "with a device": (lambda files: with_member(files, tarfile.BLKTYPE, ""), "a device"),
    "with a long name": (lambda files: renamed(files, "a/" * 4000), "is no name"),
    "with a files.img of gigabytes": (
        lambda files: announcing(files, "checkpoint/files.img", 8 << 30),
        "8589934592 bytes, which is too much",
    ),
    "with something behind": (lambda files: tar(files) + b"x", "follows its end"),
    "with a config that is none": (
        lambda files: tar(files | {"config.dump": b"[1]"}),
        "config.dump or spec.dump",
    ),
    "with a config without end": (
        lambda files: tar(files | {"config.dump": b'{"a":' * 100_000}),
        "config.dump or spec.dump",
    ),
}


@pytest.mark.parametrize("compressed", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("what", DAMAGED)
def test_a_bad_archive_is_one_clear_error(
    what: str, compressed: Compression, files: Files, tmp_path: Path
) -> None:
    make, reason = DAMAGED[what]
    path = stored(tmp_path / "bad.tar", make(files), compressed)

    with pytest.raises(CheckpointDamaged) as error:
        read_archive(path)

    assert str(path) in error.value.message
    assert reason in str(error.value.details)


@pytest.mark.parametrize("compressed", ["gzip", "zstd"])
def test_a_compressed_stream_that_is_cut_off_or_changed_is_refused(
    compressed: Compression, files: Files, tmp_path: Path
) -> None:
    whole = stored(tmp_path / "whole", tar(files), compressed).read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 0xFF
    for data in (whole[: len(whole) // 2], whole[:-3], bytes(changed)):
        (tmp_path / "bad").write_bytes(data)
        with pytest.raises(CheckpointDamaged):
            read_archive(tmp_path / "bad")


OTHERS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "ends too early"),
    "text": (b"hello\n" * 500, "no tar"),
    "a tar of something": (tar({"a.txt": b"a", "b.txt": b"b"}), "holds a.txt, b.txt"),
    "an empty tar": (bytes(10240), "it holds nothing"),
    "a container image": (tar({"oci-layout": b"{}", "index.json": b"{}"}), "a container image"),
    "a pod's archive": (tar({"pod.options": b"", "pod.dump": b""}), "a whole pod"),
    "bzip2": (b"BZh91AY&SY", "compressed with bzip2"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_another_kind_of_file_is_refused_with_what_it_is(what: str, tmp_path: Path) -> None:
    data, reason = OTHERS[what]
    (tmp_path / "other").write_bytes(data)

    with pytest.raises(CriaError) as error:
        read_archive(tmp_path / "other")

    assert error.value.code == "not-a-checkpoint"
    assert reason in str(error.value.details)


def test_a_missing_file_and_a_directory_are_different_errors(tmp_path: Path) -> None:
    with pytest.raises(CheckpointMissing):
        read_archive(tmp_path / "nowhere")
    with pytest.raises(CriaError, match="no checkpoint archive") as error:
        read_archive(tmp_path)
    assert error.value.details == "it is not a file"


BROKEN_IMAGES: dict[str, bytes] = {
    "of an unknown magic": word(0x12345678) * 2,
    "of another kind": image(framing.PSTREE),
    "cut off": image(framing.FILES) + word(100) + b"abc",
    "with an entry that is no message": image(framing.FILES) + word(3) + b"\x08\x04\xff",
    "empty": b"",
}


@pytest.mark.parametrize("what", BROKEN_IMAGES)
@pytest.mark.parametrize("name", ["files.img", "pstree.img", "core-7.img", "ids-7.img"])
def test_a_broken_image_in_an_archive_is_one_clear_error(
    what: str, name: str, files: Files, tmp_path: Path
) -> None:
    data = BROKEN_IMAGES[what]
    if name == "pstree.img" and what == "of another kind":
        data = image(framing.FILES)
    path = stored(tmp_path / "bad", tar(files | {f"checkpoint/{name}": data}))

    with pytest.raises(CheckpointDamaged, match=name):
        archive = read_archive(path)
        plan_archive(archive, archive.criu_images(program.find()), PortRequests())


def test_a_compression_bomb_takes_no_memory(files: Files, tmp_path: Path) -> None:
    path = tmp_path / "bomb"
    stored(path, tar(files | {"checkpoint/pages-1.img": bytes(200 << 20)}), "zstd")
    tracemalloc.start()

    archive = read_archive(path)

    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    assert (archive.sizes.archive, archive.sizes.pages > 200 << 20) < (1 << 20, True)
    tracemalloc.stop()


def test_unknown_json_in_the_metadata_does_not_disturb(files: Files, tmp_path: Path) -> None:
    spec = json.loads(files["spec.dump"]) | {"unknown": [1, None, {"a": True}]}
    path = stored(tmp_path / "a", tar(files | {"spec.dump": json.dumps(spec).encode()}))

    assert read_archive(path).origin.runtime == "containerd"
