"""Rewrites on the captured graph, one a file; `exporters.rewrite` lists them in their order."""
