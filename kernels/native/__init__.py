"""Compiled CPU kernels: C++ sources that are specialised by shapes, what packs their weights, and what compiles them.

    op (frozen: shape, epilogue)  --emit-->  Unit (a translation unit, its arguments)  --compile_units-->  library
    weights                       --pack-->  one array, laid out as the kernel reads it

An op is a module with its C++ header beside it: `pointwise.py` writes the constants that `pointwise.h` is compiled
with. Activations are NHWC. Nothing here imports torch.
"""
