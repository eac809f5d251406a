"""What fused ops mean. One op is one file; `op.py` finds them. Only a lowering imports its backend."""
