"""Old archives of a node are removed by number, size and age; archives without cria's manifest stay."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner
from fake_cluster import FakeCluster

from cria.cli.kubernetes.prune import command
from cria.errors import NotWritable, UsageError
from cria.kubernetes.kubelet import manifests
from cria.kubernetes.kubelet.prune import (
    RetentionPolicy,
    StoredArchive,
    list_archives,
    plan_removals,
    prune,
)
from cria.kubernetes.kubelet.quiesce import QuiesceOptions

DAY = 86400.0
BLOCK = 4096


def archives_of(container: str, *ages: float) -> list[StoredArchive]:
    return [
        StoredArchive(
            path=f"/{container}-{age:g}", container=container, bytes=100, seconds=age * DAY
        )
        for age in ages
    ]


def removed_paths(archives: list[StoredArchive], policy: RetentionPolicy) -> list[str]:
    newest_first = sorted(archives, key=lambda archive: archive.seconds)
    return sorted(removal.archive.path for removal in plan_removals(newest_first, policy))


@pytest.mark.parametrize(
    ("policy", "removed"),
    [
        (RetentionPolicy(keep=2), ["/a-3", "/a-4"]),
        (RetentionPolicy(keep=1), ["/a-2", "/a-3", "/a-4", "/b-9"]),
        (RetentionPolicy(max_bytes=400), ["/a-4", "/b-9"]),
        (RetentionPolicy(max_bytes=0), ["/a-2", "/a-3", "/a-4", "/b-9"]),
        (RetentionPolicy(days=3.5), ["/a-4", "/b-5", "/b-9"]),
        (RetentionPolicy(keep=3, max_bytes=10000, days=100), ["/a-4"]),
    ],
)
def test_archives_are_removed_that_the_policy_does_not_keep(
    policy: RetentionPolicy, removed: list[str]
) -> None:
    archives = [*archives_of("a", 1, 2, 3, 4), *archives_of("b", 5, 9)]

    assert removed_paths(archives, policy) == removed


@pytest.fixture
def node(fake_cluster: FakeCluster, tmp_path: Path) -> Path:
    """A directory of archives: three of one container with manifests, one of somebody else's."""
    directory = tmp_path / "checkpoints"
    directory.mkdir()
    fake_cluster.add("p")
    for day in (1, 2, 3):
        name = f"checkpoint-p_default-engine-2026-01-0{day}T00:00:00Z.tar"
        fake_cluster.archive = str(directory / "gone" / name)
        result = fake_cluster.checkpoint(manifests=directory, quiesce=QuiesceOptions(by="none"))
        aged = msgspec.structs.replace(result.manifest, created=f"2026-01-0{day}T00:00:00+00:00")
        manifests.write(aged, directory)
        (directory / name).write_bytes(b"x" * BLOCK)
    (directory / "checkpoint-q_default-other-2025-01-01T00:00:00Z.tar").write_bytes(b"x")
    return directory


def names(directory: Path) -> list[str]:
    return sorted(path.name.removesuffix(".cria.json")[-24:-14] for path in directory.iterdir())


def test_archives_are_removed_with_their_manifests_and_others_stay(node: Path) -> None:
    result = prune(node, RetentionPolicy(keep=1))

    assert (len(result.removed), len(result.kept), result.others) == (2, 1, 1)
    assert result.freed_bytes == 2 * BLOCK
    assert names(node) == ["2025-01-01", "2026-01-03", "2026-01-03"]


def test_a_dry_run_touches_nothing(node: Path) -> None:
    before = names(node)

    assert len(prune(node, RetentionPolicy(keep=1), dry_run=True).removed) == 2
    assert names(node) == before


def test_a_link_in_place_of_an_archive_is_not_followed(node: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("x")
    link = next(node.glob("*2026-01-01*.tar"))
    link.unlink()
    link.symlink_to(precious)

    archives, others = list_archives(node)
    prune(node, RetentionPolicy(days=0))

    assert (len(archives), others) == (2, 2)
    assert precious.exists()
    assert link.is_symlink()


def test_an_empty_policy_and_a_missing_directory_are_usage_errors(node: Path) -> None:
    with pytest.raises(UsageError, match="which archives to keep"):
        prune(node, RetentionPolicy())
    with pytest.raises(UsageError, match="not a directory"):
        prune(node / "nowhere", RetentionPolicy(keep=1))


def test_an_archive_that_cannot_be_removed_is_one_clear_error(
    node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(NotWritable, match="cannot be removed"):
        prune(node, RetentionPolicy(keep=1))


def test_the_command_shows_removals_with_sizes(node: Path) -> None:
    shown = CliRunner().invoke(command, [str(node), "--keep", "2", "--most", "10Ki", "--dry-run"])
    result = CliRunner().invoke(command, [str(node), "--most", "8Ki", "--json"])

    assert "its container has 2 newer ones" in shown.stdout
    assert "4 KiB would be freed; 2 of 8 KiB stay, and 1 without a manifest" in shown.stdout
    document = json.loads(result.stdout)
    assert [removal["why"] for removal in document["removed"]] == [
        "too large beside the newer ones"
    ]


@pytest.mark.parametrize("size", ["2 GB", "-1", "1.5Gi", "Gi"])
def test_a_text_that_is_no_size_is_a_usage_error(size: str, tmp_path: Path) -> None:
    assert CliRunner().invoke(command, [str(tmp_path), "--most", size]).exit_code == 2
