"""Every JSON document that a verb ends with, by the name of its schema under docs/reference/schema.

`cria inspect`, `ps` and `doctor` have theirs beside what they show. No verb imports this: it loads all that is
in any document.
"""

from __future__ import annotations

import msgspec

from cria.cli import archive_tables
from cria.cli.results import (
    Dumped,
    Failed,
    NodeChanged,
    Packed,
    Planned,
    Restored,
    Started,
    Stopped,
    Unpacked,
    Unshared,
    Verified,
    WouldDump,
)
from cria.demo import DemoFacts
from cria.kubernetes.kubelet.batch import Report
from cria.kubernetes.kubelet.prune import Pruned
from cria.kubernetes.node.install import Installed
from cria.memory.shared.directory import SharedMemory

SCHEMAS: dict[str, type[msgspec.Struct]] = {
    "run": Started,
    "dump": Dumped,
    "dump-dry-run": WouldDump,
    "restore": Restored,
    "restore-dry-run": Planned,
    "share": SharedMemory,
    "share-remove": Unshared,
    "stop": Stopped,
    "verify": Verified,
    "pack": Packed,
    "unpack": Unpacked,
    "kubernetes-checkpoint": Report,
    "kubernetes-prune": Pruned,
    "demo": DemoFacts,
    "kubernetes-node": Installed,
    "kubernetes-node-install": NodeChanged,
    "kubernetes-node-remove": NodeChanged,
    "kubernetes-remap": archive_tables.RemapDone,
    "kubernetes-remap-dry-run": archive_tables.RemapPlanned,
    "inspect-archive": archive_tables.InspectedArchive,
    "error": Failed,
}
