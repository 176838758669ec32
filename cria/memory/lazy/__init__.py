"""Lazy restore: an engine runs while its memory still arrives from a page server."""
