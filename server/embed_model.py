"""Quantizes a model and writes a C source that holds the checkpoint:

    embed_model.py GPTQT-QUANTIZE MODEL OUT.c FOLDER [ARGUMENT OF GPTQT-QUANTIZE...]

The files' bytes come in by the assembler's .incbin: a C array of megabytes takes the compiler
seconds. Weights are used in place, hence the alignment to 64 bytes.
"""
import os
import shutil
import subprocess
import sys

HEAD = """#include "server/builtin.h"

#include <stddef.h>
"""
FILE = """
__asm__(".section .rodata\\n.balign 64\\nbuiltin_{i}:\\n.incbin \\"{path}\\"\\n"
        "builtin_{i}_end:\\n.byte 0\\n.previous");
extern const unsigned char builtin_{i}[] __attribute__((visibility("hidden")));
extern const unsigned char builtin_{i}_end[] __attribute__((visibility("hidden")));
"""


def write(out, folder):
    names = sorted(n for n in os.listdir(folder) if n.endswith((".json", ".safetensors")))
    with open(out, "w", encoding="utf-8") as f:
        f.write(HEAD)
        for i, name in enumerate(names):
            f.write(FILE.format(i=i, path=os.path.abspath(os.path.join(folder, name))))
        f.write("\nint builtin_files(struct source_file *files) {\n")
        for i, name in enumerate(names):
            f.write(f'    files[{i}] = (struct source_file){{"{name}", builtin_{i}, '
                    f"(size_t)(builtin_{i}_end - builtin_{i})}};\n")
        f.write(f"    return {len(names)};\n}}\n")


def main(quantize, model, out, folder, *arguments):
    checkpoint = os.path.join(folder, "builtin")
    shutil.rmtree(checkpoint, ignore_errors=True)
    os.makedirs(folder, exist_ok=True)
    subprocess.run([quantize, model, checkpoint, *arguments], check=True)
    write(out, checkpoint)


main(*sys.argv[1:])
