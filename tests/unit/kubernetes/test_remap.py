"""A remapped archive differs only in its sockets; where it cannot be written there is nothing."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from runtime_archives import (
    UNKNOWN_FIELD,
    engine,
    files_of,
    inet,
    members,
    parsed,
    sockets_of,
    stored,
    tar,
    unix,
)

from cria.errors import (
    CheckpointDamaged,
    CheckpointExists,
    CriaError,
    NoSpace,
    PortPlanRefused,
    PortTaken,
    PortUnknown,
    UsageError,
)
from cria.events import Event, Progress
from cria.kubernetes.archive import remap as remapping
from cria.kubernetes.archive import splice
from cria.kubernetes.archive.remap import plan_remap, remap
from cria.network.requests import PortRequests
from cria.system.compression import Compression, compression_of, reader

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
FILES = "checkpoint/files.img"


def moved(archive: Path, new: Path, ports: Any = "8000=8001", **options: Any) -> Path:
    return remap(archive, new, ports=ports, other_host=True, **options).path


def uncompressed(path: Path) -> bytes:
    with path.open("rb") as file:
        kind = compression_of(file.read(8))
        file.seek(0)
        return reader(file, kind).read()


def around_files_img(path: Path) -> tuple[bytes, bytes, bytes]:
    """What stands before files.img's last header in the tar, that header, and what follows it."""
    data = uncompressed(path)
    at = data.index(f"{FILES}\0".encode())
    while data[at + 156 : at + 157] != b"0":  # an extended header names it first
        at = data.index(f"{FILES}\0".encode(), at + 1)
    size = int(data[at + 124 : at + 135], 8)
    end = at + 512 + size + -size % 512
    return data[:at], data[at : at + 512], data[end:]


@pytest.mark.parametrize("compressed", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("form", FORMATS)
def test_everything_but_files_img_is_byte_identical(
    form: str, compressed: Compression, files: dict[str, bytes], tmp_path: Path
) -> None:
    archive = stored(tmp_path / "old", tar(files, FORMATS[form]), compressed)
    untouched = archive.read_bytes()

    new = moved(archive, tmp_path / "new")

    old_parts, new_parts = around_files_img(archive), around_files_img(new)
    assert (old_parts[0], old_parts[2]) == (new_parts[0], new_parts[2])
    header = bytearray(new_parts[1])
    header[124:136], header[148:156] = old_parts[1][124:136], old_parts[1][148:156]
    assert bytes(header) == old_parts[1], "only its size and checksum differ"
    assert {name for name, data in files_of(new).items() if data != files[name]} == {FILES}
    assert compression_of(new.read_bytes()[:8]) == compressed
    assert archive.read_bytes() == untouched
    assert new.stat().st_mode & 0o777 == 0o600


def test_a_listener_and_both_ends_of_its_connections_move_together(
    archive: Path, tmp_path: Path
) -> None:
    new = moved(archive, tmp_path / "new", "8000=8001,5000=5100")

    ends = {
        socket.file_id: (socket.local.port, socket.peer and socket.peer.port)
        for socket in sockets_of(new)
    }
    assert ends[1] == (8001, None)
    assert ends[2] == (0, None), "the client outside sees its connection end"
    assert ends[3] == (5100, None)
    assert ends[4] == (5100, ends[5][0])
    assert ends[5] == (ends[5][0], 5100)
    assert ends[5][0] != 40000, "beside the original its own end is taken as well"


def test_fields_of_a_newer_criu_survive(fdinfo: ModuleType, tmp_path: Path) -> None:
    entry = fdinfo.file_entry.FromString(inet(fdinfo, 1, 8000).SerializeToString() + UNKNOWN_FIELD)
    archive = stored(tmp_path / "old", tar(members(fdinfo, entry)))

    (payload,) = parsed(moved(archive, tmp_path / "new")).image.entries

    assert UNKNOWN_FIELD in payload
    assert payload != entry.SerializeToString()


@pytest.mark.parametrize("count", [1, 5, 40])
def test_files_img_may_grow_over_the_blocks_of_a_tar(
    count: int, fdinfo: ModuleType, tmp_path: Path
) -> None:
    sockets = [inet(fdinfo, n, 100 + n) for n in range(1, count + 1)]  # a port above 127 is longer
    archive = stored(tmp_path / "old", tar(members(fdinfo, *sockets)))

    new = moved(archive, tmp_path / "new", "offset:30000")

    assert [socket.local.port for socket in sockets_of(new)] == [
        30100 + n for n in range(1, count + 1)
    ]
    assert files_of(new)["status.dump"] == files_of(archive)["status.dump"]


def test_an_archive_whose_ports_are_kept_does_not_change(
    fdinfo: ModuleType, tmp_path: Path
) -> None:
    sockets = [socket for socket in engine(fdinfo) if socket.id != 2]  # without the client
    archive = stored(tmp_path / "old", tar(members(fdinfo, *sockets)))

    assert moved(archive, tmp_path / "new", "keep").read_bytes() == archive.read_bytes()


def test_abstract_names_change_with_the_ports(archive: Path, tmp_path: Path) -> None:
    new = moved(archive, tmp_path / "new")

    names = {socket.file_id: socket.name for socket in parsed(new).unix_sockets}
    assert names[6].startswith(b"\0name.cria-")
    assert names[7] == b"/tmp/socket"


def test_an_abstract_name_of_full_length_keeps_its_length(
    fdinfo: ModuleType, tmp_path: Path
) -> None:
    full = b"\0" + b"n" * 107
    archive = stored(tmp_path / "old", tar(members(fdinfo, unix(fdinfo, 1, full))))

    (socket,) = parsed(moved(archive, tmp_path / "new", ())).unix_sockets

    assert len(socket.name) == 108
    assert socket.name != full


def test_an_address_moves(fdinfo: ModuleType, tmp_path: Path) -> None:
    pod = int.from_bytes(bytes((10, 0, 0, 5)), "little")
    archive = stored(tmp_path / "old", tar(members(fdinfo, inet(fdinfo, 1, 80, src_addr=[pod]))))

    new = moved(
        archive, tmp_path / "new", PortRequests.parse("keep", addresses=["10.0.0.5=10.0.0.9"])
    )

    assert str(sockets_of(new)[0].local) == "10.0.0.9:80"


def test_ports_in_use_are_avoided_unless_the_restore_is_on_another_host(
    fdinfo: ModuleType, tmp_path: Path, free_port: Any
) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        archive = stored(tmp_path / "old", tar(members(fdinfo, inet(fdinfo, 1, 8000))))
        with pytest.raises(PortTaken):
            remap(archive, tmp_path / "new", ports={8000: port})
        assert moved(archive, tmp_path / "new", {8000: port}).exists()


REFUSED: dict[str, tuple[Any, dict[str, str], type[CriaError]]] = {
    "an unknown port": ("8080=8081", {}, PortUnknown),
    "no port": ("8000=70000", {}, PortPlanRefused),
    "two on one": ("8000=9000,5000=9000", {}, PortPlanRefused),
    "clients that must go on": ("8000=8001", {"clients": "refuse"}, PortPlanRefused),
    "no request": ("8000>8001", {}, UsageError),
    "several copies at once": ("8000=8001..8004", {}, UsageError),
}


@pytest.mark.parametrize("what", REFUSED)
def test_requests_that_cannot_be_planned_are_refused_as_by_a_restore(
    what: str, archive: Path, tmp_path: Path
) -> None:
    ports, policies, kind = REFUSED[what]

    with pytest.raises(kind):
        moved(archive, tmp_path / "new", ports, **policies)
    with pytest.raises(kind):
        plan_remap(archive, ports=ports, other_host=True, **policies)
    assert os.listdir(tmp_path) == ["checkpoint.tar"]


@pytest.mark.parametrize("new", ["new", "oci:new"])
def test_a_full_disk_leaves_nothing(
    new: str, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(remapping, "splice_files", full)
    monkeypatch.setattr(remapping, "splice", full)

    with pytest.raises(NoSpace):
        moved(archive, Path(new)) if ":" not in new else remap(archive, new, other_host=True)

    assert os.listdir(tmp_path) == ["checkpoint.tar"]


@pytest.mark.parametrize("new", ["new", "oci:new"])
def test_an_archive_that_is_written_to_meanwhile_is_not_published(
    new: str, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = splice.write

    def write_and_touch(target: Any, data: bytes) -> None:
        write(target, data)
        os.utime(archive, (1, 1))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(splice, "write", write_and_touch)

    with pytest.raises(CheckpointDamaged) as error:
        remap(archive, new, ports="8000=8001", other_host=True)

    assert "changed while it was read" in str(error.value.details)
    assert os.listdir(tmp_path) == ["checkpoint.tar"]


@pytest.mark.parametrize("new", ["new", "oci:new"])
def test_an_existing_output_is_left_alone(
    new: str, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "new").mkdir()

    with pytest.raises(CheckpointExists):
        remap(archive, new, other_host=True)

    assert sorted(os.listdir(tmp_path)) == ["checkpoint.tar", "new"]


def test_without_copy_file_range_the_archive_is_copied_in_user_space(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: object) -> int:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    first = moved(archive, tmp_path / "first", "offset:10")
    monkeypatch.setattr(os, "copy_file_range", cannot)
    second = moved(archive, tmp_path / "second", "offset:10")

    # The unix sockets after the first five have random names.
    assert parsed(first).image.entries[:5] == parsed(second).image.entries[:5]
    assert around_files_img(first)[2] == around_files_img(second)[2]


def test_progress_ends_with_the_size_of_the_tar(archive: Path, tmp_path: Path) -> None:
    events: list[Event] = []

    moved(archive, tmp_path / "new", listener=events.append)

    last = [event for event in events if isinstance(event, Progress)][-1]
    assert last.done_bytes == last.total_bytes == archive.stat().st_size


def test_a_dry_run_writes_nothing_and_lists_what_still_names_the_port(archive: Path) -> None:
    planned = plan_remap(archive, ports="8000=8001", other_host=True)

    assert planned.ports.new_port(8000) == 8001
    assert [str(mention) for mention in planned.mentions] == [
        "spec.dump: process.args[2] still names 8000",
        "spec.dump: process.env PORT still names 8000",
        "status.dump: annotations.ports still names 8000",
    ]
    assert os.listdir(archive.parent) == ["checkpoint.tar"]


# As a container image ------------------------------------------------------------------------


def blob(image: Path, descriptor: dict[str, Any]) -> bytes:
    data = (image / "blobs" / descriptor["digest"].replace(":", "/")).read_bytes()
    assert descriptor["digest"] == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert descriptor["size"] == len(data)
    return data


@pytest.mark.parametrize(
    ("compressed", "suffix"), [("none", ""), ("gzip", "+gzip"), ("zstd", "+zstd")]
)
def test_an_image_holds_the_archive_as_its_layer(
    compressed: Compression, suffix: str, files: dict[str, bytes], tmp_path: Path
) -> None:
    archive = stored(tmp_path / "old", tar(files), compressed)

    result = remap(
        archive, f"oci:{tmp_path}/image:v1", ports="keep", clients="keep", other_host=True
    )

    (descriptor,) = json.loads((result.path / "index.json").read_text())["manifests"]
    manifest = json.loads(blob(result.path, descriptor))
    config = json.loads(blob(result.path, manifest["config"]))
    (layer,) = manifest["layers"]
    content = blob(result.path, layer)
    assert descriptor["annotations"] == {"org.opencontainers.image.ref.name": "v1"}
    assert result.digest == descriptor["digest"]
    assert layer["mediaType"] == f"application/vnd.oci.image.layer.v1.tar{suffix}"
    assert stored(tmp_path / "layer", content).read_bytes() == content
    assert uncompressed(tmp_path / "layer") == tar(files)
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(tar(files)).hexdigest()}"]
    assert (config["architecture"], config["os"]) == ("amd64", "linux")
    assert manifest["annotations"]["org.criu.checkpoint.container.name"] == "server"
    assert manifest["annotations"]["io.kubernetes.cri-o.annotations.checkpoint.name"] == "server"
    assert json.loads((result.path / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    modes = {path.stat().st_mode & 0o077 for path in (result.path, *result.path.rglob("*"))}
    assert modes == {0}


@pytest.mark.parametrize("output", ["oci:", "oci::v1", "oci:image:", "oci:image:a/b"])
def test_an_image_without_a_name_is_a_usage_error(output: str, archive: Path) -> None:
    with pytest.raises(UsageError):
        remap(archive, output, other_host=True)
