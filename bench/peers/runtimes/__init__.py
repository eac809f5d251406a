"""Peers: one module of this folder each; its `PEER` is a `Peer` (../peer.py)."""
