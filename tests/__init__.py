"""The tests; installed with the package, so that a wheel can be checked where it runs."""
