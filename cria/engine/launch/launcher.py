"""Start an engine so that it can be checkpointed later."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from cria.engine import http_api
from cria.engine.command_line import ENGINE_MARK, Setting
from cria.engine.inventory.collect import collect_inventory
from cria.engine.launch import gpus, seccomp
from cria.errors import EngineFailed, NotWritable, UsageError
from cria.network.reservation import reserve_any

# What the engine loads of cria lies in a directory of its own, with the entry points that vLLM looks for: cria's
# site-packages on the engine's path would replace the engine's libraries with cria's.
AGENT_PATH = Path(__file__).parents[2] / "agent" / "on-path"
POLL_SECONDS = 0.25
AUTO = "auto"  # the value of an option that leaves its port to cria

# Options with which vLLM spreads over several nodes: on loopback alone the engine would be cut in two.
_MULTI_NODE_OPTIONS = ("--nnodes", "--master-addr", "--data-parallel-address", "--headless")


def engine_settings(command: Sequence[str], environment: Mapping[str, str]) -> tuple[Setting, ...]:
    """Return what to set for this command, given the user's environment, which wins."""
    on_gpus = gpus.gpu_settings(command) if gpus.has_gpus(environment) else ()
    chosen = tuple(
        msgspec.structs.replace(setting, value=environment[setting.name], kept=True)
        if setting.name in environment
        else setting
        for setting in (*_common_settings(command), *on_gpus)
    )
    return (*chosen, *_agent_settings(environment))


def _common_settings(command: Sequence[str]) -> Iterator[Setting]:
    yield Setting(name=ENGINE_MARK, value="1", why="marks the engine's processes for cria ps")
    if on_one_node(command):
        why = "one node: connections inside the engine stay on loopback, which every host has"
        yield Setting(name="GLOO_SOCKET_IFNAME", value="lo", why=why)
        yield Setting(name="NCCL_SOCKET_IFNAME", value="lo", why=why)
        yield Setting(name="VLLM_HOST_IP", value="127.0.0.1", why=why)
    why = "a connection to the outside cannot be checkpointed"
    yield Setting(name="VLLM_NO_USAGE_STATS", value="1", why=why)
    yield Setting(
        name="NCCL_RAS_ENABLE", value="0", why="its listener and clients reconnect by port"
    )


def _agent_settings(environment: Mapping[str, str]) -> Iterator[Setting]:
    """Yield what lets vLLM find and load cria's agent, added to what the user has set."""
    path = [entry for entry in environment.get("PYTHONPATH", "").split(os.pathsep) if entry]
    why = "lets cria pause the engine for a dump, over a unix socket of its own user"
    yield Setting(name="PYTHONPATH", value=os.pathsep.join([*path, str(AGENT_PATH)]), why=why)
    if "VLLM_PLUGINS" in environment:
        # Unset means all plugins: then the agent sets it (cria_agent.plugin.allow_endpoint_plugin).
        plugins = [name for name in environment["VLLM_PLUGINS"].split(",") if name != "cria"]
        yield Setting(name="VLLM_PLUGINS", value=",".join([*plugins, "cria"]), why=why)


def on_one_node(command: Sequence[str]) -> bool:
    """Say whether nothing in the command spreads the engine over several nodes."""
    options = (argument for argument in command if argument.startswith("--"))
    names = {option.partition("=")[0].replace("_", "-") for option in options}
    ray = "ray" in command or any(argument.endswith("=ray") for argument in command)
    return not ray and names.isdisjoint(_MULTI_NODE_OPTIONS)


class Launched(msgspec.Struct, frozen=True, kw_only=True):
    """An engine that was started, and may not be healthy yet."""

    pid: int
    log: Path
    settings: tuple[Setting, ...]
    process: subprocess.Popen[bytes]


@contextmanager
def assign_ports(command: Sequence[str]) -> Iterator[list[str]]:
    """Yield the command with a free port for each option `--port auto`, `--master-port=auto`, ...

    The ports are held until the context ends, so that engines that start at the same moment get different
    ones: an engine that looks for a free port by itself may lose it to another before it listens there.
    """
    arguments = list(command)
    automatic = [index for index in range(len(arguments)) if _is_automatic(arguments, index)]
    with reserve_any(len(automatic)) as ports:
        for index, port in zip(automatic, ports, strict=True):
            name, equals, _ = arguments[index].rpartition("=")
            arguments[index] = f"{name}{equals}{port}"
        yield arguments


def launch(
    command: Sequence[str],
    log: str | os.PathLike[str],
    *,
    environment: Mapping[str, str] | None = None,
) -> Launched:
    """Start `command` in a session of its own, without io_uring, with stdin from /dev/null and output to `log`.

    `environment` is this process's own by default. Raises NotWritable for the log, UsageError when the command
    cannot be started.
    """
    base = dict(os.environ if environment is None else environment)
    chosen = engine_settings(command, base)
    path = Path(log).absolute()
    try:
        # CRIU refuses to restore an open file that has another size than at the dump, but not one with O_APPEND.
        output = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise NotWritable(
            f"cannot append to the log {path}",
            details=error.strerror,
            remedy="name another: --log FILE",
        ) from error
    try:
        process = subprocess.Popen(
            [
                *command,
                *(setting.name for setting in chosen if setting.option and not setting.kept),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=base | {s.name: s.value for s in chosen if not s.option},
            start_new_session=True,
            preexec_fn=seccomp.hide_io_uring,  # noqa: PLW1509 - cria has no other thread here
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise UsageError(
            f"cannot start {command[0]}",
            details=str(error),
            remedy="give the full path of the program",
        ) from error
    finally:
        os.close(output)
    return Launched(pid=process.pid, log=path, settings=chosen, process=process)


def wait_until_serving(launched: Launched, *, seconds: float) -> str:
    """Wait until the engine has opened its HTTP API and is healthy, and return its URL.

    Raises EngineFailed when the engine ends first or takes longer than `seconds`.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        status = launched.process.poll()
        if status is not None:
            raise EngineFailed(
                f"the engine ended with status {status} before it was healthy",
                details=last_lines(launched.log),
                remedy="read its log; start the engine without cria to see whether it runs at all",
                log=str(launched.log),
            )
        for listener in collect_inventory(launched.pid, any_process=True).api_listeners():
            url = listener.local.http_url
            if http_api.is_healthy(url):
                return url
        time.sleep(POLL_SECONDS)
    raise EngineFailed(
        f"the engine was not healthy within {seconds:g} seconds",
        details=last_lines(launched.log),
        remedy="give it longer: --wait SECONDS",
        log=str(launched.log),
    )


def last_lines(log: Path, count: int = 8) -> str:
    """Return the last `count` lines of a log, for an error message."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 16384))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-count:])
    except OSError as error:
        return f"{log}: {error.strerror}"


def _is_automatic(arguments: Sequence[str], index: int) -> bool:
    name, equals, value = arguments[index].partition("=")
    if equals:
        return value == AUTO and _is_port_option(name)
    return index > 0 and arguments[index] == AUTO and _is_port_option(arguments[index - 1])


def _is_port_option(option: str) -> bool:
    return option.startswith("--") and option.replace("_", "-").endswith(("--port", "-port"))
