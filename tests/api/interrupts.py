"""The quantizer's longer ways killed or out of room in the middle: interrupts.py FOLDER-OF-GPTQT MODELS STORIES

Tuning end to end, mixed bits, kept moments, parts and their merge on a tiny model. A run is killed where the files on
disk say that it has come so far, or meets a limit on the size of files; started again, it ends in the bytes of a run
that nothing disturbed and leaves nothing else behind. TAP.
"""
import functools
import glob
import json
import os
import shutil
import subprocess
import sys

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import quantizing  # noqa: E402
from quantizing import count, killed, limited, same  # noqa: E402

FOLDER, MODELS, STORIES = sys.argv[1:4]
QUANTIZE = os.path.join(FOLDER, "gptqt-quantize")
MODEL = os.path.join(MODELS, "llama-gqa")
LITTLE = ("--windows=2", "--ctx=32", "--ranges=2", "--threads=1", "--bits=2")
TUNE = ("--tune=e2e", "--tune-steps=24", "--tune-ctx=32", "--tune-tokens=64")
Place = functools.partial(quantizing.Place, FOLDER, STORIES)


def command(out, *flags):
    return [QUANTIZE, MODEL, out, *LITTLE, *flags]


def run(line, status=0, limit=None, **environment):
    """Standard error's last line."""
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, check=False, preexec_fn=limit,
                          env={**os.environ, **environment})
    lines = done.stderr.strip().splitlines()
    assert done.returncode == status, (line, done.returncode, lines[-3:])
    return lines[-1] if lines else ""


def kill_at(points, line, out, at_least):
    """Kills a run at each of the points in turn; one that was too fast begins anew."""
    n = 0
    for point in points:
        n += killed(line, point)
        if os.path.exists(out) and not any(os.path.exists(out + end) for end in (".partial", ".tune", ".untuned")):
            shutil.rmtree(out)
    assert n >= at_least, f"killed {n} times only"


def holds(folder, *numbers):
    """That so many files are there."""
    return [functools.partial(lambda n: count(folder) >= n, n) for n in numbers]


def exists(*patterns):
    return [functools.partial(glob.glob, pattern) for pattern in patterns]


def check_end(p, whole, *others):
    assert same(whole, p.out), "other bytes"
    assert sorted(os.listdir(p.path)) == sorted(["out", "text", os.path.basename(whole), *others]), os.listdir(p.path)


def changed(path):
    """That a file is there, and then that it is another one each time."""
    seen = []

    def look():
        try:
            seen.append(os.stat(path).st_ino)
        except FileNotFoundError:
            return False
        return seen[-1] != seen[0]
    return look


def tuning_killed_at_any_moment_goes_on_to_the_same_bytes():
    with Place() as p:
        whole, untuned, partial = os.path.join(p.path, "whole"), p.out + ".untuned", p.out + ".partial"
        run(command(whole, *TUNE))
        points = [*holds(untuned + ".partial", 1, 5, 12, 20), *exists(untuned, untuned + "/made_with.txt"),
                  *exists(p.out + ".tune.tmp.*", p.out + ".tune"), changed(p.out + ".tune"), changed(p.out + ".tune"),
                  *holds(partial, 3, 12), *exists(partial + "/done/model.safetensors", p.out)]
        kill_at(points, command(p.out, *TUNE), p.out, 9)
        run(command(p.out, *TUNE))
        check_end(p, whole)


def sensitivities_killed_at_any_moment_go_on_to_the_same_bytes():
    for by in ("gradient", "kl", "loss"):
        with Place() as p:
            whole, flags = os.path.join(p.path, "whole"), ("--mixed=2.7", f"--mixed-by={by}")
            found = os.path.join(p.out + ".partial", "files", "sensitivities.json")

            def has_found(n, path=found):
                try:
                    with open(path, encoding="utf-8") as file:
                        return len(json.load(file)) >= n
                except FileNotFoundError:
                    return False
            run(command(whole, *flags))
            points = [functools.partial(has_found, n) for n in (1, 7, 8, 14, 21)]
            kill_at([*points, *holds(p.out + ".partial", 5, 15)], command(p.out, *flags), p.out, 4)
            run(command(p.out, *flags))
            check_end(p, whole)


def kept_moments_killed_at_any_moment_are_those_of_one_run():
    with Place() as p:
        whole, moments = os.path.join(p.path, "whole"), os.path.join(p.path, "moments")
        flags = ("--static", f"--moments={moments}")
        run(command(whole, "--static"))
        points = [*holds(moments, 1, 2), *holds(p.out + ".partial", 9, 15), *holds(moments, 3),
                  *holds(p.out + ".partial", 24)]
        kill_at(points, command(p.out, *flags), p.out, 4)
        run(command(p.out, *flags))
        check_end(p, whole, "moments")
        # What the kills left serves other flags.
        run(command(whole, "--static", "--asymmetric"))
        run(command(p.out, "--asymmetric", *flags))
        check_end(p, whole, "moments")


def parts(p):
    return [os.path.join(p.path, name) for name in ("first", "second")]


def parts_and_their_merge_killed_at_any_moment_are_one_run():
    with Place() as p:
        whole, (first, second) = os.path.join(p.path, "whole"), parts(p)
        run(command(whole, "--static"))
        for out, layers in ((first, "0:2"), (second, "2:3")):
            line = command(out, "--static", f"--layers={layers}")
            kill_at(holds(out + ".partial", 1, 4, 9, 14), line, out, 2)
            run(line)
        merge = [QUANTIZE, "--merge", p.out, first, second]
        points = [*holds(p.out + ".partial", 1, 8, 20), *exists(p.out + ".partial/done/model.safetensors")]
        kill_at(points, merge, p.out, 2)
        run(merge)
        check_end(p, whole, "first", "second")


def told(said, *names):
    """That the line names a file and what it lacks."""
    assert said.startswith("gptqt-quantize: ") and all(name in said for name in names), said
    assert "too large" in said or "No space" in said, said


def size(path):
    return os.stat(path).st_size


def a_disk_too_small_to_tune_on_loses_nothing():
    with Place() as p:
        whole, untuned, partial = os.path.join(p.path, "whole"), p.out + ".untuned", p.out + ".partial"
        line = command(p.out, *TUNE)
        run(command(whole, *TUNE))
        result = size(os.path.join(whole, "model.safetensors"))
        # The untuned checkpoint is as large as the result; OUT.tune holds more numbers.
        told(run(line, 1, limited(2 * result)), p.out + ".tune")
        made = os.stat(os.path.join(untuned, "model.safetensors"))
        assert not os.path.exists(p.out)
        kill_at(holds(partial, 3), line, p.out, 1)
        state = size(p.out + ".tune")
        assert state > 2 * result, (state, result)
        told(run(line, 1, limited(result - 1000)), partial)
        assert size(p.out + ".tune") == state and not os.path.exists(p.out)
        assert os.stat(os.path.join(untuned, "model.safetensors")) == made, "made again"
        run(line)
        check_end(p, whole)


def a_disk_too_small_to_merge_on_loses_nothing():
    with Place() as p:
        whole, (first, second) = os.path.join(p.path, "whole"), parts(p)
        run(command(whole, "--static"))
        run(command(first, "--static", "--layers=0:1"))
        run(command(second, "--static", "--layers=1:3"))
        merge = [QUANTIZE, "--merge", p.out, first, second]
        for room in (0, 3000, size(os.path.join(whole, "model.safetensors")) - 1000):
            told(run(merge, 1, limited(room)), p.out)
            assert not os.path.exists(p.out)
        run(merge)
        check_end(p, whole, "first", "second")


def a_disk_too_small_for_moments_is_told():
    with Place() as p:
        whole, moments = os.path.join(p.path, "whole"), os.path.join(p.path, "moments")
        line = command(p.out, "--static", f"--moments={moments}")
        run(command(whole, "--static"))
        told(run(line, 1, limited(500000)), moments, ".moments")
        assert not os.listdir(moments) and not os.path.exists(p.out)
        run(line)
        check_end(p, whole, "moments")


def a_disk_too_small_for_hidden_states_is_told():
    with Place() as p:
        whole, spill = os.path.join(p.path, "whole"), os.path.join(p.path, "spill")
        os.mkdir(spill)
        flags = ("--windows=32", "--method=rtn")  # 2 MiB of states, of which 1 may be in memory
        run(p.command(STORIES, *flags, out=whole))
        line = p.command(STORIES, *flags, "--state-memory=1")
        told(run(line, 1, limited(1500000), TMPDIR=spill), spill, "hidden states")
        assert not os.path.exists(p.out)
        run(line, TMPDIR=spill)
        check_end(p, whole, "spill")
        assert not os.listdir(spill)


def an_output_that_cannot_be_is_refused_before_the_work():
    with Place() as p:
        os.mkdir(p.out)
        kept = p.file("out/kept", "kept")
        said = run(command(p.out, *TUNE), 1)
        assert p.out in said and "not a checkpoint" in said, said
        assert os.path.exists(kept) and sorted(os.listdir(p.path)) == ["out", "text"], os.listdir(p.path)


TESTS = [
    an_output_that_cannot_be_is_refused_before_the_work,
    tuning_killed_at_any_moment_goes_on_to_the_same_bytes,
    sensitivities_killed_at_any_moment_go_on_to_the_same_bytes,
    kept_moments_killed_at_any_moment_are_those_of_one_run,
    parts_and_their_merge_killed_at_any_moment_are_one_run,
    a_disk_too_small_to_tune_on_loses_nothing,
    a_disk_too_small_to_merge_on_loses_nothing,
    a_disk_too_small_for_moments_is_told,
    a_disk_too_small_for_hidden_states_is_told,
]

sys.exit(quantizing.run_tests(TESTS))
