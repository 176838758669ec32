"""vLLM finds and loads the agent by what cria run sets, and its other plugins as before."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints

import pytest
from cria_agent import plugin

from cria.engine.launch.launcher import AGENT_PATH, engine_settings


def plugins(*others: tuple[str, str]) -> EntryPoints:
    ours = (("vllm.general_plugins", "cria"), ("vllm.endpoint_plugins", "cria"))
    return EntryPoints(
        EntryPoint(name=name, value="m:f", group=group) for group, name in (*ours, *others)
    )


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The plugins beside ours, for a test to add to; VLLM_PLUGINS is not set."""
    others: list[tuple[str, str]] = []
    monkeypatch.setattr(
        plugin,
        "entry_points",
        lambda **group: plugins(*others).select(**group) if group else plugins(*others),
    )
    monkeypatch.setenv("VLLM_PLUGINS", "")
    monkeypatch.delenv("VLLM_PLUGINS")
    return others


def settings_for(environment: dict[str, str]) -> dict[str, str]:
    return {s.name: s.value for s in engine_settings(["vllm", "serve", "m"], environment)}


def test_vllm_loads_the_plugins_that_it_loaded_before(installed: list[tuple[str, str]]) -> None:
    installed += [("vllm.general_plugins", "lora"), ("vllm.platform_plugins", "npu")]
    installed += [("console_scripts", "vllm")]

    plugin.allow_endpoint_plugin()

    assert os.environ["VLLM_PLUGINS"] == "cria,lora,npu"


def test_an_endpoint_plugin_that_nobody_named_is_not_loaded(
    installed: list[tuple[str, str]],
) -> None:
    installed += [("vllm.endpoint_plugins", "routes")]

    plugin.allow_endpoint_plugin()

    assert "routes" not in os.environ["VLLM_PLUGINS"].split(",")


def test_where_one_name_is_of_both_kinds_vllm_plugins_is_not_set(
    installed: list[tuple[str, str]],
) -> None:
    installed += [("vllm.endpoint_plugins", "both"), ("vllm.general_plugins", "both")]

    plugin.allow_endpoint_plugin()

    assert "VLLM_PLUGINS" not in os.environ


def test_cria_is_added_to_a_list_that_the_user_set() -> None:
    assert settings_for({"VLLM_PLUGINS": "lora"})["VLLM_PLUGINS"] == "lora,cria"
    assert settings_for({"VLLM_PLUGINS": "cria,lora"})["VLLM_PLUGINS"] == "lora,cria"
    assert "VLLM_PLUGINS" not in settings_for({})


def test_the_users_path_comes_first() -> None:
    assert settings_for({"PYTHONPATH": "/a:/b"})["PYTHONPATH"] == f"/a:/b:{AGENT_PATH}"
    assert settings_for({})["PYTHONPATH"] == str(AGENT_PATH)


def test_the_agent_path_holds_the_plugins_and_nothing_else_of_cria() -> None:
    program = """
import importlib.metadata, importlib.util
for group in ("vllm.general_plugins", "vllm.endpoint_plugins"):
    entries = [e for e in importlib.metadata.entry_points(group=group) if e.name == "cria"]
    print(group, [e.value for e in entries])
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
    """An engine client that records what is called in its workers."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[str] = []
        self.error = error

    async def collective_rpc(
        self, method: str, timeout: float | None = None, args: tuple[object, ...] = ()
    ) -> list[None]:
        self.calls.append(method)
        if self.error is not None:
            raise self.error
        return [None]


def test_workers_are_prepared_before_the_first_request() -> None:
    workers = Workers()

    asyncio.run(plugin.prepare_workers(workers))

    assert workers.calls == ["cria_prepare"]


def test_cores_and_workers_back_off_before_the_first_request() -> None:
    calls: list[str] = []

    class Cores:
        async def call_utility_all_async(
            self, utility: str, *arguments: object
        ) -> list[list[None]]:
            calls.append(str(arguments[0]) if arguments else utility)
            return []

    client = Workers()
    client.engine_core = Cores()  # type: ignore[attr-defined]
    asyncio.run(plugin.prepare_workers(client))

    assert calls == ["cria_prepare", "cria_back_off"]


def test_an_engine_whose_workers_cannot_be_prepared_starts_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("INFO"):
        asyncio.run(plugin.prepare_workers(Workers(RuntimeError("no such method"))))

    assert "a pause will take longer" in caplog.text
