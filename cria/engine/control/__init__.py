"""Control a running engine over its unix socket: quiesce and resume."""
