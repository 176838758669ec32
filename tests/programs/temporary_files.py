"""Hold a temporary file open to write, and one that has lost its name.

python temporary_files.py DIRECTORY
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    directory = Path(sys.argv[1])
    with (directory / "temporary").open("w+b") as named, tempfile.TemporaryFile() as nameless:
        named.write(b"temporary\n")
        nameless.write(b"nameless\n")
        named.flush()
        nameless.flush()
        print("ready", flush=True)
        while True:
            time.sleep(1)


if __name__ == "__main__":
    main()
