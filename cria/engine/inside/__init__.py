"""What runs in the engine's own Python: it needs nothing that vLLM does not bring."""
