"""The program `python -m cria.memory.lazy CONTROL SOCKET LOG`, which a lazy restore starts."""

from __future__ import annotations

import os

if __name__ == "__main__" and not os.fork():  # the child is an orphan, for which nobody has to wait
    from cria.memory.lazy.page_server import main

    main()
