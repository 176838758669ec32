"""What cria does: dump, restore, replicas, pack, checks. Each operation is a list of steps."""
