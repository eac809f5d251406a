#!/usr/bin/env bash
# The three walks in a fresh environment: the README's first command with the extras that the guides need, then each guide
# to its end. Takes about ten minutes. Usage: tests/walks/fresh.sh FOLDER
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=$(mkdir -p "$1" && cd "$1" && pwd)
python3 -m venv "$folder/venv"
(cd "$root" && "$folder/venv/bin/pip" install -q -c constraints.txt ".[coreml]")
cd "$folder"
for guide in coreml jetson gate; do
  "$folder/venv/bin/python" "$root/tests/walks/walk.py" "$root/docs/guides/$guide.md" "$folder/$guide"
done
