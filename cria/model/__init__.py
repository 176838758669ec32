"""What an engine holds and a checkpoint stores, as plain structs."""
