from setuptools import setup

# The top-level folders are installed under one import name, so that no generic name reaches site-packages.
FOLDERS = {
    "edgesmith": "src/edgesmith",
    "edgesmith.kernels": "kernels",
    "edgesmith.models": "models",
    "edgesmith.profiles": "profiles",
    "edgesmith.exporters": "exporters",
    "edgesmith.exporters.kit": "exporters/kit",
    "edgesmith.exporters.mil": "exporters/mil",
    "edgesmith.exporters.mil.ops": "exporters/mil/ops",
    "edgesmith.exporters.rewrites": "exporters/rewrites",
    "edgesmith.exporters.targets": "exporters/targets",
    "edgesmith.bench": "bench",
    "edgesmith.bench.transport": "bench/transport",
    "edgesmith.bench.report": "bench/report",
    "edgesmith.tests": "tests",
}

setup(
    packages=list(FOLDERS),
    package_dir=FOLDERS,
    package_data={
        "edgesmith": ["py.typed"],
        "edgesmith.bench": ["*.schema.json", "data/*"],
        "edgesmith.bench.report": ["*.html", "*.css"],
        "edgesmith.models": ["*.toml"],
        "edgesmith.profiles": ["*.toml", "measured/*/*.json"],
        "edgesmith.tests": ["golden/*.txt", "fixtures/*", "standins/*", "standins/mac/*"],
    },
)
