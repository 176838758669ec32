"""What an engine that `cria run` started loads of cria: it needs nothing that vLLM does not bring."""
