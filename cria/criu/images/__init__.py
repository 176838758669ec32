"""CRIU's images: framing, messages, files.img, memory, and the images of one dump as CriuImages."""

from cria.criu.images.directory import CriuImages

__all__ = ["CriuImages"]
