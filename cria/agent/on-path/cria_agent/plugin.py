"""The two doors by which vLLM lets a plugin in: one in every process, one in the API server."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from argparse import Namespace
from importlib.metadata import entry_points
from typing import Any

from cria_agent import control_socket
from cria_agent.commands import Commands, every_core, every_worker

NAME = "cria"
WARM_UP_SECONDS = 60.0
ENDPOINTS = "vllm.endpoint_plugins"
log = logging.getLogger("vllm.cria_agent")


def register() -> None:
    """Door of `vllm.general_plugins`: give cores and workers the methods that the API server calls."""
    from vllm.v1.worker.worker_base import WorkerBase

    from cria_agent import spin_backoff, worker

    spin_backoff.patch()
    core = sys.modules.get("vllm.v1.engine.core")
    if core is not None:  # in a worker it need not be loaded
        core.EngineCore.cria_back_off = spin_backoff.back_off
    WorkerBase.cria_quiesce = worker.quiesce
    WorkerBase.cria_prepare = worker.prepare
    WorkerBase.cria_groups = worker.groups
    allow_endpoint_plugin()


def allow_endpoint_plugin() -> None:
    """Name ourselves in VLLM_PLUGINS, without which vLLM loads no endpoint plugin, and all others too.

    Unset means "all, but no endpoint plugins", so the list must not leave out what was loaded before,
    and must not let in an endpoint plugin that the operator did not name.
    """
    if "VLLM_PLUGINS" in os.environ:
        return
    plugins = [each for group in entry_points().groups for each in entry_points(group=group)]
    plugins = [each for each in plugins if each.group.startswith("vllm.")]
    loaded = {each.name for each in plugins if each.group != ENDPOINTS} | {NAME}
    endpoints = {each.name for each in plugins if each.group == ENDPOINTS} - {NAME}
    if loaded & endpoints:
        log.warning("no control socket: set VLLM_PLUGINS, %s are ambiguous", loaded & endpoints)
        return
    os.environ["VLLM_PLUGINS"] = ",".join(sorted(loaded))


class Endpoint:
    """Door of `vllm.endpoint_plugins`: it adds no route, but a unix socket that only the owner may use."""

    name = NAME
    required_tasks = None

    def attach_router(self, app: Any) -> None:
        """Nothing is for the network."""

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:  # noqa: ARG002
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
    """Generate a token with its log-probability: at the first one vLLM compiles what counts its rank.

    The canary asks for some, and would make the clients of a busy engine wait for the compiler.
    """
    from vllm.sampling_params import SamplingParams

    async def generate() -> None:
        wish = SamplingParams(max_tokens=1, temperature=0.0, logprobs=1)
        async for _ in engine_client.generate({"prompt_token_ids": [1]}, wish, "cria-warm-up"):
            pass

    begin = time.monotonic()
    try:
        await asyncio.wait_for(generate(), WARM_UP_SECONDS)
    except Exception as error:  # noqa: BLE001 - an engine that only embeds, or whatever: it may start all the same
        log.info("not warmed up for the canary: %s", error or type(error).__name__)
    else:
        log.info("warmed up for the canary in %.1f s", time.monotonic() - begin)


async def prepare_workers(engine_client: Any) -> None:
    """Before the first request: what a worker would do in the middle of every pause, done once."""
    call = asyncio.ensure_future(_prepare_workers(engine_client))
    done, _ = await asyncio.wait({call}, timeout=WARM_UP_SECONDS)
    if not done or call.exception() is not None:
        log.info("the workers have not settled: a pause will take longer")


async def _prepare_workers(engine_client: Any) -> None:
    await every_worker(engine_client, "cria_prepare")
    await every_core(engine_client, "cria_back_off")
