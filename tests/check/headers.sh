#!/bin/sh
# Every header compiles alone and carries its contract: job, owner, loans, thread, failure, cost.
set -u
cd "${1:?the repository root}"
bad=0
for header in $(find kernels engine server web -name '*.h' -o -name '*.cuh'); do
    case $header in
    kernels/cuda/plugin.h) compile="${CC:-cc} -std=c17 -x c" ;;
    kernels/cuda/*) compile="${CXX:-c++} -std=c++17 -x c++" ;; # CUDA, as the emulation sees it
    *) compile="${CC:-cc} -std=c17 -x c" ;;
    esac
    printf '#include "%s"\n' "$header" |
        $compile -D_POSIX_C_SOURCE=200809L -I. -mavx2 -mavx512f -fsyntax-only - 2>/dev/null || {
        echo "not ok - $header does not compile alone"
        bad=1
    }
    for word in Owns Borrows Thread Fails Cost; do
        grep -q "^ \* $word " "$header" || {
            echo "not ok - $header: its contract lacks '$word'"
            bad=1
        }
    done
done
[ $bad = 0 ] && echo "ok - headers compile alone and state their contracts"
exit $bad
