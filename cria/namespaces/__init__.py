"""Where a restored engine lives: among the host's processes, or in namespaces of its own."""
