"""From an nn.Module to a verified file: capture, rewrite, lower, verify, artifact. `pipeline.export` is all of it."""
