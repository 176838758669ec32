"""Checks of a host, an engine and a checkpoint: rows that a user reads and a preflight raises."""
