"""Says ten times a second what its semaphore is worth: as much as the command line gives it.

glibc makes it under another name than the one it then has: what is mapped has lost its name.
"""

from __future__ import annotations

import multiprocessing
import sys
import time

semaphore = multiprocessing.get_context("spawn").Semaphore(int(sys.argv[1]))
print("ready", flush=True)
while True:
    time.sleep(0.1)
    print(semaphore.get_value(), flush=True)
