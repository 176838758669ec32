"""The steps of a restore that make the processes, and let them run once their ports are verified."""

from __future__ import annotations

import os
import threading
from contextlib import suppress

from cria.criu import log
from cria.criu.images.directory import CriuImages
from cria.criu.options import restore_options
from cria.errors import NoSuchProcess, RestoreFailed
from cria.isolation import forwarded_ports
from cria.memory import compressed
from cria.model.manifest import MEMORY
from cria.network import connection_locks, listeners
from cria.operations.restore.isolation import remove_images
from cria.operations.restore.state import RestoreState
from cria.system import processes
from cria.system.procfs import tree

_LOG = "restore.log"


def restore_processes(state: RestoreState) -> None:
    """Have CRIU make every process; CRIU waits when all of them exist and none runs."""
    message = restore_options(state.client, state.checkpoint.manifest.options)
    images = os.open(state.view, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    message.images_dir_fd = images
    message.log_file = _LOG
    message.lazy_pages = state.request.lazy
    connections = connection_locks.needed(state.checkpoint.criu_images, state.plan)
    state.connection_locks.enter_context(
        connection_locks.locked(connections, state.network_namespace)
    )
    if state.reservation is not None:
        state.reservation.open()
    try:
        with log.explain_failure(state.view / _LOG, during=RestoreFailed):
            plugins = state.checkpoint.manifest.gpu_state is None
            state.conversation = state.client.restore(
                message, state.own_namespaces, plugins=plugins
            )
            # While CRIU works: loading the HTTP client alone takes 20 ms.
            threading.Thread(target=_load_http_client).start()
            state.inner_root = state.conversation.wait_for("post-restore")
        state.root = state.namespaces.host_pid(state.inner_root)
    finally:
        os.close(images)


def _load_http_client() -> None:
    from cria.engine import canary  # noqa: F401
    from cria.engine.control import quiesce  # noqa: F401


def remove_processes(state: RestoreState) -> None:
    if state.has("conversation"):
        state.conversation.abort()
    state.connection_locks.close()
    with suppress(NoSuchProcess):
        family = tree(state.root) if state.root else ()
        processes.kill(process.pid for process in family)
        processes.wait_for_exit(family)


def has_compressed_pages(state: RestoreState) -> bool:
    return (state.checkpoint.path / MEMORY).is_dir()


def decompress_pages(state: RestoreState) -> int:
    """Write compressed pages straight into the processes, which CRIU still holds."""
    extracted = CriuImages(state.checkpoint.path / MEMORY, state.client.program)
    return compressed.write_into(extracted, state.namespaces.host_pid)


def verify_listeners(state: RestoreState) -> None:
    """Check that each port has exactly one listener, and that it is a restored one.

    CRIU binds beside a listener with SO_REUSEPORT and reports success.
    """
    # Port reuse is cleared first: what the check then sees stays true when the ports are released.
    listeners.clear_port_reuse(state.plan, state.network_namespace)
    pids = (process.pid for process in tree(state.root))
    listeners.verify_listeners(state.plan, pids, state.network_namespace)
    if state.reservation is not None:
        state.reservation.release()
    if state.host_lock is not None:
        state.host_lock.release()


def start_processes(state: RestoreState) -> None:
    with log.explain_failure(state.view / _LOG, during=RestoreFailed):
        state.conversation.finish()
    if (
        state.link_remap_lock is not None
    ):  # the last thing that CRIU did was to remove its link remaps
        state.link_remap_lock.release()
    state.connection_locks.close()
    if state.checkpoint.manifest.options.network_lock != "SKIP":
        connection_locks.remove_stale_locks(
            state.checkpoint.criu_images, state.plan, state.network_namespace
        )
    if state.own_namespaces is not None:
        forwarded_ports.forward(state.forwarded_ports, state.own_namespaces)
    state.namespaces.settle(state.inner_root)
    remove_images(state)


def resume_engine(state: RestoreState) -> None:
    """Resume an engine that was quiesced for its dump: it wakes up paused."""
    from cria.engine.control import quiesce  # loaded by the thread above

    quiesced = state.checkpoint.manifest.quiesced
    if quiesced is not None:
        quiesce.resume_restored(state.root, quiesced, seconds=state.request.wait_seconds)


def wait_until_healthy(state: RestoreState) -> None:
    from cria.engine import health  # loaded by the thread above

    published = state.checkpoint.manifest.api_endpoints
    if published:
        state.url = state.host_endpoint(published[0]).http_url
        health.wait_until_healthy(state.url, state.root, seconds=state.request.wait_seconds)


def verify_canary(state: RestoreState) -> None:
    """Compare a short generation with the one of before the dump, before anyone learns the URL."""
    from cria.engine import canary  # loaded by the thread above

    recorded = state.checkpoint.manifest.canary
    if recorded is not None and state.url is not None and state.request.canary:
        canary.compare(state.url, recorded, seconds=state.request.wait_seconds)
