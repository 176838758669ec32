"""A vLLM engine: launch it, find it, take its inventory, control it."""
