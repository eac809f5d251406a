"""A module of the user's own, as the command line names it: described, found in edgesmith.toml, imported, built."""
