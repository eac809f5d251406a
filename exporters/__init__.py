"""From an nn.Module to a verified file: `export.export` is the whole way, on one screen."""
