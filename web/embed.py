"""Writes the C source of web/assets.h: embed.py OUT FILE..."""
import hashlib
import pathlib
import sys

TYPES = {".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8",
         ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}


def main(out, *names):
    arrays, rows = [], []
    for i, path in enumerate(map(pathlib.Path, names)):
        data = path.read_bytes()
        tag = hashlib.sha256(data).hexdigest()[:16]
        arrays.append(f"static const unsigned char file_{i}[] = {{{','.join(map(str, data))}}};")
        rows.append(f'    {{"/{path.name}", "{TYPES[path.suffix]}", "\\"{tag}\\"", '
                    f"file_{i}, {len(data)}}},")
    text = ['#include "web/assets.h"', "#include <string.h>", *arrays,
            "static const struct asset assets[] = {", *rows, "};",
            "const struct asset *assets_find(const char *path) {",
            "    for (size_t i = 0; i < sizeof assets / sizeof *assets; i++)",
            "        if (!strcmp(path, assets[i].path)) return &assets[i];",
            "    return NULL;", "}"]
    pathlib.Path(out).write_text("\n".join(text) + "\n")


main(*sys.argv[1:])
