"""What fused ops mean. One op is one file; `op.py` finds them. Imports torch, and a backend only inside its lowering."""
