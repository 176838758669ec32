"""Everything that asks the kernel: processes, sockets, memory, files, locks."""
