"""Run pytest below a parent that reaps at once: `python -m tests tests/integration -k ports`.

What outlives its parent in a test is given to this process. The init of a container or a small virtual
machine may reap late or never, and until then a PID that a restore needs is taken.
"""

from __future__ import annotations

import os
import signal
import sys

import pytest

from cria.system.processes import orphans_adopted

with orphans_adopted():
    pid = os.fork()
    if pid == 0:
        sys.exit(pytest.main(sys.argv[1:]))
    # The terminal sends Ctrl-C to both: pytest decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        ended, status = os.wait()
        if ended == pid:
            sys.exit(os.waitstatus_to_exitcode(status))
