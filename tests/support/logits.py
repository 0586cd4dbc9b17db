"""What `gptqt logits` has written."""
import array
import json
import math
import struct


def read(path):
    """An array of logits for each token of the prompt."""
    with open(path, "rb") as f:
        header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
        n, vocab = header["logits"]["shape"]
        values = array.array("f", f.read(4 * n * vocab))
    return [values[i * vocab:(i + 1) * vocab] for i in range(n)]


def distance(got, want):
    """||got - want|| / ||want||; infinite where something is not a number."""
    apart = math.sqrt(sum((a - b) ** 2 for a, b in zip(got, want)) / sum(b * b for b in want))
    return apart if math.isfinite(apart) else math.inf
