"""Fused ops: their meaning and their lowerings. One op is one file; `op.py` finds them. Only a lowering imports its
backend.
"""
