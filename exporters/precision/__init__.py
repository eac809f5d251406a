"""Number formats: which there are, how a program is typed, and what stays fp32."""
