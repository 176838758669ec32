"""Says five times a second what its clocks show: monotonic, since boot, wall."""

import time

print("ready", flush=True)
while True:
    time.sleep(0.2)
    clocks = (time.CLOCK_MONOTONIC, time.CLOCK_BOOTTIME, time.CLOCK_REALTIME)
    print(*map(time.clock_gettime, clocks), flush=True)
