"""What the quantizer's options store, on everything that runs it: options.py FOLDER-OF-GPTQT MODELS [EMULATION]

A tiny model is quantized under each set of options below, and its logits on every level of the CPU that this
processor has, and on the emulated GPU, are held against the level `ref`. Each line is one set on one of them:

- A prompt's logits are the same bits alone and with more tokens behind them, whichever kernels the number of
  tokens chooses, with one thread or two.
- Logits are near those of `ref`. kernels/backend.h allows a coded product 2e-4 (a GPU 3e-4) of its result. Behind
  one another there are four in a block and the output matrix; theirs add in Llama's and OPT's models. (A LayerNorm
  can make a share larger where its input's mean is: BLOOM's sets are left out on the GPU.)
- With rounded inputs (--act-bits) an input that lies between two whole numbers may go to either, as the last bit of an
  fp32 sum before it has it, and every later token looks at what became of that one. So there are several prompts:
  all rows stay within what rounding as such does on `ref`, and most first rows, which a flip meets rarely, are as
  near as without. The GPU does not round: it is held against `ref` with --act-bits 16.
- On `ref`, no set gives the logits of another one, so that none is without effect, but a codec those of its twin.

A back end that does not take a set says so. Absent levels are skipped by name. TAP.
"""
import json
import os
import subprocess
import sys
import tempfile
import typing

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import logits  # noqa: E402

FOLDER, MODELS = map(os.path.abspath, sys.argv[1:3])
HAS_GPU = len(sys.argv) > 3
GPTQT, QUANTIZE = os.path.join(FOLDER, "gptqt"), os.path.join(FOLDER, "gptqt-quantize")
GPU = "cuda-emu"
LEVELS = ["ref", "avx2", "avx512", "amx", "neon"]
LENGTHS = 1, 4, 5, 8, 12, 17, 33  # on either side of where the kernels' ways part
SLOW_LENGTHS = 5, 33  # of `ref` and the GPU
LONGEST = max(LENGTHS)
PROMPTS = 6  # with rounded inputs
NEAR, GPU_NEAR = 2e-4, 3e-4  # of a product
LITTLE = "--windows=2", "--ctx=32", "--ranges=2", "--threads=1"
TUNE = "--tune=e2e --tune-steps=2 --tune-ctx=32 --tune-tokens=64"
TIED = "llama-gqa"


class Options(typing.NamedTuple):
    flags: str
    model: str = "llama-wide"
    gpu: bool = True  # whether the GPU is held against `ref`, too
    twin: str = None  # flags that store the same values

    def rounds(self):
        return "--act-bits" in self.flags


SETS = [
    *(Options(f"--bits={bits}") for bits in (1, 2, 3, 4)),
    *(Options(f"--bits={bits} --params=free --group=64") for bits in (2, 3, 4)),
    Options("--bits=3 --params=free --group=row"),
    Options("--bits=2 --params=free --group=16"),
    *(Options(f"--bits={bits} --params=compact-group") for bits in (2, 3, 4)),
    *(Options(f"--bits=3 --group={group}") for group in ("32", "64", "128", "row")),
    Options("--bits=2 --scale-bits=3 --bias-bits=4"),
    Options("--bits=3 --scale-bits=6 --bias-bits=6 --group=32"),
    Options("--mixed=2.7"),
    Options("--mixed=3.3 --mixed-per=input"),
    Options("--mixed=2.7 --act-bits=8"),
    Options("--mixed=3.3 --act-bits=4"),
    Options("--mixed=2.5 --params=free --group=64"),
    Options("--mixed=2.9", "opt-125m-like"),
    Options("--mixed=2.7 --hessian=guided"),
    Options("--bits=2 --codec=pvq", twin="--bits=2"),
    Options("--bits=4 --codec=pvq", twin="--bits=4"),
    Options("--mixed=2.7 --codec=pvq", twin="--mixed=2.7"),
    Options("--bits=3 --params=compact-group --codec=pvq", twin="--bits=3 --params=compact-group"),
    Options("--bits=3 --outliers=1"),
    Options("--bits=3 --outliers=2 --outlier-form=columns"),
    Options("--bits=2 --outliers=1 --act-bits=8"),
    Options("--bits=2 --outliers=2 --outlier-form=columns --act-bits=8"),
    Options("--mixed=2.9 --outliers=1 --codec=pvq"),
    Options("--mixed=2.9 --outliers=2 --outlier-form=columns"),
    Options("--bits=3 --incoherence=input"),
    Options("--bits=3 --incoherence=both"),
    Options("--mixed=2.7 --incoherence=both --act-bits=8"),
    Options("--bits=3 --incoherence=both --codes=beam"),
    *(Options(f"--bits={bits} --act-bits=8") for bits in (2, 3, 4)),
    Options("--bits=3 --act-bits=4"),
    Options("--bits=3 --params=free --group=64 --act-bits=8"),
    Options("--bits=2 --pow2"),
    Options("--bits=3 --pow2 --act-bits=8 --codec=pvq"),
    Options("--mixed=2.5 --pow2", TIED),
    *(Options(f"--bits=3 --output-bits={bits}") for bits in (16, 6, 4)),
    *(Options(f"--bits=3 --output-bits={bits}", TIED) for bits in (16, 8, 6, 4)),
    Options(f"--bits=2 {TUNE}", TIED),
    Options(f"--bits=2 {TUNE} --output-bits=4"),
    Options(f"--mixed=2.7 {TUNE}", TIED),
    Options(f"--bits=2 --outliers=1 {TUNE}", TIED),
    Options("--bits=3 --norm-tweak=fit"),
    Options("--bits=3 --norm-tweak=fit --target=output"),
    Options("--bits=3 --learn-transform=grid"),
    Options("--bits=2 --effort=normal"),
    Options("--bits=3", "bloom", gpu=False),
    Options("--mixed=2.7 --act-bits=8", "bloom", gpu=False),
    Options("--bits=2 --outliers=1", "bloom", gpu=False),
]


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def prompt(n, start):
    """Ids of every model's vocabulary; those of one start begin alike."""
    return ",".join(str((31 * start + 97 * i + 5) % 256) for i in range(n))


def ask(model, out, place, n, start, *flags):
    """How `gptqt logits` ended."""
    backend = ("--backend", GPU) if place == GPU else ("--backend", "cpu", "--cpu-level", place)
    threads = "2" if n == LONGEST else "1"
    return run(GPTQT, "logits", model, *backend, "--threads", threads, "--ids", prompt(n, start), "--out", out, *flags)


def far(got, want):
    """Each row's distance."""
    return [logits.distance(a, b) for a, b in zip(got, want)]


class Case:
    """A quantized model, and what `ref` makes of it."""

    def __init__(self, options, folder):
        self.options = options
        self.model, self.out = os.path.join(folder, "coded"), os.path.join(folder, "logits")
        done = run(QUANTIZE, os.path.join(MODELS, options.model), self.model, "--force", *LITTLE, *options.flags.split())
        assert done.returncode == 0, done.stderr
        with open(os.path.join(MODELS, options.model, "config.json"), encoding="utf-8") as f:
            config = json.load(f)
            self.products = 4 * config.get("num_hidden_layers", config.get("n_layer")) + 1
        self.starts = range(PROMPTS if options.rounds() else 1)
        self.want = [self.rows("ref", LONGEST, start) for start in self.starts]
        self.plain = self.want
        if options.rounds():
            self.plain = [self.rows("ref", LONGEST, start, "--act-bits=16") for start in self.starts]

    def rows(self, *arguments):
        done = ask(self.model, self.out, *arguments)
        assert done.returncode == 0, done.stderr
        return logits.read(self.out)

    def same_bits(self, place, longest):
        for n in (SLOW_LENGTHS if place in ("ref", GPU) else LENGTHS)[:-1]:
            alone = self.rows(place, n, 0)
            others = [i for i, (a, b) in enumerate(zip(alone, longest)) if a.tobytes() != b.tobytes()]
            assert not others, f"tokens {others} of {n} are others among {LONGEST}, by {max(far(alone, longest)):.1e}"

    def near(self, place, got):
        """got: the longest prompts, one for each start."""
        limit = self.products * (GPU_NEAR if place == GPU else NEAR)
        want = self.plain if place == GPU else self.want
        apart = [far(a, b) for a, b in zip(got, want)]
        if place == GPU or not self.options.rounds():
            assert max(map(max, apart)) <= limit, f"{max(map(max, apart)):.1e} from ref, not {limit:.1e}"
            return
        noise = max(max(far(a, b)) for a, b in zip(self.plain, self.want))
        assert max(map(max, apart)) <= noise, f"{max(map(max, apart)):.1e} from ref, rounding: {noise:.1e}"
        steady = [a[0] <= limit for a in apart]
        assert 2 * sum(steady) > len(steady), f"first tokens {[a[0] for a in apart]} from ref, not {limit:.1e}"

    def check(self, place):
        starts = self.starts if place != GPU else self.starts[:1]
        got = self.want if place == "ref" else [self.rows(place, LONGEST, start) for start in starts]
        self.same_bits(place, got[0])
        if place != "ref":
            self.near(place, got)


def check_effect(case, known):
    """known: the sets whose logits have been seen, by them."""
    options, seen = case.options, b"".join(row.tobytes() for row in case.want[0])
    other = known.setdefault((options.model, seen), options.flags)
    assert other == (options.twin or options.flags), f"the logits of {other}"


def check_all(places, folder):
    """The verdict of each line."""
    known = {}
    for options in SETS:
        made = []
        yield report("is made", options, lambda o=options, m=made: m.append(Case(o, folder)))
        for case in made:
            for place in places:
                if place != GPU or options.gpu:
                    yield report(place, options, case.check, place)
            yield report("has an effect", options, check_effect, case, known)


def report(what, options, check, *arguments):
    name = f"{options.model} {options.flags}: {what}"
    try:
        check(*arguments)
        print(f"ok - {name}", flush=True)
        return True
    except Exception as e:  # a failed test must not hide the others
        print(f"not ok - {name}\n# {type(e).__name__}: {str(e)[:1500]!r}", flush=True)
        return False


def is_here(level, folder):
    """Without the level the line says why it is skipped."""
    done = ask(os.path.join(MODELS, "llama-wide"), os.path.join(folder, "logits"), level, 1, 0)
    absent = done.returncode == 1 and "this processor does not have" in done.stderr
    if absent:
        print(f"ok - {level} # SKIP {done.stderr.strip()}")
    return not absent


def main():
    print("TAP version 13")
    with tempfile.TemporaryDirectory() as folder:
        places = [level for level in LEVELS if is_here(level, folder)]
        absent = len(LEVELS) - len(places)
        if HAS_GPU:
            places.append(GPU)
        verdicts = list(check_all(places, folder))
    print(f"1..{absent + len(verdicts)}")
    return 0 if all(verdicts) else 1


sys.exit(main())
