"""The way a file is run: its inputs and outputs in words, and the few lines of each language that run exactly it.

    facts.py         what an artifact's manifest says of its file
    source.py        names and literals as the languages write them
    onnx_runtime.py coreml.py coreai.py tensorrt.py library.py   a runtime each: its snippets
    guide.py         USE.md: all of it on a page

A target says which snippets its files have (`Target.snippets`). Everything follows from the manifest alone, so the page
is the same bytes for the same artifact, and `edgesmith use` writes it for any artifact without torch.
"""
