"""CRIU: the program, its RPC, its options, its log and its images."""
