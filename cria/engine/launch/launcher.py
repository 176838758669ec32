"""Start an engine so that it can be checkpointed later."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from cria.engine.command_line import ENGINE_MARK, Setting
from cria.engine.launch import gpus, seccomp
from cria.errors import EngineFailed, NotWritable, UsageError

# What the engine loads of cria: a directory of its own, so that none of cria's libraries comes with it.
AGENT_PATH = Path(__file__).parents[2] / "agent" / "on-path"

# Options with which vLLM spreads over several nodes: then loopback would cut it in two.
_MANY_NODES = ("--nnodes", "--master-addr", "--data-parallel-address", "--headless")


def engine_settings(command: Sequence[str], environment: Mapping[str, str]) -> tuple[Setting, ...]:
    """What to set for this command, given the environment the user has."""
    on_gpus = gpus.gpu_settings(command) if gpus.has_gpus(environment) else ()
    chosen = tuple(
        msgspec.structs.replace(wanted, value=environment[wanted.name], kept=True)
        if wanted.name in environment
        else wanted
        for wanted in (*_wanted(command), *on_gpus)
    )
    return (*chosen, *_way_in(environment))


def _wanted(command: Sequence[str]) -> Iterator[Setting]:
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


def _way_in(environment: Mapping[str, str]) -> Iterator[Setting]:
    """What lets the engine find and load the part of cria that quiesces it; added to what the user set."""
    path = [each for each in environment.get("PYTHONPATH", "").split(os.pathsep) if each]
    why = "lets cria pause the engine for a dump, over a unix socket of its own user"
    yield Setting(name="PYTHONPATH", value=os.pathsep.join([*path, str(AGENT_PATH)]), why=why)
    if "VLLM_PLUGINS" in environment:
        # Unset means all; the part of cria then names itself and all others that vLLM would load.
        named = [each for each in environment["VLLM_PLUGINS"].split(",") if each != "cria"]
        yield Setting(name="VLLM_PLUGINS", value=",".join([*named, "cria"]), why=why)


def on_one_node(command: Sequence[str]) -> bool:
    """Whether nothing in the command spreads the engine over several nodes."""
    names = {word.partition("=")[0].replace("_", "-") for word in command if word.startswith("--")}
    ray = "ray" in command or any(word.endswith("=ray") for word in command)
    return not ray and names.isdisjoint(_MANY_NODES)


class Launched(msgspec.Struct, frozen=True, kw_only=True):
    """A started command, before it is healthy."""

    pid: int
    log: Path
    settings: tuple[Setting, ...]
    process: subprocess.Popen[bytes]


def launch(
    command: Sequence[str],
    log: str | os.PathLike[str],
    *,
    environment: Mapping[str, str] | None = None,
) -> Launched:
    """Start `command` in a session of its own, without io_uring, stdin from /dev/null, output to `log`.

    Raises NotWritable for the log, UsageError when the command cannot be started.
    """
    base = dict(os.environ if environment is None else environment)
    chosen = engine_settings(command, base)
    path = Path(log).absolute()
    try:
        # O_APPEND matters: CRIU checks the recorded size of any other open file at a restore.
        output = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise NotWritable(
            f"cannot append to the log {path}",
            details=error.strerror,
            remedy="name another: --log FILE",
        ) from error
    try:
        process = subprocess.Popen(
            [*command, *(each.name for each in chosen if each.option and not each.kept)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=base | {each.name: each.value for each in chosen if not each.option},
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
    """Wait until the engine has opened its HTTP API and is healthy; returns its url.

    Raises EngineFailed when it ends first or takes longer than `seconds`.
    """
    from cria.engine import health
    from cria.engine.inventory.collect import collect_inventory

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        status = launched.process.poll()
        if status is not None:
            raise EngineFailed(
                f"the engine ended with status {status} before it was healthy",
                details=last_lines(launched.log),
                remedy="read its log; start it without cria to see whether it runs at all",
                log=str(launched.log),
            )
        for socket in collect_inventory(launched.pid, any_process=True).published():
            url = health.url(socket.local)
            if health.is_healthy(url):
                return url
        time.sleep(0.25)
    raise EngineFailed(
        f"the engine was not healthy within {seconds:g} seconds",
        details=last_lines(launched.log),
        remedy="give it longer: --wait SECONDS",
        log=str(launched.log),
    )


def last_lines(log: Path, count: int = 8) -> str:
    """The end of a log, for an error message."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 16384))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-count:])
    except OSError as error:
        return f"{log}: {error.strerror}"
