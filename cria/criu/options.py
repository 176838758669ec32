"""Choose CRIU's options for an engine: by what the engine holds, and by what this CRIU can do."""

from __future__ import annotations

import os
import shutil

from cria.criu.client import Client
from cria.criu.rpc import CriuOptions
from cria.errors import UsageError
from cria.model.inventory import Inventory
from cria.model.manifest import DumpOptions

# Errors and warnings. At level 4 CRIU writes a line for every run of pages: a tenth of a second of a dump.
LOG_LEVEL = 2
LOG_LEVELS = range(1, 5)
LOG_LEVEL_VARIABLE = "CRIA_CRIU_LOG_LEVEL"
GHOST_LIMIT = 512 << 20  # bytes; deleted files above CRIU's own limit of 1 MiB are common


def dump_options(
    client: Client, inventory: Inventory, *, leave_running: bool, direct_io: bool
) -> tuple[DumpOptions, CriuOptions]:
    """Choose the options of a dump: as the manifest keeps them, and as CRIU's message.

    The message lacks the PID, which depends on the namespaces in which CRIU runs.
    """
    chosen = DumpOptions(
        leave_running=leave_running,
        network_lock=_network_lock(inventory, leave_running=leave_running),
        image_io_mode="direct" if direct_io and client.has_option("image_io_mode") else None,
        shell_job=inventory.root.session not in {p.pid for p in inventory.processes},
    )
    message = _common_options(client, chosen)
    message.leave_running = leave_running
    message.ghost_limit = GHOST_LIMIT
    message.network_lock = client.constant(chosen.network_lock)
    return chosen, message


def restore_options(client: Client, dumped: DumpOptions) -> CriuOptions:
    """Return the options for a restore of what was dumped with the options `dumped`."""
    return _common_options(client, dumped)


def _common_options(client: Client, chosen: DumpOptions) -> CriuOptions:
    message = client.options(
        tcp_established=True,
        ext_unix_sk=True,
        file_locks=True,
        link_remap=True,
        shell_job=chosen.shell_job,
        log_level=_log_level(),
    )
    # Only where the user asks for it, never by a probe. CRIU also writes pages of the kernel, such as the
    # vDSO, and some virtual disks refuse these. A refused write can fail what the kernel had merged with
    # it: other files were seen to lose data. Through the page cache a dump was not slower where both worked.
    if chosen.image_io_mode == "direct" and client.has_option("image_io_mode"):
        message.image_io_mode = client.constant("IMAGE_IO_DIRECT")
    return message


def _log_level() -> int:
    level = os.environ.get(LOG_LEVEL_VARIABLE) or str(LOG_LEVEL)
    if level not in map(str, LOG_LEVELS):
        raise UsageError(
            f"{LOG_LEVEL_VARIABLE} is {level!r}",
            remedy="set it to a level from 1, errors only, to 4, everything that CRIU does",
        )
    return int(level)


def _network_lock(inventory: Inventory, *, leave_running: bool) -> str:
    """Choose how CRIU keeps packets away from connections while their sockets are in repair mode.

    After a dump that ends the engine the lock stays until a restore removes it. Where both ends of every
    connection are in the engine, both are frozen and no packet is on its way. A connection with one end
    outside needs the lock only where it is to live on.
    """
    one_ended = any(
        socket.protocol == "tcp"
        and socket.state != "LISTEN"
        and socket.peer
        and not socket.peer_holders
        for socket in inventory.sockets
    )
    if not (one_ended and leave_running):
        return "SKIP"
    # CRIU runs the program iptables, and speaks to nftables through libnftables (criu/netfilter.c).
    return "IPTABLES" if shutil.which("iptables") else "NFTABLES"
