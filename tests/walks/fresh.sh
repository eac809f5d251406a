#!/usr/bin/env bash
# The three walks in a fresh environment: the README's first command, then each guide to its end; and what came of them,
# read in an environment of the core alone for each Python that is named. Takes about ten minutes.
# Usage: tests/walks/fresh.sh FOLDER [PYTHON ...], such as python3.12 python3.13
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=$(mkdir -p "$1" && cd "$1" && pwd)
python3 -m venv "$folder/venv"
(cd "$root" && "$folder/venv/bin/pip" install -q -c constraints.txt ".[coreml]")
cd "$folder"
for guide in coreml jetson gate; do
  "$folder/venv/bin/python" "$root/tests/walks/walk.py" "$root/docs/guides/$guide.md" "$folder/$guide"
done

for python in "${@:2}"; do
  core="$folder/core-$(basename "$python")"
  "$python" -m venv "$core"
  (cd "$root" && "$core/bin/pip" install -q -c constraints.txt .)
  "$core/bin/edgesmith" --help > /dev/null
  "$core/bin/edgesmith" use gate/head/lmuformer-onnx-fp32 > /dev/null
  "$core/bin/edgesmith" lint gate/head/lmuformer-onnx-fp32 --strict
  "$core/bin/edgesmith" report gate --out "$core/report.html"
  "$core/bin/edgesmith" compare gate/latency.json || [ $? -le 9 ]  # slower, or too noisy to say
  "$core/bin/edgesmith" verify gate/head/lmuformer-onnx-fp32 || [ $? -eq 4 ]  # which takes torch
done
