"""Time: measurements behind the choices that the compiler makes, each a script that prints its own figures."""
