"""The version of cria: the build takes it from here, so that a checkout and an installed wheel agree."""

VERSION = "0.1.0"
