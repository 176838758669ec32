"""Read and rewrite the checkpoint archives of container runtimes."""
