"""Checkpoint containers through the kubelet of their node."""
