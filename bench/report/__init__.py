"""One page of all that was made and measured: page.py finds and lays out, figures.py draws, page.html is the frame."""
