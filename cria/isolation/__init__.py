"""The namespaces of a clone: its init, its private view of the host, its forwarded ports."""
