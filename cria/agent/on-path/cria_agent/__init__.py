"""cria's agent in an engine: vLLM finds it on PYTHONPATH and loads it as two of its plugins.

`cria run` puts this directory on the engine's path, and it holds nothing else: cria's site-packages on that path
would replace the engine's libraries with cria's. The agent needs Python 3.10, vLLM and torch. It imports all of
its modules at the start, as its files may be gone when the engine is restored.
"""
