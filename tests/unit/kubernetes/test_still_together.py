"""Several engines of a container on their way to one still point, and who is taken for an engine."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any, cast

import pytest

from cria.errors import UsageError
from cria.kubernetes.kubelet.cluster import KubeletAccess
from cria.kubernetes.kubelet.pods import RunningContainer
from cria.kubernetes.kubelet.quiesce import (
    ContainerQuiesceSession,
    QuiescedEngine,
    QuiesceOptions,
    _Answer,
)
from cria.kubernetes.node import criu_action, in_pod
from cria.kubernetes.node import criu_shared_memory as shared
from cria.kubernetes.node.criu_action import Engine, Failed

WISH = {"command": "pause", "inflight": "keep", "seconds": 60.0, "lease": 90.0}


class ApiServer:
    """One of several in front of the same engine, `core`: the pause belongs to who asks first."""

    def __init__(self, core: dict[str, Any], *, gone_on: bool = False) -> None:
        self.core, self.gone_on = core, gone_on
        self.ours = False
        self.asked: list[tuple[str, float]] = []

    def ask(self, command: str, seconds: float, **words: Any) -> dict[str, Any]:
        self.asked.append((command, seconds))
        if command == "pause":
            self.ours = not self.core["paused"]
            self.core["paused"] = True
            return {"paused": True, "by_cria": self.ours}
        if command == "quiesce":
            return {"workers": 1, "groups": 5, "dropped_bytes": 4096}
        if command == "renew":
            if not self.ours or self.gone_on:
                raise Failed("renew: nothing to renew")
            return {"lease_seconds": words["lease"]}
        ours, self.ours = self.ours, False
        self.core["paused"] = self.core["paused"] and not ours
        return {"resumed": ours}


def engines(*servers: ApiServer) -> list[Engine]:
    return cast("list[Engine]", list(servers))


def test_api_servers_of_one_engine_share_its_pause() -> None:
    core = {"paused": False}
    first, second = ApiServer(core), ApiServer(core)

    answer = in_pod.carry_out(WISH, engines(first, second))

    assert len(answer["engines"]) == 2
    assert answer["lease_seconds"] == 90.0
    assert [command for command, _ in second.asked] == ["pause", "quiesce"]
    assert in_pod.carry_out({"command": "resume"}, engines(first, second)) == {
        "resumed": [True, False]
    }
    assert not core["paused"]


def test_an_engine_that_somebody_else_has_paused_is_dumped_and_stays_so() -> None:
    core = {"paused": True}

    answer = in_pod.carry_out(WISH, engines(ApiServer(core)))
    in_pod.carry_out({"command": "resume"}, engines(ApiServer(core)))

    assert answer["lease_seconds"] is None
    assert core["paused"]


def test_one_that_has_gone_on_while_another_came_to_rest_is_no_still_point() -> None:
    first, second = ApiServer({"paused": False}, gone_on=True), ApiServer({"paused": False})

    with pytest.raises(Failed, match="nothing to renew"):
        in_pod.carry_out(WISH, engines(first, second))

    assert not first.core["paused"]
    assert not second.core["paused"]


def test_all_of_them_have_so_much_time_together(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(criu_action.time, "monotonic", lambda: now[0])
    servers = [ApiServer({"paused": False}) for _ in range(2)]
    slow = servers[0].ask

    def ask(command: str, seconds: float, **words: Any) -> dict[str, Any]:
        now[0] += 20.0
        return slow(command, seconds, **words)

    monkeypatch.setattr(servers[0], "ask", ask)
    in_pod.carry_out(WISH, engines(*servers))

    assert [seconds for _, seconds in servers[1].asked[:2]] == [40.0, 20.0]


def test_sockets_with_odd_names_hinder_nobody(tmp_path: Path) -> None:
    path = tmp_path / "cria-0.sock"
    with (
        socket.socket(socket.AF_UNIX) as ours,
        socket.socket(socket.AF_UNIX) as broken,
        socket.socket(socket.AF_UNIX) as unreadable,
    ):
        ours.bind(str(path))
        broken.bind(f"{tmp_path}/a\n/cria-1.sock".replace("/cria", "cria"))
        unreadable.bind(os.fsencode(tmp_path) + b"/cria-\xff.sock")
        for each in (ours, broken, unreadable):
            each.listen()

        found = criu_action.find_engines(os.getpid())

    assert len(found) == 2


def test_an_engine_that_may_not_be_looked_into_is_not_taken_for_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_path: str) -> list[str]:
        raise PermissionError(13, "Permission denied")

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "cria-0.sock"))
        listening.listen()
        monkeypatch.setattr(criu_action.os, "listdir", refuse)

        with pytest.raises(PermissionError):
            criu_action.find_engines(os.getpid(), [os.getpid()])


def test_what_an_earlier_dump_left_is_overwritten_and_a_failed_one_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = tmp_path / shared.NAME
    for name, answer in {"same_mounts": False, "dumped_by_criu": False}.items():
        monkeypatch.setattr(shared, name, lambda *_, answer=answer: answer)
    monkeypatch.setattr(shared, "mount_of", lambda _root: 7)
    monkeypatch.setattr(shared, "used_files", lambda _tree: set())
    stale.write_text("of an earlier dump")

    assert shared.keep(os.getpid(), [], str(tmp_path)) == 0
    assert b"earlier" not in stale.read_bytes()

    monkeypatch.setattr(shared, "by_inode", lambda *_: [["no-such-file"]])
    with pytest.raises(FileNotFoundError):
        shared.keep(os.getpid(), [], str(tmp_path))
    assert not stale.exists()


def test_a_resume_that_is_interrupted_is_asked_for_again() -> None:
    asked: list[str] = []

    def ask(request: dict[str, Any], _seconds: float) -> _Answer:
        asked.append(request["command"])
        if asked == ["pause", "resume"]:
            raise KeyboardInterrupt
        stood = (QuiescedEngine(workers=1, groups=5, dropped_bytes=4096),)
        return _Answer(engines=stood, resumed=(True,))

    names = dict.fromkeys(RunningContainer.__struct_fields__, "x")
    place = RunningContainer(**names)
    point = ContainerQuiesceSession(place, QuiesceOptions(), ask, None)
    point.pause()
    with pytest.raises(KeyboardInterrupt):
        point.resume()

    point.resume()
    point.resume()

    assert asked == ["pause", "resume", "resume"]
    assert point.still.resumed


def test_a_kubelet_is_not_asked_in_clear() -> None:
    place = RunningContainer(**dict.fromkeys(RunningContainer.__struct_fields__, "x"))

    with pytest.raises(UsageError, match="in clear"):
        KubeletAccess(url="http://127.0.0.1:10255").url_of(place)
    assert KubeletAccess(url="https://node:10250").url_of(place) == "https://node:10250"
