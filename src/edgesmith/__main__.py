"""`edgesmith`, and `python -m edgesmith`."""

from __future__ import annotations

import os
import sys
from typing import Never

from edgesmith.ending import code_of_interrupt, hear_signals
from edgesmith.errors import INTERRUPTION


def main() -> Never:
    """Run the command line. Ctrl-C while that is still imported is answered like any other."""
    try:
        hear_signals()
        from edgesmith.cli import main as run
    except KeyboardInterrupt:
        print(f"edgesmith: {INTERRUPTION}", file=sys.stderr, flush=True)
        os._exit(code_of_interrupt())  # as cli.main does
    run()


if __name__ == "__main__":
    main()
