"""ML Programs: reading saved Core ML packages, evaluating them with torch on the CPU, and reporting on the numbers."""
