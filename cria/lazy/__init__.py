"""Lazy restore: an engine runs while its memory still arrives, served by a process of cria's own."""
