"""What runs on a node: CRIU's action script, and its installation."""
