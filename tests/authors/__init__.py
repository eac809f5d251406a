"""The zoo's models as their authors spell them: written from the papers and from facts about the originals.

What differs from `models/` is on purpose: in-place activations, DropPath, axes from the back, views, autocast regions,
complex numbers, neurons with a state that step through time in Python. Module names are those of the state dicts, so a
zoo model's weights load, and both must give the same numbers and the same fused ops.
"""
