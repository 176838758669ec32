"""The JSON Schemas of every document that cria prints, by their names under docs/reference/schema.

No verb imports this module: it loads every part of cria that has a document.
"""

from __future__ import annotations

from inspect import cleandoc
from typing import Any

import msgspec

from cria.cli import archive_documents, inventory_documents, results
from cria.demo import DemoFacts
from cria.kubernetes.kubelet.batch import Report
from cria.kubernetes.kubelet.prune import PruneResult
from cria.kubernetes.node.install import InstallStatus
from cria.memory.shared.directory import SharedMemory
from cria.model.hooks import HookCall
from cria.operations.checks import report

DOCUMENTS: dict[str, type[msgspec.Struct]] = {
    "run": results.Started,
    "ps": inventory_documents.Listing,
    "inspect": inventory_documents.Inspected,
    "inspect-archive": archive_documents.InspectedArchive,
    "doctor": report.Document,
    "dump": results.Dumped,
    "dump-dry-run": results.WouldDump,
    "restore": results.Restored,
    "restore-dry-run": results.Planned,
    "share": SharedMemory,
    "share-remove": results.Unshared,
    "stop": results.Stopped,
    "verify": results.Verified,
    "pack": results.Packed,
    "unpack": results.Unpacked,
    "demo": DemoFacts,
    "hook": HookCall,
    "kubernetes-checkpoint": Report,
    "kubernetes-prune": PruneResult,
    "kubernetes-node": InstallStatus,
    "kubernetes-node-install": results.NodeChanged,
    "kubernetes-node-remove": results.NodeChanged,
    "kubernetes-remap": archive_documents.RemapDone,
    "kubernetes-remap-dry-run": archive_documents.RemapPlanned,
    "error": results.Failed,
}


def schema(document: type[msgspec.Struct]) -> dict[str, Any]:
    """Return the JSON Schema of a document as it is printed: every field is present, every role is flat."""
    generated = msgspec.json.schema(document)
    definitions = generated["$defs"]
    for definition in definitions.values():
        definition["description"] = cleandoc(definition.get("description", ""))
        fields = definition.get("properties", {})
        if "role" in fields and "Role" in definitions:
            # inventory_documents.flatten_roles does the same to the documents.
            role = definitions["Role"]["properties"]
            fields["role"] = {"type": "string"}
            fields["confidence"] = role["confidence"]
            fields["evidence"] = role["evidence"]
        for field in fields.values():
            field.pop("default", None)
        definition["required"] = list(fields)
    definitions.pop("Role", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **generated}


def schema_text(document: type[msgspec.Struct]) -> str:
    """Return the schema as docs/reference/schema holds it."""
    return msgspec.json.format(msgspec.json.encode(schema(document)), indent=2).decode() + "\n"
