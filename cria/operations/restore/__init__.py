"""Restore a checkpoint: the list of steps is in steps.py."""
