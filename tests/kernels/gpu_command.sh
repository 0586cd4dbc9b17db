#!/bin/sh
# tests/bench/gpu where there is no GPU: gpu_command.sh EMULATION.so GPTQT MODEL. Its check links with the
# host's compiler alone and runs, whole models are measured, what is missing is skipped aloud, and
# llama.cpp and vLLM, of which there are stand-ins here, are asked for the same sizes. TAP.
set -u
emulation=$(realpath "$1") GPTQT=$(realpath "$2") model=$(realpath "$3")
command=$(dirname "$0")/../bench/gpu
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
export GPTQT GPTQT_GPU_BUILD="$tmp/build"
PATH=$tmp/bin:/usr/bin:/bin
mkdir "$tmp/bin"

n=0
verdict() { # verdict STATUS TEXT
    n=$((n + 1))
    if [ "$1" = 0 ]; then echo "ok $n - $2"; else echo "not ok $n - $2"; sed 's/^/# /' "$tmp/report"; fi
}
says() { # says PATTERN...: whether the report has a line of each
    for pattern; do grep -q -- "$pattern" "$tmp/report" || { echo "# no line of '$pattern'"; return 1; }; done
}
echo 1..4

"$command" --plugin "$emulation" --part elements >"$tmp/report" 2>&1
status=$?
[ $status = 0 ] && says '^ok 1 - elements' '^SKIPPED whole models' '^SKIPPED llama.cpp' '^SKIPPED vLLM' '^SKIPPED timings'
verdict $? "the check links and runs, the rest is skipped aloud"

for peer in llama-bench vllm; do
    printf '#!/bin/sh\necho "stand-in: %s $*"\n' $peer >"$tmp/bin/$peer"
    chmod +x "$tmp/bin/$peer"
done
OUT=$tmp "$command" --plugin "$emulation" --part elements --model "$model" --gguf some.gguf --hf some --prompt 8 --gen 2 \
    --batches '1 2' >"$tmp/report" 2>&1
status=$?
[ $status = 0 ] && says 'batch 2:' 'cuda-emu\|emulated' 'stand-in: llama-bench -m some.gguf -ngl 99 -p 8 -n 2' \
    'stand-in: vllm bench latency --model some --input-len 8 --output-len 2 --batch-size 2'
verdict $? "whole models, and those beside them, with the same sizes"
cmp -s "$tmp/report" "$tmp/gpu-report.txt"
verdict $? "one report"

GPTQT_EMU_FAIL_LAUNCH=3 "$command" --plugin "$emulation" --part elements --model "$model" >"$tmp/report" 2>&1
status=$?
[ $status != 0 ] && says '^FAILED: gpu_check' '^FAILED: gptqt bench'
verdict $? "failures are named and counted"
