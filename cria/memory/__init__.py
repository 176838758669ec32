"""The memory of a checkpoint: zero pages, compressed pages, shared memory, lazy restore."""
