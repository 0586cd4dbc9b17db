"""A server that a test has started, on a port that the system chose."""
import re
import subprocess


class Served:
    """Killed at the end of a with block if it still runs. line: what it said first; address: as in that, None
    where it did not start."""

    def __init__(self, command, **options):
        # pylint: disable-next=consider-using-with
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)
        self.line = self.process.stdout.readline()
        found = re.search(r"https?://[0-9.:]+", self.line)
        self.address = found and found[0]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()
