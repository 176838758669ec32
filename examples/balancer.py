"""Dump a small server behind a load balancer; a hook keeps the clients away from it meanwhile.

    sudo .venv/bin/python examples/balancer.py

The hook is `balancer-hook` in this directory, a few lines of shell. `cria dump --hook` runs it too.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import cria
from cria.engine.launch.launcher import launch
from cria.model.hooks import HookCall
from cria.network.reservation import reserve_any

SLOW_SECONDS = 0.2
SERVER = """
import http.server, sys
class Server(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *words):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Server).serve_forever()
"""


class Clients(threading.Thread):
    """Ask the server that the balancer lists first, again and again, and count the slow answers."""

    def __init__(self, backends: Path) -> None:
        super().__init__(daemon=True)
        self.backends, self.answered, self.slow = backends, 0, 0
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.is_set():
            start = time.monotonic()
            url = self.backends.read_text().split()[0]
            with urllib.request.urlopen(url, timeout=10):
                self.answered += 1
            self.slow += time.monotonic() - start > SLOW_SECONDS


def show(call: HookCall) -> None:
    """Show the balancer's list: a hook may also be a Python function."""
    count = len(Path(os.environ["BACKENDS"]).read_text().split())
    print(f"{call.stage}: {count} servers are in the balancer's list")


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary, reserve_any(2) as ports:
        directory = Path(temporary)
        # cria runs only a hook that no other user can write to; a checkout may be less strict.
        hook = Path(shutil.copy(Path(__file__).with_name("balancer-hook"), directory))
        command = [sys.executable, "-c", SERVER]
        servers = [launch([*command, str(port)], directory / f"{port}.log") for port in ports]
        clients = Clients(directory / "backends")
        try:
            urls = [f"http://127.0.0.1:{port}" for port in ports]
            clients.backends.write_text("\n".join(urls) + "\n")
            os.environ |= {"BACKENDS": str(clients.backends), "BACKEND": urls[0]}
            wait_for(urls)
            clients.start()
            cria.dump(
                servers[0].pid,
                directory / "checkpoint",
                leave_running=True,
                any_process=True,
                skip_in_flight=True,
                hooks=[hook, show],
            )
            clients.stop.set()
            clients.join()
            print(f"{clients.slow} of the clients' requests had to wait for the dump")
            assert clients.answered > 0
        finally:
            for server in servers:
                server.process.terminate()
                server.process.wait()


def wait_for(urls: list[str]) -> None:
    for url in urls:
        for _ in range(200):
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                time.sleep(0.05)


if __name__ == "__main__":
    main()
