#!/bin/sh
# Unpack ONNX Runtime's C++ headers below a folder, installing nothing, and print where they are: fetch_headers.sh DIR
#
# Debian has them from trixie on. Older releases can read them all the same, as they are headers alone: the system's own
# first source serves, with its suite changed.
set -eu
mkdir -p "$1"
dir=$(cd "$1" && pwd)
include="$dir/usr/include/onnxruntime"
if test -f "$include/onnxruntime_cxx_api.h"; then
  echo "$include"
  exit
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
awk 'NF == 0 { exit } { sub(/^Suites:.*/, "Suites: trixie"); print }' \
  /etc/apt/sources.list.d/debian.sources >"$work/debian.sources"
mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial"
from_trixie() {
  apt-get -qq -o Dir::Etc::sourcelist="$work/debian.sources" -o Dir::Etc::sourceparts=- \
    -o Dir::State="$work/state" -o Dir::Cache="$work/cache" -o APT::Sandbox::User=root "$@"
}
cd "$work"
from_trixie update
from_trixie download libonnxruntime-dev
dpkg-deb -x libonnxruntime-dev_*.deb "$dir"
echo "$include"
