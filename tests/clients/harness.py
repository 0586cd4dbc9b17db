"""lm-eval's local-completions against the server, held against `gptqt eval --pairs`: harness.py

The harness asks for an echo with log probabilities, as it does of any server; what it makes of
the answers must be what our own evaluator computes without a server, to 1e-4. Its tasks come
from a hub that tests do not reach, so its model class is driven with requests written here.
"""
import json
import os
import subprocess
import sys
import tempfile

from common import GPTQT, STORIES, Server, run_tests

os.environ.update(TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error",
                  TRANSFORMERS_NO_ADVISORY_WARNINGS="1", OPENAI_API_KEY="none")
from lm_eval import utils  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.openai_completions import LocalCompletionsAPI  # noqa: E402

LIMIT = 1e-4
CONTEXT = 512
PAIRS = [("Once upon a time", " there was a little girl named Lily."), ("Once upon a time", ","),
         ("The cat sat on the", " mat."), ("The cat sat on the ", "mat."), ("Tom and Sue went to the park.\n", "They"),
         ("", "One day, a boy found a ball."), ("caf\u00e9", " \u65e5\u672c \U0001f600"),
         ("The little dog was very happy. " * 30, "He wagged his tail.")]
LONG = "One day, a girl named Lily went to the park with her mom. She saw a big red ball and was happy. " * 40


def model(server, **more):
    return LocalCompletionsAPI(model=os.path.basename(STORIES), base_url=server.address + "/v1/completions",
                               tokenizer=STORIES, tokenizer_backend="huggingface", max_length=CONTEXT, **more)


def requests(kind, arguments):
    return [Instance(request_type=kind, doc={}, arguments=a, idx=i) for i, a in enumerate(arguments)]


def scores(pairs):
    """What our evaluator says about pairs of strings or of lists of ids."""
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as f:
        for context, continuation in pairs:
            f.write(json.dumps({"context": context, "continuation": continuation}) + "\n")
        f.flush()
        out = subprocess.run([GPTQT, "eval", STORIES, "--pairs", f.name], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in out.stdout.splitlines()]


def expected(lm):
    """An empty context is the harness's own case: its prefix token stands there."""
    empty = [i for i, (context, _) in enumerate(PAIRS) if not context]
    answers = scores([pair for pair in PAIRS if pair[0]])
    for i in empty:
        answers[i:i] = scores([([lm.prefix_token_id], lm.tok_encode(PAIRS[i][1]))])
    return [(a["loglikelihood"], a["greedy"]) for a in answers]


def compare(got, want):
    assert len(got) == len(want)
    worst = max(abs(g[0] - w[0]) for g, w in zip(got, want))
    print(f"# worst difference {worst:.2e} of {len(got)} log-likelihoods")
    assert worst <= LIMIT, list(zip(got, want))
    assert [g[1] for g in got] == [w[1] for w in want], list(zip(got, want))


def loglikelihoods_are_the_evaluators():
    with Server("--kv", "f32", "--log-level", "error") as server:
        lm = model(server)
        compare(lm.loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True), expected(lm))


def so_are_those_of_batches_and_of_concurrent_requests():
    with Server("--kv", "f32", "--log-level", "error") as server:
        for more in ({"batch_size": 4}, {"num_concurrent": 4}):
            lm = model(server, **more)
            compare(lm.loglikelihood(requests("loglikelihood", PAIRS * 3), disable_tqdm=True), expected(lm) * 3)


def a_greedy_continuation_is_called_so():
    with Server("--kv", "f32", "--log-level", "error") as server:
        lm = model(server)
        prompt = "Once upon a time"
        text = lm.generate_until(requests("generate_until", [(prompt, {"until": ["."], "max_gen_toks": 60})]),
                                 disable_tqdm=True)[0]
        assert len(text) > 20 and "." not in text, text
        plain = subprocess.run([GPTQT, "run", STORIES, prompt, "--temperature", "0", "-n", "60", "--kv", "f32"],
                               capture_output=True, text=True, check=True).stdout
        assert plain.startswith(text), (text, plain)
        got = lm.loglikelihood(requests("loglikelihood", [(prompt, text)]), disable_tqdm=True)
        assert got[0][1], got
        compare(got, [(s["loglikelihood"], s["greedy"]) for s in scores([(prompt, text)])])


def a_long_text_rolls_in_windows():
    with Server("--kv", "f32", "--log-level", "error") as server:
        lm = model(server)
        got = lm.loglikelihood_rolling(requests("loglikelihood_rolling", [(LONG,), ("A short one.",)]),
                                       disable_tqdm=True)
        for value, text in zip(got, (LONG, "A short one.")):
            windows = [utils.make_disjoint_window(w) for w in utils.get_rolling_token_windows(
                token_list=lm.tok_encode(text), prefix_token=lm.prefix_token_id, max_seq_len=lm.max_length - 1,
                context_len=1)]
            parts = scores(windows)
            total = sum(p["loglikelihood"] for p in parts)
            print(f"# {total:.4f} over {len(windows)} windows, difference {abs(value - total):.2e}")
            assert abs(value - total) <= LIMIT * len(windows), (value, total)
        assert len(lm.tok_encode(LONG)) > CONTEXT, "more than one window"


sys.exit(run_tests([loglikelihoods_are_the_evaluators, so_are_those_of_batches_and_of_concurrent_requests,
                    a_greedy_continuation_is_called_so, a_long_text_rolls_in_windows]))
