#!/bin/sh
# nvcc's gate: nvcc.sh GPTQT MODEL EMULATION.so. Every kernel compiles for every architecture without
# warnings, its registers are those of the table, and the plugin that these objects make is, on a machine
# without a driver, an error of one line or a fall-back to the CPU.
set -u
here=$(dirname "$0")
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
"$here/registers" --plugin "$tmp/libgptqt-cuda.so" || exit
python3 "$here/../api/gpu.py" "$1" "$2" "$3" "$tmp/libgptqt-cuda.so" without_a_driver
