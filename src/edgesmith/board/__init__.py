"""Files that run where edgesmith is not: the part that they share, and joining it with their own into one file."""
