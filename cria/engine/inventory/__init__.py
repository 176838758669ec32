"""The inventory of an engine: its processes, its sockets, and what each is for."""
