#!/bin/sh
# Fails if the compiled inner loop of the shift products multiplies. OBJECT... are objects or archives of what the compiler
# made of kernels/ref/shift_sum.c; a control shows that a multiplication would be found.
set -u
command -v objdump >/dev/null || { echo "1..0 # SKIP no objdump"; exit 0; }
pattern='[[:space:]]v?(p?i?mul|p?madd|fmadd|pdp|vdp|dpps|fn?m(add|sub)|fmul|smull|umull|mla)[a-z0-9]*[[:space:]]'
echo 1..2
tmp=$(mktemp -d) && trap 'rm -rf "$tmp"' EXIT
echo 'int f(int a, int b) { return a * b; } float g(float a, float b) { return a * b; }' >"$tmp/c.c"
${CC:-cc} -O2 -c "$tmp/c.c" -o "$tmp/c.o"
if [ "$(objdump -d "$tmp/c.o" | grep -cE "$pattern")" -ge 2 ]; then echo "ok 1 - products are found"; else echo "not ok 1 - products are not found"; fi
found=0 n=0
for object; do
    n=$((n + $(objdump -d "$object" | grep -c '<ref_shift_sum>:')))
    objdump -d "$object" | grep -E "$pattern" && found=1
done
if [ $found = 0 ] && [ $n -ge 1 ]; then echo "ok 2 - adds and shifts alone"; else echo "not ok 2 - the loop multiplies or is not there"; fi
