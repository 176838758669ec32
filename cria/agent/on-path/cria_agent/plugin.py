"""The two plugins that vLLM loads: one in every process, one in each API server."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from argparse import Namespace
from importlib.metadata import entry_points
from typing import Any

from cria_agent import control_socket, spin_backoff
from cria_agent.commands import Commands, call_cores, call_workers

NAME = "cria"
WARM_UP_SECONDS = 60.0
ENDPOINT_PLUGINS = "vllm.endpoint_plugins"
log = logging.getLogger("vllm.cria_agent")


def register() -> None:
    """Add the methods that the API server calls to engine cores and workers (plugin of `vllm.general_plugins`)."""
    # Imported here: tests load this module where there is no vLLM and no torch.
    from vllm.v1.worker.worker_base import WorkerBase

    from cria_agent import worker

    spin_backoff.patch()
    core = sys.modules.get("vllm.v1.engine.core")
    if core is not None:  # a worker need not have loaded it
        core.EngineCore.cria_back_off = spin_backoff.back_off
    WorkerBase.cria_quiesce = worker.quiesce
    WorkerBase.cria_prepare = worker.prepare
    WorkerBase.cria_groups = worker.groups
    allow_endpoint_plugin()


def allow_endpoint_plugin() -> None:
    """Set VLLM_PLUGINS, without which vLLM loads no endpoint plugin, to cria and all plugins that it loads anyway.

    Unset means "all but endpoint plugins": the list names every plugin that vLLM would have loaded, and no
    endpoint plugin that the operator did not name.
    """
    if "VLLM_PLUGINS" in os.environ:
        return
    entries = [entry for group in entry_points().groups for entry in entry_points(group=group)]
    plugins = [entry for entry in entries if entry.group.startswith("vllm.")]
    loaded = {plugin.name for plugin in plugins if plugin.group != ENDPOINT_PLUGINS} | {NAME}
    endpoints = {plugin.name for plugin in plugins if plugin.group == ENDPOINT_PLUGINS} - {NAME}
    if loaded & endpoints:
        log.warning("no control socket: set VLLM_PLUGINS, %s are ambiguous", loaded & endpoints)
        return
    os.environ["VLLM_PLUGINS"] = ",".join(sorted(loaded))


class Endpoint:
    """The plugin of `vllm.endpoint_plugins`: it adds no route, but opens the control socket."""

    name = NAME
    required_tasks = None

    def attach_router(self, app: Any) -> None:
        """Add no route: nothing is reached over the network."""

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:  # noqa: ARG002
        """Prepare the engine for pauses and open the control socket; an engine starts also where that fails."""
        if engine_client is None:
            return
        await warm_up(engine_client)
        await prepare_workers(engine_client)
        try:
            path = await control_socket.serve(Commands(engine_client))
        except OSError as error:
            log.warning("no control socket: %s", error)
        else:
            log.info("controlled by cria at %s", path)


async def warm_up(engine_client: Any) -> None:
    """Generate one token with its log-probability: at the first, vLLM compiles what computes ranks.

    The canary of a dump asks for log-probabilities, and clients of a busy engine would wait for the compiler.
    """
    from vllm.sampling_params import SamplingParams

    async def generate() -> None:
        parameters = SamplingParams(max_tokens=1, temperature=0.0, logprobs=1)
        prompt = {"prompt_token_ids": [1]}
        async for _ in engine_client.generate(prompt, parameters, "cria-warm-up"):
            pass

    begin = time.monotonic()
    try:
        await asyncio.wait_for(generate(), WARM_UP_SECONDS)
    except Exception as error:  # noqa: BLE001 - whatever it is, as in an engine that only embeds: the engine starts
        log.info("not warmed up for the canary: %s", error or type(error).__name__)
    else:
        log.info("warmed up for the canary in %.1f s", time.monotonic() - begin)


async def prepare_workers(engine_client: Any) -> None:
    """Do once, before the first request, what every pause would make clients wait for."""
    call = asyncio.ensure_future(_prepare_workers(engine_client))
    done, _ = await asyncio.wait({call}, timeout=WARM_UP_SECONDS)
    if not done or call.exception() is not None:
        log.info("the workers are not prepared: a pause will take longer")


async def _prepare_workers(engine_client: Any) -> None:
    await call_workers(engine_client, "cria_prepare")
    await call_cores(engine_client, "cria_back_off")
