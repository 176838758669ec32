"""`python -m cria` is the command `cria`."""

from cria.cli import main

main()
