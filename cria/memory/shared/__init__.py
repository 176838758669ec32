"""Memory that the clones of one checkpoint share: private mappings of one file instead of copies."""
