"""Benchmarks of cria: cold start, CRIU alone and cria, side by side in one run."""
