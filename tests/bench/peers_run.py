"""One measurement of our program or of llama.cpp's, in tokens a second, and what a model file really holds."""
import collections
import json
import os
import shlex
import subprocess

from quality_llama import NAMES, SIZES, read_tensors
from quality_measure import Failed

# A file under test. theirs: a GGUF for llama.cpp; otherwise a checkpoint of ours.
Side = collections.namedtuple("Side", "label theirs path bits table quality")

Sizes = collections.namedtuple("Sizes", "prompt gen batch_gen")
BATCH_PROMPT = 16  # of each sequence in a batch
# What is measured, the least ratio of ours to theirs that the project wants, and whether less is better.
TARGETS = {"decode": 1.5, "prefill": 1.25, "batch 8": 1.8, "batch 16": 1.8}
FIRST_TOKEN_TARGET = 0.8


class TooSlow(Exception):
    """It ran into the limit of time."""


class Machine:
    """How programs are run: before each one the words of --prefix, no longer than limit seconds."""

    def __init__(self, llama, gptqt, prefix, limit):
        self.llama, self.gptqt, self.limit = llama, gptqt, limit
        self.prefix = shlex.split(prefix)
        missing = [t for t in (os.path.join(llama, "llama-bench"), os.path.join(llama, "llama-batched-bench"),
                               os.path.join(llama, "llama-quantize"), gptqt) if not os.access(t, os.X_OK)]
        if missing:
            raise Failed(f"{missing[0]} is missing: tests/bench/peers_llama builds llama.cpp's, ninja -C build ours")

    def run(self, command):
        # The limit is the program's own, not that of what the prefix waits for.
        words = [*self.prefix, "timeout", str(self.limit), *command]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode == 124:
            raise TooSlow(f"more than {self.limit} s")
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise Failed(f"{os.path.basename(command[0])}: {(lines or ['no message'])[-1][:200]}")
        return done.stdout

    def rate(self, side, what, threads, flash, sizes):
        """Tokens a second of all sequences. flash: llama.cpp's -fa; ours has but one kind of attention."""
        return (self.their_rate if side.theirs else self.our_rate)(side.path, what, threads, flash, sizes)

    def their_rate(self, path, what, threads, flash, sizes):
        if what.startswith("batch"):
            n = what.split()[1]
            out = self.run([os.path.join(self.llama, "llama-batched-bench"), "-m", path, "-npp", str(BATCH_PROMPT), "-ntg",
                            str(sizes.batch_gen), "-npl", n, "-c", str(int(n) * (BATCH_PROMPT + sizes.batch_gen)), "-t",
                            str(threads), "-fa", "on" if flash else "off", "--output-format", "jsonl"])
            return last_object(out)["speed_tg"]
        work = ("0", str(sizes.gen)) if what == "decode" else (str(sizes.prompt), "0")
        out = self.run([os.path.join(self.llama, "llama-bench"), "-m", path, "-p", work[0], "-n", work[1], "-t",
                        str(threads), "-fa", str(int(flash)), "-r", "1", "-o", "jsonl"])
        return last_object(out)["avg_ts"]

    def our_rate(self, path, what, threads, _, sizes):
        prompt, gen, batch = 1, sizes.gen, 1
        if what == "prefill":
            prompt, gen = sizes.prompt, 1
        elif what.startswith("batch"):
            prompt, gen, batch = BATCH_PROMPT, sizes.batch_gen, int(what.split()[1])
        facts = json.loads(self.run([self.gptqt, "bench", path, "--json", "--prompt", str(prompt), "--gen", str(gen),
                                     "--batch", str(batch), "--threads", str(threads), "--no-read"]))
        # The mean over all steps, as llama.cpp has it: a median would leave disturbed steps out.
        return facts["prefill_tokens_per_second" if what == "prefill" else "decode_mean_tokens_per_second"]


def last_object(text):
    lines = [line for line in text.splitlines() if line.startswith("{")]
    if not lines:
        raise Failed("llama.cpp's program printed no result")
    return json.loads(lines[-1])


def gguf_facts(path):
    """(bits a weight of the blocks' matrices, the types they have, the type of the output matrix)."""
    weights, size, kinds, table = 0, 0, {}, {}
    for name, dims, kind in read_tensors(path):
        if name in ("token_embd.weight", "output.weight"):
            table[name] = NAMES[kind]
        if not name.startswith("blk.") or len(dims) != 2:
            continue
        n = dims[0] * dims[1]
        weights += n
        size += n // SIZES[kind][0] * SIZES[kind][1]
        kinds[NAMES[kind]] = kinds.get(NAMES[kind], 0) + n
    shares = sorted(kinds.items(), key=lambda item: -item[1])
    text = ", ".join(f"{kind} {100 * n / weights:.0f} %" for kind, n in shares)
    return 8 * size / weights, text, table.get("output.weight", table["token_embd.weight"])
