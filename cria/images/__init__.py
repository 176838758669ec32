"""CRIU image files: framing, the entries of files.img, and small facts of a whole image directory."""
