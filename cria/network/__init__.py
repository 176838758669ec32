"""Ports: plan where each socket of a checkpoint goes, hold those ports, rewrite the images."""
