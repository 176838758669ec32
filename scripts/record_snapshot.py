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

# What the rules look at; plain files would only tell of the machine this was recorded on.
KEPT = {"socket", "pipe", "eventfd", "eventpoll"}


def main() -> None:
    processes = tree(discovery.find_root(int(sys.argv[1])))
    snapshot = collect.read_snapshot(processes, is_engine=True)
    kept = tuple(descriptor for descriptor in snapshot.descriptors if descriptor.kind in KEPT)
    plain = msgspec.structs.replace(snapshot, descriptors=kept)
    text = msgspec.json.encode(msgspec.to_builtins(plain)).decode()
    text = re.sub(r'"[^"]*/bin/python', '"/venv/bin/python', text)
    print(re.sub(r'"[^"]*/model"', '"/models/tiny"', text))


if __name__ == "__main__":
    main()
