"""The server on an emulated GPU: gpu.py GPTQT STORIES EMULATION.so [CUDA.so [WORD]]

The same greedy tokens as on the CPU, plain and streaming, from one device and from several that share the
model; what is said without a device; a device that fails ends requests with an error and turns health. With
CUDA.so, the plugin itself, on a machine without a GPU. With WORD only the tests with it in their names. TAP.
"""
import json
import os
import re
import signal
import sys
import tempfile
import urllib.error
import urllib.request

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "support"))
import served  # noqa: E402

GPTQT, STORIES, EMULATION = map(os.path.abspath, sys.argv[1:4])
CUDA = os.path.abspath(sys.argv[4]) if len(sys.argv) > 4 else None
N = 8
# What fails, which of them in the middle of an answer, and what is said then. Copies and waits lose the device.
FAILURES = ("LAUNCH", "200", "launch failure"), ("COPY", "160", "uncorrectable ECC"), ("SYNC", "120", "uncorrectable ECC")


class Server(served.Served):
    def __init__(self, *arguments, model=STORIES, **variables):
        self.log = tempfile.TemporaryFile("w+")
        super().__init__(
            [GPTQT, "serve", model, "--port", "0", "--max-context", "64", "--kv-tokens", "128", *arguments],
            stderr=self.log, env=dict(os.environ, **variables))

    def __exit__(self, *_):
        super().__exit__()
        self.log.close()

    def ask(self, path, body=None):
        request = urllib.request.Request(self.address + path, json.dumps(body).encode() if body else None,
                                         {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=240) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()

    def end(self):
        """The exit status and what the log says."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout=60)
        self.log.seek(0)
        return status, self.log.read()


def folder_with(library):
    """A folder of plugins in which this library goes by the GPU's name."""
    folder = tempfile.TemporaryDirectory()
    if library:
        os.symlink(library, os.path.join(folder.name, "libgptqt-cuda.so"))
    return folder


def answers(server):
    """Greedy answers, one of them streamed."""
    body = {"prompt": "Once upon a time", "max_tokens": N, "temperature": 0}
    status, text = server.ask("/v1/completions", body)
    assert status == 200, text
    plain = json.loads(text)["choices"][0]["text"]
    chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": N, "temperature": 0, "stream": True}
    status, text = server.ask("/v1/chat/completions", chat)
    assert status == 200, text
    frames = [json.loads(f[6:]) for f in text.split("\n\n") if f.startswith("data: {")]
    return plain, "".join(c["delta"].get("content") or "" for f in frames for c in f["choices"])


def the_gpu_answers_as_the_cpu_does():
    with Server("--backend", "cpu") as server:
        want = answers(server)
        assert server.end()[0] == 0
    assert all(len(text) > N for text in want), want
    for seed in "0", "5":
        with Server("--backend", "cuda-emu", GPTQT_EMU_SEED=seed) as server:
            assert answers(server) == want
            assert "cuda-emu" in server.ask("/v1/models")[1]
            assert server.end()[0] == 0


def devices_that_share_a_model_answer_as_one():
    for model, n in ("builtin", "2"), (STORIES, "4"):
        with Server("--backend", "cpu", model=model) as server:
            want = answers(server)
        with Server("--backend", "cuda-emu", "--tensor-parallel", n, model=model, GPTQT_EMU_DEVICES=n) as server:
            assert answers(server) == want
            assert f"{n} of emulated" in server.ask("/v1/models")[1]
            assert server.end()[0] == 0


def check_start(says, *arguments, **variables):
    with Server(*arguments, **variables) as server:
        status, log = server.end()
        assert status == 1 and says in log, (status, log)


def a_model_that_cannot_be_shared_is_an_error_of_the_start():
    two = "--tensor-parallel", "2"
    check_start("2 devices are asked for, 1 is there", "--backend", "cuda-emu", *two)
    check_start("2 devices are asked for, and the CPU back end has one", "--backend", "cpu", *two)
    check_start("num_attention_heads, 8, does not divide by 3 devices", "--backend", "cuda-emu", "--tensor-parallel",
                "3", GPTQT_EMU_DEVICES="3")
    check_start("device 1: a matrix of ", "--backend", "cuda-emu", *two, GPTQT_EMU_DEVICES="2", GPTQT_EMU_FAIL_DEVICE="1",
                GPTQT_EMU_FAIL_ALLOC="40")


def the_failure_of_a_second_device_ends_requests():
    with Server("--backend", "cuda-emu", "--tensor-parallel", "2", "--failure-delay", "3600", GPTQT_EMU_DEVICES="2",
                GPTQT_EMU_FAIL_DEVICE="1", GPTQT_EMU_FAIL_LAUNCH="200") as server:
        body = {"prompt": "Once upon a time", "max_tokens": 40, "temperature": 0}
        status, text = server.ask("/v1/completions", body)
        assert status == 500 and "device 1: " in text and "launch failure" in text, (status, text)
        assert server.ask("/health")[0] == 503
        server.end()


def check_no_gpu(library, reason, **variables):
    """auto serves from the CPU and says why in one line; cuda is an error of one line."""
    with folder_with(library) as folder:
        variables["GPTQT_PLUGIN_DIR"] = folder
        with Server("--backend", "auto", **variables) as server:
            assert '"cpu (' in server.ask("/v1/models")[1]
            status, log = server.end()
            lines = [line for line in log.splitlines() if "no GPU is used" in line]
            assert status == 0 and len(lines) == 1 and reason in lines[0], log
        with Server("--backend", "cuda", **variables) as server:
            status, log = server.end()
            assert status == 1 and "back end cuda" in log and reason in log, (status, log)


def without_a_plugin_auto_is_the_cpu_and_cuda_an_error():
    check_no_gpu(None, "libgptqt-cuda.so")


def without_a_device_auto_is_the_cpu_and_cuda_an_error():
    check_no_gpu(EMULATION, "no CUDA-capable device", GPTQT_EMU_DEVICES="0")


def without_a_driver_auto_is_the_cpu_and_cuda_an_error():
    check_no_gpu(CUDA, "no GPU: ")


def a_device_that_fails_ends_requests_and_turns_health():
    for what, turn, says in FAILURES:
        with Server("--backend", "cuda-emu", "--failure-delay", "3600", **{"GPTQT_EMU_FAIL_" + what: turn}) as server:
            body = {"prompt": "Once upon a time", "max_tokens": 40, "temperature": 0}
            status, text = server.ask("/v1/completions", body)
            assert status == 500 and json.loads(text)["error"]["message"], (status, text)
            assert says in text, text
            status, text = server.ask("/health")
            assert status == 503, (status, text)
            status, text = server.ask("/v1/completions", body)
            assert status >= 500, (status, text)
            server.end()


def after_a_failure_the_process_ends_with_a_status_of_its_own():
    with Server("--backend", "cuda-emu", "--failure-delay", "1", GPTQT_EMU_FAIL_LAUNCH="200") as server:
        body = {"prompt": "Once upon a time", "max_tokens": 40, "temperature": 0}
        status, text = server.ask("/v1/completions", body)
        assert status == 500 and "launch failure" in text, (status, text)
        server.process.wait(timeout=60)  # nobody tells it to
        status, log = server.end()
        assert status == 3 and "the engine has failed" in log and "launch failure" in log, (status, log)


def a_device_without_room_says_what_it_lacks():
    with Server("--backend", "cuda-emu", GPTQT_EMU_FAIL_ALLOC="40") as server:
        status, log = server.end()
        assert status == 1 and "MiB on the device" in log, (status, log)
        assert re.search(r"weights [0-9.]+, keys and values [0-9.]+, working rooms .* free [0-9.]+ of", log), log


def without_room_for_a_context_the_start_says_which_option_is_wrong():
    with Server("--backend", "cuda-emu", "--kv-tokens", "0", "--gpu-memory-fraction", "0.01",
                GPTQT_EMU_MEMORY=str(64 << 20)) as server:
        status, log = server.end()
        assert status == 1 and "gpu_memory_fraction: 0.01" in log and "one context of 64 positions" in log, log


def burst(server):
    """Greedy answers to four prompts at once that fill the context, more than a step takes."""
    body = {"prompt": ["Once upon a time there was a cat who " + "ran and ran and ran " * k for k in (8, 2, 5, 9)],
            "max_tokens": 12, "temperature": 0}
    status, text = server.ask("/v1/completions", body)
    assert status == 200, text
    return [c["text"] for c in json.loads(text)["choices"]]


def what_is_taken_at_the_start_is_all_that_is_ever_needed():
    """Of a coded model: products of a dense one need no rooms."""
    flags = "--kv-tokens", "0", "--max-running", "4", "--step-tokens", "40", "--gpu-memory-fraction", "1"
    with Server("--backend", "cpu", *flags, model="builtin") as server:
        want = answers(server), burst(server)
    with Server("--backend", "cuda-emu", *flags, model="builtin") as server:
        answers(server)
        table = server.end()[1]
        weights, rooms = (float(re.search(f"device memory.*{name} ([0-9.]+)", table)[1])
                          for name in ("weights", "working rooms"))
    # Beside 1.5 MiB of keys and values less than a block of them, 40 KiB, stays free.
    memory = str(int((weights + rooms + 1.5) * (1 << 20)))
    with Server("--backend", "cuda-emu", *flags, model="builtin", GPTQT_EMU_MEMORY=memory) as server:
        assert (answers(server), burst(server)) == want
        status, log = server.end()
        assert status == 0 and "free 0.0 of" in log, (status, log)


def main():
    tests = [the_gpu_answers_as_the_cpu_does, devices_that_share_a_model_answer_as_one,
             a_model_that_cannot_be_shared_is_an_error_of_the_start, the_failure_of_a_second_device_ends_requests,
             without_a_plugin_auto_is_the_cpu_and_cuda_an_error,
             without_a_device_auto_is_the_cpu_and_cuda_an_error, without_a_driver_auto_is_the_cpu_and_cuda_an_error,
             a_device_that_fails_ends_requests_and_turns_health,
             after_a_failure_the_process_ends_with_a_status_of_its_own, a_device_without_room_says_what_it_lacks,
             without_room_for_a_context_the_start_says_which_option_is_wrong,
             what_is_taken_at_the_start_is_all_that_is_ever_needed]
    word = sys.argv[5] if len(sys.argv) > 5 else ""
    tests = [test for test in tests if word in test.__name__]
    print(f"TAP version 13\n1..{len(tests)}")
    bad = 0
    for test in tests:
        if test is without_a_driver_auto_is_the_cpu_and_cuda_an_error and (not CUDA or os.path.exists("/dev/nvidia0")):
            print(f"ok - {test.__name__} # SKIP {'there is a GPU' if CUDA else 'not built with -Dcuda=enabled'}")
            continue
        try:
            test()
            print(f"ok - {test.__name__}", flush=True)
        except Exception as e:  # a failed test must not hide the others
            bad += 1
            print(f"not ok - {test.__name__}\n# {type(e).__name__}: {str(e)[:1500]!r}", flush=True)
    return 1 if bad else 0


sys.exit(main())
