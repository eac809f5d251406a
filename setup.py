from pathlib import Path

from setuptools import setup

# The top-level folders are installed under one import name, so that no generic name reaches site-packages.
FOLDERS = {"edgesmith": "src/edgesmith"}
FOLDERS |= {f"edgesmith.{name}": name for name in ("kernels", "models", "profiles", "exporters", "bench")}
PACKAGES = {
    ".".join([package, *file.parent.relative_to(folder).parts]): str(file.parent)
    for package, folder in FOLDERS.items()
    for file in sorted(Path(folder).rglob("__init__.py"))
}

setup(
    packages=list(PACKAGES),
    package_dir=PACKAGES,
    package_data={
        "edgesmith": ["py.typed"],
        "edgesmith.bench": ["*.schema.json"],
        "edgesmith.bench.estimation": ["*.schema.json", "data/*"],
        "edgesmith.bench.peers": ["*.schema.json", "*.c"],
        "edgesmith.bench.report": ["*.html", "*.css"],
        "edgesmith.cli": ["*.schema.json"],
        "edgesmith.exporters": ["*.schema.json"],
        "edgesmith.exporters.departures": ["*.toml"],
        "edgesmith.exporters.generated": ["models.jsonl"],
        "edgesmith.exporters.mil": ["*.schema.json"],
        "edgesmith.exporters.verification": ["operators.json"],
        "edgesmith.exporters.tensorrt.kit": ["*.schema.json"],
        "edgesmith.kernels.native": ["*.h", "*.cpp"],
        "edgesmith.models": ["*.toml"],
        "edgesmith.profiles": ["*.toml", "measured/*/*.json"],
    },
)
