"""Dump a small server while it runs, restore a clone beside it on another port, and ask both.

    sudo .venv/bin/python examples/clone.py

The same three calls work for a vLLM engine; leave out any_process=True for it.
"""

from __future__ import annotations

import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import cria
from cria.engine.launch.launcher import launch
from cria.network.reservation import reserve_any

SERVER = """
import http.server, itertools, sys
count = itertools.count(1)
class Counter(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(next(count)).encode())
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Counter).serve_forever()
"""


def ask(port: int) -> int:
    """Ask the server on `port` and return how many times it has been asked."""
    for _ in range(200):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5) as answer:
                return int(answer.read())
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"no server answers on port {port}")


def main() -> None:
    with tempfile.TemporaryDirectory() as directory, reserve_any(1) as (port,):
        original = launch([sys.executable, "-c", SERVER, str(port)], Path(directory) / "server.log")
        try:
            print(f"the original on port {port} was asked", ask(port), "time")
            checkpoint = cria.dump(
                original.pid, Path(directory) / "checkpoint", leave_running=True, any_process=True
            )
            plan = checkpoint.plan_ports("fresh")
            print(plan)
            clone = checkpoint.restore(ports=plan)
            other_port = plan.new_port(port)
            try:
                print(f"its clone on port {other_port} was asked", ask(other_port), "times,")
                print(f"once more {ask(other_port)}; the original was asked", ask(port), "times")
            finally:
                clone.stop(seconds=2)
        finally:
            original.process.terminate()
            original.process.wait()


if __name__ == "__main__":
    main()
