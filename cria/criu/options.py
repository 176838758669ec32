"""Choose CRIU's options for an engine, by what it holds and by what this CRIU can do."""

from __future__ import annotations

import os
import shutil
from typing import Any

from cria.criu.client import Client
from cria.errors import UsageError
from cria.model.inventory import Inventory
from cria.model.manifest import DumpOptions

# Errors and warnings. At 4 it writes a line for every piece of memory: a tenth of a second of each dump.
LOG_LEVEL = 2
LOG_LEVELS = range(1, 5)
LOG_LEVEL_SET_BY = "CRIA_CRIU_LOG_LEVEL"
GHOST_LIMIT = 512 << 20  # deleted files larger than CRIU's own limit of 1 MiB are common


def dump_options(
    client: Client, inventory: Inventory, *, leave_running: bool, direct_io: bool
) -> tuple[DumpOptions, Any]:
    """The options for a dump: as the manifest keeps them, and as CRIU's message.

    The message still lacks the PID, which depends on from where CRIU looks.
    """
    chosen = DumpOptions(
        leave_running=leave_running,
        network_lock=_network_lock(inventory, leave_running),
        image_io_mode="direct" if direct_io and client.knows("image_io_mode") else None,
        shell_job=inventory.root.session not in {p.pid for p in inventory.processes},
    )
    message = _common(client, chosen)
    message.leave_running = leave_running
    message.ghost_limit = GHOST_LIMIT
    message.network_lock = client.constant(chosen.network_lock)
    return chosen, message


def restore_options(client: Client, dumped: DumpOptions) -> Any:
    """The RPC message for a restore of what was dumped with these options."""
    return _common(client, dumped)


def _common(client: Client, chosen: DumpOptions) -> Any:
    message = client.options(
        tcp_established=True,
        ext_unix_sk=True,
        file_locks=True,
        link_remap=True,
        shell_job=chosen.shell_job,
        log_level=_log_level(),
    )
    if chosen.image_io_mode == "direct" and client.knows("image_io_mode"):
        message.image_io_mode = client.constant("IMAGE_IO_DIRECT")
    return message


def _log_level() -> int:
    asked = os.environ.get(LOG_LEVEL_SET_BY) or str(LOG_LEVEL)
    if asked not in map(str, LOG_LEVELS):
        raise UsageError(
            f"{LOG_LEVEL_SET_BY} is {asked!r}",
            remedy="from 1, errors only, to 4, all that CRIU does",
        )
    return int(asked)


def _network_lock(inventory: Inventory, leave_running: bool) -> str:
    """A lock keeps packets away from sockets in repair mode, and stays after a dump that ends the engine.

    Where both ends of every connection are inside, both are frozen and nothing is on its way. A
    connection with one end outside needs the lock only if it is to live on.
    """
    one_ended = any(
        s.protocol == "tcp" and s.state != "LISTEN" and s.peer and not s.peer_holders
        for s in inventory.sockets
    )
    if not (one_ended and leave_running):
        return "SKIP"
    return "IPTABLES" if shutil.which("iptables") else "NFTABLES"
