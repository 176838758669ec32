"""Benchmarks of cria: a cold start, CRIU alone and cria, compared in one run. The wheel does not contain them."""
