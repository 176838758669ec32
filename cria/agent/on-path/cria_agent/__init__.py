"""What an engine started by `cria run` loads: found on PYTHONPATH by vLLM, as two of its plugins.

Only this directory is put on the engine's path, so that no library of cria's replaces one of the engine's.
It needs Python 3.10, vLLM and torch. All modules are imported at the start: later the files may be gone.
"""
