"""How the part of cria inside gets in: what cria run sets, and what that changes for other plugins."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints

import pytest
from cria_agent import plugin

from cria.engine.launch.launcher import AGENT_PATH, engine_settings


def plugins(*each: tuple[str, str]) -> EntryPoints:
    ours = (("vllm.general_plugins", "cria"), ("vllm.endpoint_plugins", "cria"))
    return EntryPoints(
        EntryPoint(name=name, value="m:f", group=group) for group, name in (*ours, *each)
    )


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The plugins beside ours, to be filled by a test; nothing is named in VLLM_PLUGINS."""
    others: list[tuple[str, str]] = []
    monkeypatch.setattr(
        plugin,
        "entry_points",
        lambda **chosen: plugins(*others).select(**chosen) if chosen else plugins(*others),
    )
    monkeypatch.setenv("VLLM_PLUGINS", "")
    monkeypatch.delenv("VLLM_PLUGINS")
    return others


def chosen(environment: dict[str, str]) -> dict[str, str]:
    return {each.name: each.value for each in engine_settings(["vllm", "serve", "m"], environment)}


def test_what_vllm_loaded_before_it_still_loads(installed: list[tuple[str, str]]) -> None:
    installed += [("vllm.general_plugins", "lora"), ("vllm.platform_plugins", "npu")]
    installed += [("console_scripts", "vllm")]

    plugin.allow_endpoint_plugin()

    assert os.environ["VLLM_PLUGINS"] == "cria,lora,npu"


def test_an_endpoint_plugin_that_nobody_named_stays_out(
    installed: list[tuple[str, str]],
) -> None:
    installed += [("vllm.endpoint_plugins", "routes")]

    plugin.allow_endpoint_plugin()

    assert "routes" not in os.environ["VLLM_PLUGINS"].split(",")


def test_where_one_name_is_both_kinds_cria_stays_out(installed: list[tuple[str, str]]) -> None:
    installed += [("vllm.endpoint_plugins", "both"), ("vllm.general_plugins", "both")]

    plugin.allow_endpoint_plugin()

    assert "VLLM_PLUGINS" not in os.environ


def test_a_list_that_the_user_made_is_only_added_to() -> None:
    assert chosen({"VLLM_PLUGINS": "lora"})["VLLM_PLUGINS"] == "lora,cria"
    assert chosen({"VLLM_PLUGINS": "cria,lora"})["VLLM_PLUGINS"] == "lora,cria"
    assert "VLLM_PLUGINS" not in chosen({})


def test_the_users_path_comes_first() -> None:
    assert chosen({"PYTHONPATH": "/a:/b"})["PYTHONPATH"] == f"/a:/b:{AGENT_PATH}"
    assert chosen({})["PYTHONPATH"] == str(AGENT_PATH)


def test_on_that_path_the_plugins_are_found_and_nothing_else_of_cria() -> None:
    program = """
import importlib.metadata, importlib.util
for group in ("vllm.general_plugins", "vllm.endpoint_plugins"):
    found = [e for e in importlib.metadata.entry_points(group=group) if e.name == "cria"]
    print(group, [e.value for e in found])
print(importlib.util.find_spec("cria_agent.worker") is not None)
print(__import__("os").listdir(__import__("sys").argv[1]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, AGENT_PATH],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(AGENT_PATH)},
    )

    *lines, listed = done.stdout.splitlines()
    assert lines == [
        "vllm.general_plugins ['cria_agent.plugin:register']",
        "vllm.endpoint_plugins ['cria_agent.plugin:Endpoint']",
        "True",
    ]
    assert sorted(eval(listed)) == ["cria_agent", "cria_agent-1.dist-info"]


class Workers:
    """An engine client that keeps what its workers are asked."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked: list[str] = []
        self.error = error

    async def collective_rpc(
        self, method: str, timeout: float | None = None, args: tuple[object, ...] = ()
    ) -> list[None]:
        self.asked.append(method)
        if self.error is not None:
            raise self.error
        return [None]


def test_workers_settle_before_the_first_request() -> None:
    workers = Workers()

    asyncio.run(plugin.prepare_workers(workers))

    assert workers.asked == ["cria_prepare"]


def test_cores_and_workers_nap_from_the_first_request_on() -> None:
    asked: list[str] = []

    class Cores:
        async def call_utility_all_async(self, utility: str, *words: object) -> list[list[None]]:
            asked.append(str(words[0]) if words else utility)
            return []

    client = Workers()
    client.engine_core = Cores()  # type: ignore[attr-defined]
    asyncio.run(plugin.prepare_workers(client))

    assert asked == ["cria_prepare", "cria_back_off"]


def test_an_engine_whose_workers_do_not_settle_starts_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("INFO"):
        asyncio.run(plugin.prepare_workers(Workers(RuntimeError("no such method"))))

    assert "a pause will take longer" in caplog.text
