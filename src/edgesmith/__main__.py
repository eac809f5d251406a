"""`python -m edgesmith`."""

from edgesmith.cli import main

main()
