"""Devices as data: one TOML file each, every figure with its source. `device.py` reads them."""
