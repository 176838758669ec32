"""A process with memory on a GPU: `python torch_on_gpu.py PORT MIB` answers a checksum of it on PORT."""

from __future__ import annotations

import json
import os
import socket
import sys

import torch


def main() -> None:
    port, size = int(sys.argv[1]), int(sys.argv[2]) << 20
    torch.manual_seed(7)
    memory = torch.randint(0, 255, (size,), dtype=torch.uint8, device="cuda")
    server = socket.create_server(("127.0.0.1", port))
    print("ready", flush=True)
    while True:
        connection, _ = server.accept()
        with connection:
            connection.makefile().readline()
            told = {"pid": os.getpid(), "sum": int(memory.sum(dtype=torch.int64).item())}
            connection.sendall(json.dumps(told).encode() + b"\n")


if __name__ == "__main__":
    main()
