"""Foreign files are opened here and nowhere else: bounded in size, depth and time, typed, with one error, `Unreadable`.

    budget       bytes of a file, read whole or not at all
    documents    JSON and TOML: depth, numbers, text
    archives     zip archives: names, declared sizes and checksums, before anything is inflated
    tensors      `.safetensors` and `.npz`
    pickles      PyTorch's `.pth`: checksums and sizes first, then its restricted unpickler
    messages     protobuf: ONNX and Core ML's specification
    databases    SQLite: what is read of one
    typed        tables as dataclasses
    limits       a command again, in a process with a limit of time and memory
    apart        what native code reads, in a process that may die of it

What a reader returns has the types that it promises; what the values mean is for the room that asked. A test refuses
`json.load`, `tomllib`, `numpy.load`, `zipfile`, `sqlite3.connect`, `torch.load` and their like anywhere else.
"""
