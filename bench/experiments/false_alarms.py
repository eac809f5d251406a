"""The name that `python -m edgesmith.bench.false_alarms` had before."""

from edgesmith.bench.false_alarms import main

if __name__ == "__main__":
    main()
