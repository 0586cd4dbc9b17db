"""Weights and texts with nothing in them, under every way to quantize: degenerate.py FOLDER-OF-GPTQT STORIES

Inputs that are always 0, rows of one value, matrices of zeros, fewer tokens than inputs (a second moment matrix without
full rank): each way gives a checkpoint near the model it was made from. TAP.
"""
import functools
import os
import sys

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import quantizing  # noqa: E402
from quantizing import put  # noqa: E402

FOLDER, STORIES = sys.argv[1:3]
Place = functools.partial(quantizing.Place, FOLDER, STORIES)
TUNE = ("--tune=e2e", "--tune-steps=4", "--tune-tokens=128", "--tune-ctx=32")
WAYS = [
    ["--effort=normal"], ["--target=block", "--codes=cd"], ["--mixed=4.6", "--mixed-by=loss"], TUNE, ["--tune=block"],
    ["--incoherence=both"], ["--incoherence=input", "--act-bits=8"], ["--outliers=1"],
    ["--outliers=1", "--outlier-form=columns", "--params=free"], ["--learn-clip=1"], ["--hessian=fisher"], ["--hessian=guided"],
    ["--norm-tweak=train"], ["--norm-tweak=fit"], ["--explore=2", "--static"], ["--codes=beam", "--static"], ["--tokens=state"],
    # Slow ones, made cheaper.
    ["--pow2", "--static", "--bits=2"], ["--learn-transform=train", "--ranges=2", "--bits=2"],
    ["--codes=additive", "--params=free", "--group=64", "--static", "--bits=2"],
]


def spoil(table, data):
    """Every fifth input of block 1 is 0, block 4's q has rows of one value, block 2's up none that is not 0."""
    put("model.layers.1.input_layernorm.weight", 0, lambda r, c: c % 5 == 0)(table, data)
    put("model.layers.4.self_attn.q_proj.weight", 0x3D00)(table, data)
    put("model.layers.2.mlp.up_proj.weight", 0)(table, data)


def try_all(p, model, *few):
    """Flags in few come last and win."""
    whole, far = p.perplexity(model), {}
    for flags in WAYS:
        p.quantize(model, "--bits=4", *flags, *few, "--force")
        far[" ".join(flags)] = p.perplexity() / whole
    assert all(factor < (1.3 if "--bits=2" in flags else 1.1) for flags, factor in far.items()), far


def dead_inputs_and_constant_rows_are_no_trouble_to_any_way():
    with Place() as p:
        try_all(p, p.model(spoil), "--windows=8")


def fewer_tokens_than_inputs_are_enough_for_any_way():
    with Place() as p:
        try_all(p, STORIES, "--windows=1", "--ctx=16")


sys.exit(quantizing.run_tests([
    dead_inputs_and_constant_rows_are_no_trouble_to_any_way,
    fewer_tokens_than_inputs_are_enough_for_any_way,
]))
