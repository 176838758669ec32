"""cria's agent: the part that vLLM loads into an engine which `cria run` starts. It needs nothing that vLLM does not bring."""
