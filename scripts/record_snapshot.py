#!/usr/bin/env python3
"""Record what the kernel shows of a running engine, for the tests of the roles.

sudo .venv/bin/python scripts/record_snapshot.py PID > tests/data/snapshots/NAME.json
"""

from __future__ import annotations

import re
import sys

import msgspec

from cria.engine.inventory import collect, discovery
from cria.system.procfs import tree

# The rules of the roles look at these; plain files would only show what is on this machine.
RECORDED_KINDS = {"socket", "pipe", "eventfd", "eventpoll"}


def main() -> None:
    processes = tree(discovery.find_root(int(sys.argv[1])))
    snapshot = collect.read_snapshot(processes, is_engine=True)
    recorded = tuple(
        descriptor for descriptor in snapshot.descriptors if descriptor.kind in RECORDED_KINDS
    )
    snapshot = msgspec.structs.replace(snapshot, descriptors=recorded)
    text = msgspec.json.encode(msgspec.to_builtins(snapshot)).decode()
    text = re.sub(r'"[^"]*/bin/python', '"/venv/bin/python', text)
    print(re.sub(r'"[^"]*/model"', '"/models/tiny"', text))


if __name__ == "__main__":
    main()
