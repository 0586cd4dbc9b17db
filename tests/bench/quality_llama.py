"""llama.cpp's types on the same models and texts, and whether its perplexity and ours agree."""
import json
import os
import re
import shutil
import struct
import subprocess

import quality_rows
from quality_measure import BUILD, GPTQT, QUANTIZE, ROOT, WORK, Failed, evaluate, run

# Smallest first; what the shipped mixtures really take is counted from the file.
TYPES = ["IQ2_XXS", "IQ2_XS", "IQ2_S", "Q2_K", "IQ3_XXS", "IQ3_S", "Q3_K_M", "IQ4_XS", "Q4_0", "Q4_K_M"]
# Pure and at their nominal sizes, for a model whose rows are no multiples of 256.
JOINED = ["Q2_K", "IQ3_XXS", "Q3_K", "IQ4_XS"]
AGREE_CTX = {"stories": 256, "smollm2": 512}
AGREE_CHUNKS = {"stories": 32, "smollm2": 8}
AGREE_WITHIN = 0.2  # per cent
# The programs are compared, not the weights: a few windows are enough for them.
AGREE_FLAGS = {"stories": "", "smollm2": "--static --windows 4"}
# Of a block: elements and bytes, by the number in the file (ggml.h).
SIZES = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84),
         11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 16: (256, 66), 17: (256, 74), 18: (256, 98),
         19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 29: (256, 56), 30: (1, 2)}
NAMES = {0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K",
         13: "Q5_K", 14: "Q6_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
         22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 30: "BF16"}


def read_tensors(path, change=None):
    """Yields (name, dims, type) from a GGUF file's directory; change(name, dims) may give other dims to put there."""
    with open(path, "rb+" if change else "rb") as f:
        def number(fmt):
            return struct.unpack("<" + fmt, f.read(struct.calcsize(fmt)))[0]

        def text():
            return f.read(number("Q")).decode(errors="replace")

        def skip(kind):
            if kind == 8:
                text()
            elif kind == 9:
                inner, n = number("I"), number("Q")
                for _ in range(n):
                    skip(inner)
            else:
                f.read({0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}[kind])

        f.read(8)
        n_tensors, n_pairs = number("Q"), number("Q")
        for _ in range(n_pairs):
            text()
            skip(number("I"))
        for _ in range(n_tensors):
            name = text()
            n_dims = number("I")
            at = f.tell()
            dims = [number("Q") for _ in range(n_dims)]
            if change:
                f.seek(at)
                f.write(struct.pack(f"<{n_dims}Q", *change(name, dims)))
                f.flush()
            kind = number("I")
            number("Q")
            yield name, dims, kind


def linear_bits(path):
    """(bits a weight of the blocks' matrices, what types they have)."""
    weights, size, kinds = 0, 0, {}
    for name, dims, kind in read_tensors(path):
        if not name.startswith("blk.") or len(dims) != 2:
            continue
        n = dims[0] * dims[1]
        block, n_bytes = SIZES[kind]
        weights += n
        size += n // block * n_bytes
        kinds[NAMES[kind]] = kinds.get(NAMES[kind], 0) + n
    shares = sorted(kinds.items(), key=lambda item: -item[1])
    return 8 * size / weights, ", ".join(f"{name} {100 * n / weights:.0f} %" for name, n in shares)


JOIN = 4  # 4 rows of 576 are 9 blocks of 256


def joined(name, dims):
    """Rows put behind one another where a row is no multiple of 256: the data stay where they are."""
    if not name.startswith("blk.") or len(dims) != 2 or dims[0] % 256 == 0 or dims[0] * JOIN % 256 or dims[1] % JOIN:
        return dims
    return [dims[0] * JOIN, dims[1] // JOIN]


def join_rows(source, target):
    shutil.copyfile(source, target)
    for _ in read_tensors(target, joined):
        pass


def part_rows(path, original):
    whole = {name: dims for name, dims, _ in read_tensors(original)}
    for _ in read_tensors(path, lambda name, dims: whole[name]):
        pass


def join_imatrix(source, target, whole):
    """In the older form of that file, which is written in a few lines: each entry as often as rows are joined."""
    sums, counts = {}, {}
    for name, kind, values in read_floats(source):
        (sums if kind == "in_sum2" else counts)[name] = values
    dims = {name: d for name, d, _ in read_tensors(whole)}
    with open(target, "wb") as out:
        out.write(struct.pack("<i", len(sums)))
        for name, values in sums.items():
            times = JOIN if name in dims and joined(name, dims[name]) != dims[name] else 1
            mean = [v / max(counts[name][0], 1) for v in values] * times
            out.write(struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", 1, len(mean)))
            out.write(struct.pack(f"<{len(mean)}f", *mean))


def read_floats(path):
    """Yields (name of the matrix, "in_sum2" or "counts", values) from an importance matrix."""
    entries = [(name, dims) for name, dims, kind in read_tensors(path) if kind == 0]
    with open(path, "rb") as f:
        data = f.read()
    # The data are the end of the file, in the order of the directory, at multiples of 32.
    sizes = [4 * dims[0] * (dims[1] if len(dims) > 1 else 1) for _, dims in entries]
    at = len(data) - sum((n + 31) // 32 * 32 for n in sizes)
    for (name, _), n in zip(entries, sizes):
        matrix, kind = name.rsplit(".", 1)
        yield matrix, kind, struct.unpack(f"<{n // 4}f", data[at : at + n])
        at += (n + 31) // 32 * 32


def built_tools():
    """Where peers_llama has put them, which it does now if it has not."""
    folder = os.path.join(BUILD, "llama")
    if not os.path.exists(os.path.join(folder, "bin", "llama-perplexity")):
        subprocess.run([os.path.join(ROOT, "tests", "bench", "peers_llama"), folder], check=True)
    return os.path.join(folder, "bin")


class Tools:
    def __init__(self, folder, model):
        self.folder, self.model = folder, model
        self.whole = os.path.join(WORK, f"{model.name}-f32.gguf")
        self.imatrix = os.path.join(WORK, f"{model.name}.imatrix")
        if not os.path.exists(self.whole):
            run([GPTQT, "export", model.path, self.whole, "--type", "f32"])

    def tool(self, name, *args):
        return run([os.path.join(self.folder, name), *args])

    def make_imatrix(self):
        """Of as much of the calibration text as the quantizer takes by default."""
        if not os.path.exists(self.imatrix):
            self.tool("llama-imatrix", "-m", self.whole, "-f", self.model.calibration, "-o", self.imatrix, "-c", "512",
                      "--chunks", "128")

    def quantize(self, kind, out):
        self.make_imatrix()
        _, spent = self.tool("llama-quantize", "--imatrix", self.imatrix, "--token-embedding-type", "f16",
                             "--output-tensor-type", "f16", self.whole, out, kind)
        return spent

    def perplexity(self, path):
        out = run_both([os.path.join(self.folder, "llama-perplexity"), "-m", path, "-f", self.model.text, "-c",
                        str(AGREE_CTX[self.model.name]), "--chunks", str(AGREE_CHUNKS[self.model.name])])
        return float(re.search(r"Final estimate: PPL = ([0-9.]+)", out)[1])


def run_both(command):
    """Standard output and error together: llama.cpp's results are in its log."""
    return run(["sh", "-c", 'exec "$@" 2>&1', "sh", *command])[0]


def type_row(tools, kind):
    model = tools.model
    coded = os.path.join(WORK, f"{model.name}-{kind}.gguf")
    wide = os.path.join(WORK, f"{model.name}-wide.gguf")
    try:
        spent = tools.quantize(kind, coded)
        bits, kinds = linear_bits(coded)
        tools.tool("llama-quantize", "--allow-requantize", coded, wide, "F32")
        result = {"bits": bits, "kinds": kinds, "quantize": spent, "eval": evaluate(model, wide)}
        if model.other:
            result["other"] = evaluate(model, wide, model.other, model.other_chunks)
        return result
    finally:
        for path in (coded, wide):
            if os.path.exists(path):
                os.remove(path)


def joined_row(tools, kind):
    """A pure type at its nominal size: rows joined, quantized, widened, parted."""
    model = tools.model
    tools.make_imatrix()
    rows, coded, wide, matrix = (os.path.join(WORK, f"{model.name}-joined{end}") for end in
                                 (".gguf", "-coded.gguf", "-wide.gguf", ".imatrix"))
    try:
        join_rows(tools.whole, rows)
        join_imatrix(tools.imatrix, matrix, tools.whole)
        _, spent = tools.tool("llama-quantize", "--imatrix", matrix, "--pure", "--token-embedding-type", "f16", rows, coded,
                              kind)
        bits, kinds = linear_bits(coded)
        tools.tool("llama-quantize", "--allow-requantize", coded, wide, "F32")
        part_rows(wide, tools.whole)
        result = {"bits": bits, "kinds": f"{kinds}; rows joined by {JOIN}", "quantize": spent, "eval": evaluate(model, wide)}
        if model.other:
            result["other"] = evaluate(model, wide, model.other, model.other_chunks)
        return result
    finally:
        for path in (rows, coded, wide, matrix):
            if os.path.exists(path):
                os.remove(path)


def ours(model, path):
    command = [GPTQT, "eval", path, "--text", model.text, "--protocol", "llama.cpp", "--json", "--ctx",
               str(AGREE_CTX[model.name]), "--chunks", str(AGREE_CHUNKS[model.name])]
    return json.loads(run(command)[0])["perplexity"]


def agreement(tools, name, flags):
    """The same weights in both programs: a checkpoint by us, its dense F16 GGUF by both."""
    model = tools.model
    dense = os.path.join(WORK, f"{model.name}-agree.gguf")
    coded = os.path.join(WORK, f"{model.name}-agree")
    path = model.path
    try:
        if flags is not None:
            run([QUANTIZE, model.path, coded, "--calibration", model.calibration, "--force", *flags.split(),
                 *AGREE_FLAGS[model.name].split()])
            path = coded
        run([GPTQT, "export", path, dense])
        return {"what": name, "checkpoint": ours(model, path), "gguf": ours(model, dense),
                "llama": tools.perplexity(dense)}
    finally:
        if os.path.exists(dense):
            os.remove(dense)


AGREE = [("original", None), ("default, 2 bits", "--bits 2"), ("default, 3 bits", "--bits 3"),
         ("GPTQ, free groups of 64, 3 bits", "--bits 3 --method gptq --params free --group 64")]


def run_model(model, store, options):
    failed = 0
    tools = Tools(options.llama, model)
    jobs = [(f"llama {model.name} {kind}", lambda k=kind: type_row(tools, k)) for kind in TYPES]
    if model.name == "smollm2":
        jobs = [(f"llama {model.name} {kind}, joined", lambda k=kind: joined_row(tools, k)) for kind in JOINED] + jobs
    jobs += [(f"agree {model.name} {name}", lambda n=name, f=flags: agreement(tools, n, f)) for name, flags in AGREE]
    for key, job in jobs:
        if key in store.results and not (options.retry and "failed" in store.results[key]):
            continue
        print(key, flush=True)
        try:
            store.keep(key, job())
        except Failed as e:
            store.keep(key, {"failed": str(e)})
            failed += 1
        print(f"  {json.dumps(store.results[key])[:300]}", flush=True)
    return failed


def measure_all(models, store, options):
    return sum(run_model(m, store, options) for m in models if m.here())


def type_lines(model, store):
    kinds = TYPES + [f"{kind}, joined" for kind in JOINED if f"llama {model.name} {kind}, joined" in store.results]
    found = [(kind, store.results.get(f"llama {model.name} {kind}", {})) for kind in kinds]
    if not any("eval" in r for _, r in found):
        return []
    lines = ["", f"### {model.title}", "", "| type | bits | what the file really has | perplexity | KL | top-1 % |",
             "| --- | ---: | --- | ---: | ---: | ---: |"]
    for kind, r in found:
        if "eval" not in r:
            lines.append(f"| {kind} | | {r.get('failed', 'not measured')} | | | |")
            continue
        e = r["eval"]
        lines.append(f"| {kind} | {r['bits']:.2f} | {r['kinds']} | {e['perplexity']:.2f} | {e['kl_mean']:.4f} | "
                     f"{100 * e['top1_agreement']:.1f} |")
    return lines


def judge(ours_is, theirs):
    """Two perplexities' difference in per cent, and whether it is small enough."""
    off = 100 * (ours_is / theirs - 1)
    return f"{off:+.3f} %: {'met' if abs(off) <= AGREE_WITHIN else 'missed'}"


def agree_lines(store, models):
    lines = ["", "### The two programs on the same weights", "",
             "| model | weights | checkpoint, `gptqt eval` | F16 GGUF, `gptqt eval` | F16 GGUF, `llama-perplexity` | "
             f"difference, {AGREE_WITHIN} % at most |", "| --- | --- | ---: | ---: | ---: | --- |"]
    for model in models:
        for name, _ in AGREE:
            r = store.results.get(f"agree {model.name} {name}")
            if r and "failed" in r:
                lines.append(f"| {model.name} | {name} | {r['failed']} | | | missed |")
            elif r:
                lines.append(f"| {model.name} | {name} | {r['checkpoint']:.4f} | {r['gguf']:.4f} | {r['llama']:.4f} | "
                             f"{judge(r['gguf'], r['llama'])} |")
    return lines if len(lines) > 5 else []


TEXT = """## llama.cpp's types on the same models

Built from the source package of llama-cpp-python by `tests/bench/peers_llama`. The model is written as F32 GGUF (`gptqt export`), given an
importance matrix of the same calibration text (128 chunks of 512 tokens) and quantized by `llama-quantize`; the embedding stays F16.
The result, widened to F32 by the same program, is evaluated as every other row: what is compared is the weights. *bits* are counted
from the file. A type whose blocks of 256 do not divide a row's width falls back to another one, which the third column tells.
`llama-perplexity` itself agrees with `gptqt eval --protocol llama.cpp` on equal weights, see the last table.
"""


def lines(store):
    models = [m for m in quality_rows.for_table()]
    parts = [line for m in models for line in type_lines(m, store)] + agree_lines(store, models)
    return ["", *TEXT.splitlines(), *parts] if parts else []
