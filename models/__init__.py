"""Models in plain PyTorch. A family is `<family>.py`, its architecture and builders, and `<family>.toml`, its facts."""
