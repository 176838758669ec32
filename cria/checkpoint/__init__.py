"""A checkpoint on disk: its layout, its parts, and the archive of one."""
