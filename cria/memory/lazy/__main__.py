"""The process that gives an engine its memory: `python -m cria.memory.lazy CONTROL SOCKET LOG`, started by a lazy restore."""

from __future__ import annotations

import os

if __name__ == "__main__" and not os.fork():  # an orphan: nobody has to wait for it
    from cria.memory.lazy.page_server import main

    main()
