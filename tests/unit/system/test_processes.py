"""cria writes the memory of another process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cria.system.processes import write_memory


def test_memory_of_another_process_is_written() -> None:
    held = (
        "import ctypes,sys; b=ctypes.create_string_buffer(100);"
        "print(ctypes.addressof(b),flush=True); sys.stdin.read(1); print(b.raw[:9].decode())"
    )
    with subprocess.Popen(
        [sys.executable, "-c", held], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        address = int(other.stdout.readline())
        write_memory(other.pid, b"abcdefghi", [(address + 3, 6), (address, 3)])
        with pytest.raises(OSError, match="Bad address"):
            write_memory(other.pid, b"abc", [(8, 3)])
        output, _ = other.communicate("x")
    assert output == "ghiabcdef\n"
