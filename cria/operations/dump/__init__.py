"""Dump an engine: the list of steps is in steps.py."""
