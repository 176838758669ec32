"""CRIU's images: framing, messages, files.img, memory, and the images of one dump together."""
