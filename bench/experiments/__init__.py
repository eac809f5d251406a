"""Measurements behind the choices of the compiler, each a command."""
