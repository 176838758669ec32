"""GPU state: found from outside, taken off and given back by NVIDIA's driver, all processes of an engine or none."""
