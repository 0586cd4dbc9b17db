#!/bin/sh
# Every header compiles alone and carries its contract: job, owner, loans, thread, failure, cost.
set -u
cd "${1:?the repository root}"
bad=0
for header in $(find kernels engine server web -name '*.h' -o -name '*.cuh'); do
    case $header in
    kernels/neon/*) # where the cross compiler is, see tests/cross
        compile=$(command -v aarch64-linux-gnu-gcc || echo true) ;;
    kernels/cuda/plugin.h) compile="${CC:-cc} -std=c17 -x c" ;;
    kernels/cuda/*) compile="${CXX:-c++} -std=c++17 -x c++" ;; # CUDA, as the emulation sees it
    *) compile="${CC:-cc} -std=c17 -x c" ;;
    esac
    case $header in
    kernels/neon/*) flags='-std=c17 -x c' ;;
    *) flags='-mavx2 -mavx512f' ;;
    esac
    # shellcheck disable=SC2086 # lists of words
    printf '#include "%s"\n' "$header" |
        $compile $flags -D_POSIX_C_SOURCE=200809L -I. -fsyntax-only - 2>/dev/null || {
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
