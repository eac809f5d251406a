"""`edgesmith`, and `python -m edgesmith`."""

from __future__ import annotations

from typing import Never

from edgesmith.ending import hear_signals, leave
from edgesmith.errors import INTERRUPTION


def main() -> Never:
    """Run the command line. Ctrl-C while that is still imported is answered like any other."""
    try:
        hear_signals()
        from edgesmith.cli import main as run

        run()
    except KeyboardInterrupt:
        leave(f"edgesmith: {INTERRUPTION}")


if __name__ == "__main__":
    main()
