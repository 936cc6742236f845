#!/bin/sh
# Lays a bundle out for an app: sh unpack.sh BUNDLE.pyz FOLDER
set -eu
[ $# -eq 2 ] || { echo "wanted BUNDLE.pyz FOLDER" >&2; exit 2; }
rm -rf "$2/bundle" "$2/bundle.sha256"
mkdir -p "$2"
python3 -m zipfile -e "$1" "$2/bundle"
# Of the file itself, by which the result is known again.
{ sha256sum "$1" 2>/dev/null || shasum -a 256 "$1"; } | cut -c1-64 > "$2/bundle.sha256"
