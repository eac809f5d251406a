"""Departures: what devices, runtimes and compilers compute otherwise than a valid file says, and where a file has it.

departures.toml   the book: a row each, with versions, source, safe form, and two graphs that show it
book.py           the rows, read and held to their form; which apply to a version and a device, and how severely
graph.py          a graph as detectors see it, whatever file it is from; notation.py: one in a line of text
from_onnx.py from_mil.py from_coreai.py      that graph of a file
detectors/        a function for each construct
subjects.py       whom a file is read for: tensorrt@10.3
lint.py           the findings in anybody's file; sarif.py: for code hosts; page.py: docs/lint.md

A newcomer to the book is a table in departures.toml and, where a graph shows it, a function in detectors/.
"""
