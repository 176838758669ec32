"""The memory in a checkpoint: without its zero pages, compressed, and put back into restored processes."""
