"""What was made and measured as one page: page.py finds and lays out, figures.py draws, page.html is the frame."""
