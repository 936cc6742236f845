#!/bin/sh
# Runs the built app on the one device that is connected and brings its result to a folder: sh measure.sh FOLDER
set -eu
[ $# -eq 1 ] || { echo "wanted FOLDER" >&2; exit 2; }
place=/sdcard/Android/data/edgewise.measure/files/result.json
adb install -r "$(dirname "$0")/app/build/outputs/apk/debug/app-debug.apk"
adb shell rm -f "$place"
adb shell am start -n edgewise.measure/.MainActivity --es mode quick
n=0
# The name appears when the result is whole.
until adb shell "ls $place" 2>/dev/null | grep -q result.json; do
  n=$((n + 1))
  [ $n -lt 120 ] || { echo "no result after ten minutes" >&2; exit 1; }
  sleep 5
done
mkdir -p "$1"
adb pull "$place" "$1/result.json"
