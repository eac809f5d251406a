#!/usr/bin/env bash
# The walks in a fresh environment: the README's first commands, then each guide to its end; and what came of them,
# read in an environment of the core alone for each Python that is named. Takes about half an hour on two cores.
# Everything is made in FOLDER, from a copy of the checkout's files: a source tree keeps what its wheels were built of.
# Usage: tests/walks/fresh.sh FOLDER [PYTHON ...], such as python3.12 python3.13
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=$(mkdir -p "$1" && cd "$1" && pwd)
source="$folder/source"
mkdir "$source"
(cd "$root" && git ls-files -z | tar --create --null --files-from=- | tar --extract -C "$source")
cd "$folder"
PATH="$source/.venv/bin:$PATH" python3 "$root/tests/walks/walk.py" "$root/README.md" "$source" 2
for guide in own-module coreml jetson gate; do
  "$source/.venv/bin/python" "$root/tests/walks/walk.py" "$root/docs/guides/$guide.md" "$folder/$guide"
done

for python in "${@:2}"; do
  core="$folder/core-$(basename "$python")"
  "$python" -m venv "$core"
  (cd "$source" && "$core/bin/pip" install -q -c constraints.txt .)
  if "$core/bin/python" -c "import torch" 2> /dev/null; then echo "torch is in the core" >&2; exit 1; fi
  "$core/bin/edgesmith" --help > /dev/null
  "$core/bin/edgesmith" use gate/head/lmuformer-onnx-fp32 > /dev/null
  "$core/bin/edgesmith" lint gate/head/lmuformer-onnx-fp32 --strict
  "$core/bin/edgesmith" report gate --out "$core/report.html"
  "$core/bin/edgesmith" compare gate/latency.json || [ $? -le 9 ]  # slower, or too noisy to say
  "$core/bin/edgesmith" verify gate/head/lmuformer-onnx-fp32 || [ $? -eq 4 ]  # which takes torch
done
