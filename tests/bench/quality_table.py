"""Makes engine/quant/RESULTS.md of the results that tests/bench/quality has kept."""
import os
import textwrap

import quality_llama
import quality_measure as measure
import quality_rows
import quality_speed

SECTIONS = {
    "baselines": "Baselines",
    "abstract": "GPTQT as in the abstract: two steps, the range explored again, GPTQ's loop; nothing more",
    "ladder": "GPTQT, the ladder of effort",
    "formats": "GPTQT with two rounds of refinement, by stored form",
    "options": "GPTQT, one option at a time on top of the plain search in the default form",
    "own": "No calibration text: the model writes its own",
}

HEAD = """# What the quantizer reaches

Made by `tests/bench/quality`; do not edit. It says which rows exist (`--list`), measures one or all (`--only PATTERN`), keeps what
it has measured in `tests/bench/quality_results.json` and goes on where it was stopped.
"""

READING = """**Reading it.** *bits*: everything that is stored for the matrices of the blocks, metadata included, over their weights. *KL*: mean
KL(original || quantized) in nats over every position of the same windows; *top-1*: positions where both find the same token likeliest.
*s*: seconds to quantize by the clock, and of CPU time, calibration included; the machine is shared, so the second number is the one to
compare. *MiB*: peak memory of the quantizer. *speed*: tokens a second at decoding one sequence over those of the model in 16 bits, the
median of {rounds} rounds that take turns, measured once for all rows that are stored alike, the output matrix in 8 bits. Every row ran once
and on the same text, so differences between rows are paired; call 3 % of KL a tie. Flags: those of `gptqt quantize`, besides `--bits`,
`--calibration` and, in rows of late, `--output-bits 16`: the rows are about the blocks' matrices."""


def number(value, digits):
    if value is None:
        return ""
    if value >= 10000:
        return f"{value:.3g}"
    return f"{value:.{digits}f}"


def cells(row, store, has_other):
    result = store.get(row)
    e, q = result["eval"], result.get("quantize", {})
    original = not result["n_bits"]
    out = [
        number(result["bits"], 2),
        number(e["perplexity"], 2 if e["perplexity"] < 1000 else 0),
        "" if original else number(e["kl_mean"], 4),
        "" if original else number(100 * e["top1_agreement"], 1),
    ]
    if has_other:
        o = result.get("other")
        out.append(number(o["perplexity"], 2) + ("" if original else f" / {o['kl_mean']:.3f}") if o else "")
    if original:
        return out + ["", "", "1"]
    out.append(f"{q['wall']:.0f} ({q['cpu']:.0f})" if q else "")
    out.append(number(q.get("mib"), 0))
    # Before speeds were measured by form each row had one of its own.
    speed = store.results.get(quality_speed.key(row)) or result.get("bench", {})
    out.append(number(speed.get("ratio"), 2))
    return out


def mark(result, store):
    """Where this program has made some of the rows, those that it has not."""
    if not any(r.get("program") == store.program for r in store.results.values()):
        return ""
    return "" if result.get("program") == store.program else " †"


def table(model, bits, store):
    """Lines of one table, and the rows it lacks."""
    has_other = bool(model.other)
    names = ["method", "flags", "bits", "perplexity", "KL", "top-1 %"]
    names += ["other text: perplexity / KL"] if has_other else []
    names += ["s (CPU)", "MiB", "speed"]
    lines = [f"| {' | '.join(names)} |", f"| --- | --- |{' ---: |' * (len(names) - 2)}"]
    lacking, section = [], None
    for row in quality_rows.rows(model):
        if row.bits not in (0, bits):
            continue
        result = store.get(row)
        if "eval" not in result:
            lacking.append((row, result.get("failed")))
            continue
        if row.section != section and row.section in SECTIONS:
            lines.append(f"| **{SECTIONS[row.section]}** |{' |' * (len(names) - 1)}")
        section = row.section
        flags = " ".join(result["flags"])
        lines.append(f"| {row.label}{mark(result, store)} | {f'`{flags}`' if flags else ''} | "
                     f"{' | '.join(cells(row, store, has_other))} |")
    return lines, lacking


def long_table(model, store):
    found = [(r, store.get(r)) for r in quality_rows.rows(model) if "long" in store.get(r)]
    if not found:
        return []
    lines = ["", f"The same over {model.long_chunks} windows:", "", "| method | bits | perplexity | KL | top-1 % |",
             "| --- | ---: | ---: | ---: | ---: |"]
    for row, result in found:
        e = result["long"]
        quality = f"{e['kl_mean']:.4f} | {100 * e['top1_agreement']:.1f}" if row.bits else " | "
        lines.append(f"| {row.label} | {result['bits']:.2f} | {e['perplexity']:.2f} | {quality} |")
    return lines


def lacking_lines(lacking):
    failed = [(row, why) for row, why in lacking if why]
    lines = []
    for row, why in failed:
        lines.append(f"- failed, {row.bits} bits, {row.label} (`{row.command()}`): {why}")
    rest = {}
    for row, why in lacking:
        if why:
            continue
        flag = measure.missing_flag(row.flags)
        rest.setdefault(f"not there, the program has no `{flag}`" if flag else "not measured", []).append(row)
    for reason, rows in rest.items():
        names = {}
        for row in rows:
            names.setdefault(row.label, []).append(str(row.bits or "original"))
        listed = "; ".join(f"{label} ({', '.join(bits)})" for label, bits in names.items())
        lines += textwrap.wrap(f"- {reason}: {listed}", 138, subsequent_indent="  ")
    return lines


def model_part(model, store):
    measured = [store.get(r) for r in quality_rows.rows(model) if "eval" in store.get(r)]
    lines = ["", f"## {model.title}", ""]
    if not measured:
        return lines + ["Nothing of it has been measured yet."]
    text = os.path.basename(model.text)
    chunks = f"the first {model.chunks} windows" if model.chunks else "all windows"
    lines += textwrap.wrap(f"Perplexity of `{text}`, {chunks} of {model.ctx} tokens. Calibration: `{os.path.basename(model.calibration)}`, "
                           "whatever the quantizer's defaults take of it."
                           + (f" Other text: `{os.path.basename(model.other)}` (stories for children), {model.other_chunks} windows."
                              if model.other else ""), 138)
    lacking_all = []
    for bits in (2, 3, 4):
        rows, lacking = table(model, bits, store)
        lacking_all += [(r, why) for r, why in lacking if r.bits == bits or bits == 2]
        lines += ["", f"### {bits} bits", "", *rows]
    lines += long_table(model, store)
    missing = lacking_lines(lacking_all)
    return lines + (["", "What is not in these tables:", "", *missing] if missing else [])


def provenance(store):
    results = [r for r in store.results.values() if "eval" in r and "n_bits" in r]
    dates = sorted({r["date"] for r in results})
    commits = sorted({r["commit"] for r in results})
    machines = sorted({r["machine"] for r in results})
    old = any(mark(r, store) for r in results)
    lines = ["", *textwrap.wrap(f"Measured {' and '.join(dates) or 'never'} on {'; '.join(machines) or measure.machine()}, which other "
                                f"work shared, by the program{'s' if len(commits) > 1 else ''} of commit{'s' if len(commits) > 1 else ''} "
                                f"{', '.join(commits) or measure.commit()}."
                                + (" †: made by an earlier program than the rest." if old else ""), 138)]
    return lines + ["", *READING.format(rounds=quality_speed.ROUNDS).splitlines()]


SCALE = """## A model of 7 billion parameters

`tests/bench/quality_scale FLAGS` quantizes one block of a random model in Llama 2 7B's shape (widths 4096 and 11008), calibrated on the
default number of windows; the model of 32 blocks is extrapolated from it. Memory does not grow with the number of blocks: one is held
at a time.
"""


def scale_lines(store):
    found = [r for k, r in sorted(store.results.items()) if k.startswith("scale ")]
    if not found:
        return []
    lines = ["", *SCALE.splitlines(), "", "| flags | one block, s (CPU) | 32 blocks, hours (CPU) | peak memory, MiB |",
             "| --- | ---: | ---: | ---: |"]
    for r in found:
        lines.append(f"| `{r['flags']}` | {r['wall']:.0f} ({r['cpu']:.0f}) | {32 * r['wall'] / 3600:.1f} "
                     f"({32 * r['cpu'] / 3600:.1f}) | {r['mib']:.0f} |")
    return lines


def write(path, store):
    lines = HEAD.splitlines() + provenance(store)
    for model in quality_rows.for_table():
        lines += model_part(model, store)
    lines += quality_llama.lines(store)
    lines += scale_lines(store)
    with open(os.path.join(measure.ROOT, "tests", "bench", "quality_notes.md"), encoding="utf-8") as notes:
        lines += ["", *notes.read().splitlines()]
    with open(path + ".tmp", "w", encoding="utf-8") as out:
        out.write("\n".join(lines).rstrip() + "\n")
    os.replace(path + ".tmp", path)
