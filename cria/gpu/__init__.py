"""GPU memory: found from outside, saved and restored by NVIDIA's driver, all processes together."""
