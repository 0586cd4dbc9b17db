"""The models and the rows of the table of quantization methods."""
import argparse
import os
import subprocess

from quality_measure import ROOT, SHARED


class Model:
    """A model with the texts that it is calibrated and judged on."""

    def __init__(self, name, title, path, calibration, text, ctx, chunks, **more):
        self.name, self.title, self.path = name, title, path
        self.calibration, self.text, self.ctx, self.chunks = calibration, text, ctx, chunks
        self.other, self.other_chunks = more.get("other"), more.get("other_chunks", 0)
        self.long_chunks = more.get("long_chunks", 0)
        self.budgets = more["budgets"]  # bits a weight of the plain row, by planes
        # Flags of all rows but the ladder's; of those that follow the coded model's states; of those
        # that train or run the model backwards, which take minutes for every window.
        self.common = more.get("common", "")
        self.coded_states = more.get("coded_states", "")
        self.training = more.get("training", "")

    def here(self):
        return all(os.path.exists(p) for p in (self.path, self.calibration, self.text))


class Row:
    """One line of the table. bits 0: the model as it is."""

    def __init__(self, model, section, label, flags, bits, **more):
        self.model, self.section, self.label, self.bits = model, section, label, bits
        self.own_text = more.get("own_text", False)
        self.long = more.get("long", False)
        self.flags = flags.split()

    def title(self):
        return f"{self.model.name} {self.bits or 'original'} bits: {self.label}" if self.bits else \
            f"{self.model.name}: original"

    def key(self):
        own = ", own text" if self.own_text else ""
        return f"{self.model.name} {self.bits} {' '.join(self.flags)}{own}"

    def command(self):
        """The flags as a user would type them."""
        return " ".join(self.flags) or "none"


MODELS = ["stories", "smollm2"]


def stories(_):
    shared = os.path.join(SHARED, "models", "stories")
    return Model("stories", "stories (3.5 M parameters, width 256, bf16)",
                 os.path.join(ROOT, "deploy", "models", "stories"), os.path.join(shared, "calibration.txt"),
                 os.path.join(shared, "valid.txt"), 256, 0, budgets={2: 2.74, 3: 3.77})


def smollm2(options):
    path = options.smollm2 or os.path.join(ROOT, "build", "smollm2", "smollm2.gguf")
    if not os.path.exists(path) and not (options.list or options.table):
        # With arguments it fetches the model and quantizes; --help ends that part at once.
        subprocess.run([os.path.join(ROOT, "deploy", "get-smollm2"), os.path.dirname(path), "--help"],
                       check=False, stdout=subprocess.DEVNULL)
    data = os.path.join(SHARED, "data")
    return Model("smollm2", "SmolLM2-135M-Instruct (Q4_1 GGUF)", path, os.path.join(data, "calibration.txt"),
                 os.path.join(data, "wiki.test.raw"), 1024, 8, long_chunks=64,
                 other=os.path.join(SHARED, "models", "stories", "valid.txt"), other_chunks=4,
                 budgets={2: 2.64, 3: 3.65}, common="--static --windows 64", coded_states="--windows 16",
                 training="--static --windows 16")


def models(options):
    makers = {"stories": stories, "smollm2": smollm2}
    return [makers[name](options) for name in (options.models or MODELS)]


def for_table():
    """All of them, as they are called, whether they are here or not."""
    return models(argparse.Namespace(smollm2=None, models=[], list=True, table=True))


# Written out, so that a default that changes does not change what a row means.
FREE64 = "--params free --group 64"

BASELINES = [
    ("RTN", f"--method rtn {FREE64}"),
    ("RTN, min-MSE", f"--method rtn {FREE64} --min-mse --weighting none"),
    ("GPTQ", f"--method gptq {FREE64} --no-act-order"),
    ("GPTQ, min-MSE", f"--method gptq {FREE64} --no-act-order --min-mse --weighting none"),
    ("GPTQ, act-order", f"--method gptq {FREE64}"),
    ("GPTQ, act-order, min-MSE", f"--method gptq {FREE64} --min-mse --weighting none"),
    ("GPTQ, act-order, min-MSE weighted with diag(H)", f"--method gptq {FREE64} --min-mse"),
    ("BCQ", f"--method bcq {FREE64}"),
    ("BCQ with bias", f"--method bcq {FREE64} --bcq-bias"),
    ("BCQ in the GPTQ loop", f"--method gptq-bcq {FREE64}"),
    ("BCQ with bias in the GPTQ loop", f"--method gptq-bcq {FREE64} --bcq-bias"),
]

FAITHFUL = [
    ("GPTQT as in the abstract, row-wise", "--params free --group row"),
    ("GPTQT as in the abstract, groups of 128", "--params free --group 128"),
    ("GPTQT as in the abstract, groups of 64", FREE64),
]

LADDER = [
    ("GPTQT `fast`", "--effort fast"),
    ("GPTQT `normal`, equal bits in all matrices, 32 windows", "--effort normal --mixed none --windows 32"),
    ("GPTQT `normal`", "--effort normal"),
    ("GPTQT `best`, equal bits, inputs of the original", "--effort best --mixed none --static"),
    ("GPTQT `best`", "--effort best"),
]

# The stored forms under the same search: refined, so that none is judged by its rounding.
REFINED = "--refine 2"
FORMATS = [
    ("R16 4/4", f"--params compact --group 16 --scale-bits 4 --bias-bits 4 {REFINED}"),
    ("R16 4/5 (the default)", f"--params compact --group 16 --scale-bits 4 --bias-bits 5 {REFINED}"),
    ("R32 6/6", f"--params compact --group 32 --scale-bits 6 --bias-bits 6 {REFINED}"),
    ("H32 6/6", f"--params compact-group --group 32 --scale-bits 6 --bias-bits 6 {REFINED}"),
    ("free, groups of 64", f"--params free --group 64 {REFINED}"),
    ("free, groups of 128", f"--params free --group 128 {REFINED}"),
    ("free, row-wise", f"--params free --group row {REFINED}"),
]

# Each on top of the plain search in the default form.
OPTIONS = [
    ("plain: no option", ""),
    ("asymmetric clipping", "--asymmetric"),
    ("true-loss re-explore, 4 sets", "--explore 4"),
    ("weights 1/U_jj^2", "--weighting u"),
    ("output-aware targets", "--target output"),
    ("the same, and down's at the block's state", "--target block"),
    ("tokens weighted by state", "--tokens state"),
    ("whole groups in order of energy", "--order group"),
    ("static inputs", "--static"),
    ("refinement, 2 rounds", "--refine 2"),
    ("sparse outliers, 0.5 %", "--outliers 0.5"),
    ("outlier columns, 0.5 %", "--outliers 0.5 --outlier-form columns"),
    ("incoherence, inputs rotated", "--incoherence input"),
    ("incoherence, both sides rotated", "--incoherence both"),
    ("8-bit activations", "--act-bits 8"),
    ("4-bit activations", "--act-bits 4"),
    ("codes: nearest, no loop", "--codes greedy"),
    ("codes: coordinate descent", "--codes cd"),
    ("codes: beam search", "--codes beam"),
    ("codes: additive, by turns", "--codes additive --params free --group 64"),
    ("norms fitted by least squares", "--norm-tweak fit"),
    ("norms fitted by moments", "--norm-tweak moments"),
    ("norms fitted by gradient", "--norm-tweak train"),
    ("learned clipping", "--learn-clip"),
    ("input scales by grid", "--learn-transform grid"),
    ("trained transformation", "--learn-transform train"),
    ("Fisher-weighted codebooks", "--hessian fisher"),
    ("guided Hessians", "--hessian guided"),
    ("block-wise training", "--tune block"),
    ("end-to-end tuning of scales", "--tune scales"),
    ("end-to-end tuning, all parameters", "--tune e2e"),
    ("mixed precision at the bits of the plain row", "--mixed {budget}"),
    ("power-of-two alphas", "--pow2"),
    ("pyramid vector quantization of scales", "--codec pvq"),
]

OWN_TEXT = [
    ("GPTQ, act-order, min-MSE weighted with diag(H), own text", f"--method gptq {FREE64} --min-mse"),
    ("GPTQT as in the abstract, groups of 64, own text", FREE64),
    ("GPTQT `normal`, own text", "--effort normal"),
]

# Options that need the coded blocks' states, and those that train or run the model backwards.
CODED_STATES = {"output-aware targets", "the same, and down's at the block's state",
                "norms fitted by least squares", "norms fitted by moments",
                "norms fitted by gradient", "inputs of the coded blocks, 16 windows"}
TRAINING = {"learned clipping", "trained transformation", "Fisher-weighted codebooks", "guided Hessians",
            "block-wise training", "mixed precision at the bits of the plain row", "static inputs, 16 windows"}

LONG = {"GPTQT `normal`", "GPTQT `best`", "GPTQ, act-order, min-MSE weighted with diag(H)"}


def plain(flags):
    """Without a ladder under them flags mean what they say; what refinement there is is said, too."""
    return flags if "--refine" in flags else f"{flags} --refine 0".strip()


def all_flags(model, label, flags):
    more = model.coded_states if label in CODED_STATES else model.training if label in TRAINING else model.common
    return f"{flags} {more}".strip()


def options(model):
    """What the others are compared with comes first."""
    if not model.common:
        return OPTIONS
    return [*OPTIONS[:1], ("inputs of the coded blocks, 16 windows", ""), ("static inputs, 16 windows", ""),
            *(o for o in OPTIONS[1:] if o[0] not in ("static inputs",) and "--tune " not in o[1] or "block" in o[1])]


def rows(model):
    yield Row(model, "original", "original", "", 0, long=True)
    for bits in (2, 3, 4):
        for section, table in (("baselines", BASELINES), ("abstract", FAITHFUL), ("ladder", LADDER),
                               ("formats", FORMATS), ("options", options(model))):
            for label, flags in table:
                if "{budget}" in flags and bits == 4:
                    continue  # no matrix can have more
                flags = flags.format(budget=model.budgets.get(bits))
                if section != "ladder":
                    flags = all_flags(model, label, plain(flags))
                yield Row(model, section, label, flags, bits, long=label in LONG)
        for label, flags in OWN_TEXT:
            flags = flags if "--effort" in flags else f"{plain(flags)} {model.training}".strip()
            yield Row(model, "own", label, flags, bits, own_text=True)
