"""The referee: what a model takes in other runtimes, and in ours, on one machine in one interleaved run.

peer.py      a runtime, what it reads, how it is opened; runtimes/ has one a file, found by listing
subject.py   a model: inputs, PyTorch's outputs, its multiply-accumulates, and the forms in which peers get it
worker.py    the process of one peer; processes.py: the end that we hold of it
contest.py   conversions, then launches: all peers in turn, each in a process of its own
peaks.py     the machine's multiply-adds and bandwidth, measured by peaks.c; the roofline of a model
record.py    what came of it, with a schema
"""
