#!/usr/bin/env bash
# Resolves edgesmith and its extras, from wheels alone, for every system and Python that docs/install.md names: a row for
# each, and exit code 1 where one has no solution. It downloads nothing but metadata, and needs `uv`.
# Usage: tests/walks/resolve.sh [EXTRA ...], such as run export coreml; without one, the core.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 2
export MACOSX_DEPLOYMENT_TARGET=14.0 # the oldest that ONNX Runtime's wheels are for
failed=0
for extra in "" "$@"; do
  for platform in x86_64-manylinux_2_28 aarch64-manylinux_2_28 aarch64-apple-darwin; do
    for python in 3.11 3.12 3.13 3.14; do
      if said=$(uv pip compile pyproject.toml -c constraints.txt ${extra:+--extra "$extra"} --only-binary :all: \
        --python-version "$python" --python-platform "$platform" --no-header --no-annotate -q 2>&1); then
        printf '%-10s %-24s %-5s %s packages\n' "${extra:-core}" "$platform" "$python" "$(grep -c == <<< "$said")"
      else
        printf '%-10s %-24s %-5s no: %s\n' "${extra:-core}" "$platform" "$python" "$(tr -s ' \n' ' ' <<< "$said" | cut -c1-300)"
        failed=1
      fi
    done
  done
done
exit "$failed"
