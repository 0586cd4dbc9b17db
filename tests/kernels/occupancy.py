#!/usr/bin/env python3
"""What cards make of the kernels by arithmetic, from kernels/cuda/registers.txt: occupancy.py [DOCUMENT]

Prints the tables of kernels/cuda/DESIGN.md: warps a multiprocessor by registers and shared memory, and the
memory rate of products of one token. All predicted, not measured, but for what H200 says. With DOCUMENT,
fails where a line of them is not in it.
"""
import re
import sys

TABLE = "kernels/cuda/registers.txt"
# name: whose registers (nvcc's table has sm_80 and sm_90), multiprocessors, GHz, memory TB/s, KiB of shared memory
# of a multiprocessor, most warps
CARDS = {"A100 80 GB": (80, 108, 1.41, 2.04, 164, 64), "RTX 4090": (80, 128, 2.52, 1.01, 100, 48),
         "H100 SXM": (90, 132, 1.83, 3.35, 228, 64), "H200": (90, 132, 1.83, 4.8, 228, 64),
         "B200": (90, 148, 1.85, 8.0, 228, 64)}
MOST_SHARE = 0.9  # of a card's memory rate

# name: kernel, bytes of 4096 weights, chunks of a unit, H200: (rows, columns, us of one token in kernels/SPEED.md)
PRODUCTS = {
    "compact, 2 bits": ("few_tokens<compact_form<2, false>, 1, true>", 1408, 2, (8192, 8192, 17.9)),
    "compact, 3 bits": ("few_tokens<compact_form<3, false>, 1, true>", 1920, 2, (22016, 4096, 25.8)),
    "compact, 4 bits": ("few_tokens<compact_form<4, false>, 1, true>", 2432, 2, (8192, 8192, 24.0)),
    "planes, 2 bits, groups of 128": ("few_tokens<planes_form<2, 8>, 1, true>", 1280, 1, None),
    "planes, 3 bits, groups of 128": ("few_tokens<planes_form<3, 8>, 1, true>", 1792, 1, (8192, 8192, 22.8)),
    "planes, 4 bits, groups of 128": ("few_tokens<planes_form<4, 8>, 1, true>", 2432, 1, None),
    "fp16": ("few_tokens<halves_form, 1, true>", 8192, 1, None),
}
# name: kernel, threads, dynamic shared memory
OTHERS = {
    "many tokens, compact, 3 bits": ("many_tokens<compact_form<3, false> >", 256, 0),
    "many tokens, planes, 3 bits": ("many_tokens<planes_form<3, 8> >", 256, 0),
    "many tokens, fp16": ("many_tokens<halves_form>", 256, 0),
    "attention of a prompt, heads of 128": ("walk_kernel<128>", 32, 0),
    "attention of one token, heads of 128": ("split_kernel<128>", 128, 0),
    "merge of its pieces": ("merge_kernel", 256, 0),
    "norm and packing, 4096 wide": ("input_kernel<1, true>", 512, 17408),
    "gate and packing, 11008 wide": ("input_kernel<2, true>", 1024, 46784),
}


def read_table(path):
    """{(capability, kernel): (registers, static shared memory)}"""
    found = {}
    for line in open(path, encoding="utf-8"):
        m = re.match(r"sm_(\d+) (?:void )?(.*?)\(.*\) (\d+) (\d+) \d+ \d+$", line)
        if m:
            found[int(m[1]), m[2]] = int(m[3]), int(m[4])
    return found


def warps(card, registers, shared, threads):
    """Of a multiprocessor: registers go to warps by 256, a block costs 1 KiB of shared memory more."""
    _, _, _, _, room, most = card
    each = threads // 32
    by_registers = 65536 // ((registers * 32 + 255) // 256 * 256) // each
    by_shared = (room << 10) // (shared + 1024)
    return min(by_registers, by_shared, most // each, 32) * each


def columns_bytes(cols, chunks):
    """What a block of few_tokens() brings for one token, as columns_of_part::bytes() counts."""
    units = -(-cols // (128 * chunks))
    return 8 * -(-units // 8) * 4 * (4 * chunks + 1) * 16


def rate_on_h200(name):
    """Bytes a second in TB; None: memory is what bounds it."""
    _, unit, _, measured = PRODUCTS[name]
    if name.startswith("planes") and not measured:
        return rate_on_h200("planes, 3 bits, groups of 128")
    return measured and measured[0] * measured[1] / 4096 * unit / measured[2] / 1e6


def product_cell(table, name, card):
    kernel, _, chunks, _ = PRODUCTS[name]
    capability, processors, ghz, memory, _, most = card
    registers, static = table[capability, kernel]
    live = warps(card, registers, static + columns_bytes(4096, chunks), 256)
    rate = rate_on_h200(name)
    rate = min(MOST_SHARE * memory, rate * processors * ghz / (132 * 1.83) if rate else MOST_SHARE * memory)
    return f"{live} of {most}; {rate:.2f} ({100 * rate / memory:.0f} %)"


def other_cell(table, name, card):
    kernel, threads, dynamic = OTHERS[name]
    registers, static = table[card[0], kernel]
    return f"{warps(card, registers, static + dynamic, threads)} of {card[5]}"


def lines(table):
    head = ["| | " + " | ".join(CARDS) + " |", "| --- |" + " --- |" * len(CARDS)]
    for names, cell in (PRODUCTS, product_cell), (OTHERS, other_cell):
        yield from head
        for name in names:
            yield f"| {name} | " + " | ".join(cell(table, name, card) for card in CARDS.values()) + " |"
        yield ""


def main():
    out = list(lines(read_table(TABLE)))
    if len(sys.argv) < 2:
        print("\n".join(out))
        return 0
    document = open(sys.argv[1], encoding="utf-8").read().splitlines()
    missing = [line for line in out if line not in document]
    for line in missing:
        print(f"not ok - {sys.argv[1]} lacks: {line}")
    if not missing:
        print(f"ok - {sys.argv[1]} has what follows from {TABLE}")
    return bool(missing)


sys.exit(main())
