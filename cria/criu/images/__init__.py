"""CRIU's image files: framing, files.img, memory, and what a directory of them holds."""
