"""Decode beside a process that wants a processor all the time: two threads against one."""
import os
import statistics
import subprocess
import sys

from peers_run import TooSlow

# Who else runs, and which of the processors it is held to (none: where the system puts it).
NEIGHBOURS = {"none": None, "one, anywhere": [], "one, held to a processor": [0]}
SPIN = "while True: pass"


class Neighbour:
    def __init__(self, processors):
        self.processors, self.process = processors, None

    def __enter__(self):
        if self.processors is not None:
            # pylint: disable-next=consider-using-with
            self.process = subprocess.Popen([sys.executable, "-c", SPIN])
            if self.processors:
                os.sched_setaffinity(self.process.pid, self.processors)

    def __exit__(self, *_):
        if self.process:
            self.process.kill()
            self.process.wait()


def one_rate(machine, side, threads, sizes):
    """None: it did not end in time."""
    try:
        return machine.rate(side, "decode", threads, True, sizes)
    except TooSlow:
        return None


def row(machine, side, who, sizes, options):
    ones, twos = [], []
    for _ in range(options.rounds):
        for rates, threads in ((ones, 1), (twos, 2)):
            with Neighbour(NEIGHBOURS[who]):
                rates.append(one_rate(machine, side, threads, sizes))
    if not all(ones):
        return f"| {side.label} | {who} | too slow | | | |"
    one = statistics.median(ones)
    if not all(twos):
        return f"| {side.label} | {who} | {one:.1f} | too slow | | worse |"
    ratio = statistics.median(b / a for a, b in zip(ones, twos))
    return (f"| {side.label} | {who} | {one:.1f} | {statistics.median(twos):.1f} | {ratio:.2f} | "
            f"{'met' if ratio >= 1 else 'missed'} |")


def run_busy(machine, sides, sizes, options):
    lines = ["| | neighbour | 1 thread | 2 threads | ratio | never less with 2 than with 1 |",
             "| --- | --- | ---: | ---: | ---: | --- |"]
    for who in NEIGHBOURS:
        for side in sides:
            lines.append(row(machine, side, who, sizes, options))
            print(f"  {lines[-1]}", file=sys.stderr, flush=True)
    return lines
