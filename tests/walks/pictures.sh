#!/usr/bin/env bash
# The guides' pictures of pages, of what tests/walks/fresh.sh left in FOLDER; Chromium draws them, Pillow packs them.
# Usage: tests/walks/pictures.sh FOLDER
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
folder=$(cd "$1" && pwd)
shoot() { # PAGE HEIGHT NAME
  chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size="1100,$2" --screenshot="$folder/$3" "file://$1"
  "$folder/source/.venv/bin/python" - "$folder/$3" "$root/docs/guides/pictures/$3" <<'PACK'
import sys
from PIL import Image

Image.open(sys.argv[1]).convert("RGB").quantize(48).save(sys.argv[2], optimize=True)
PACK
}
shoot "$folder/gate/report.html" 720 gate-report.png
shoot "$folder/source/report.html" 1090 artifact-report.png
