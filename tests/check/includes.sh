#!/bin/sh
# Includes point one way, kernels <- engine <- server, and always from the repository root.
# The table is that of engine/README.md, "Which way includes point".
set -u
cd "${1:?the repository root}"
bad=0
complain() {
    echo "not ok - $1 includes $2"
    bad=1
}

scan() { # folder: every quoted include as 'file path'
    grep -rnE '^[[:space:]]*#[[:space:]]*include[[:space:]]*[<"]' --include='*.[ch]' --include='*.cu*' --include='*.cc' "$1" |
        sed -E 's/^([^:]+):[0-9]+:[[:space:]]*#[[:space:]]*include[[:space:]]*([<"])([^>"]+)[>"].*/\1 \2 \3/'
}

scan kernels | while read -r file kind path; do
    case $kind$path in
    '"'kernels/*) ;;
    '"'*) complain "$file" "$path" ;;
    '<'jansson.h | '<'microhttpd.h | '<'uv.h | '<'pcre2.h | '<'cblas.h) complain "$file" "$path" ;;
    esac
    [ $bad = 0 ] || exit 1
done || exit 1

scan engine | while read -r file kind path; do
    case $kind$path in
    '"'engine/quant/* | '"'engine/train/*) case $file in engine/quant/* | engine/train/*) ;; *) complain "$file" "$path" ;; esac ;;
    '"'engine/*) ;;
    '"'kernels/backend.h | '"'kernels/weights.h | '"'kernels/outliers.h | '"'kernels/rotation.h | '"'kernels/expand.h) ;;
    '"'kernels/error.h | '"'kernels/float16.h | '"'kernels/rounding.h | '"'kernels/profile.h) ;;
    '"'*) complain "$file" "$path" ;;
    '<'microhttpd.h | '<'uv.h) complain "$file" "$path" ;;
    '<'cblas.h | '<'lapacke.h | '<'openblas*) case $file in engine/quant/* | engine/train/*) ;; *) complain "$file" "$path" ;; esac ;;
    esac
    [ $bad = 0 ] || exit 1
done || exit 1

scan server | while read -r file kind path; do
    case $kind$path in
    '"'server/* | '"'web/assets.h | '"'kernels/error.h) ;;
    '"'engine/quant/* | '"'engine/train/*) case $file in server/quantize_*) ;; *) complain "$file" "$path" ;; esac ;;
    '"'engine/kv.h | '"'engine/scheduler.h | '"'engine/sequence.h) complain "$file" "$path" ;;
    '"'engine/*) ;;
    '"'kernels/backend.h | '"'kernels/weights.h)
        case $file in server/cmd_*.c | server/cli.? | server/quantize_*) ;; *) complain "$file" "$path" ;; esac ;;
    '"'*) complain "$file" "$path" ;;
    '<'microhttpd.h | '<'uv.h) case $file in server/loop* | server/http* | server/watch*) ;; *) complain "$file" "$path" ;; esac ;;
    '<'cblas.h | '<'lapacke.h) complain "$file" "$path" ;;
    esac
    [ $bad = 0 ] || exit 1
done || exit 1
echo "ok - includes point one way"
