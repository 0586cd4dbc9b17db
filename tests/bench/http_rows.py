"""Rows about requests, tokens and connections in numbers."""
import time

import anchors
import serving
from anchors import Llama, Nginx, Ours, median, wrk

SECONDS = 3


def health(options):
    """Rounds of the same load on each server; a request's CPU time is what a core's rate is made of."""
    servers = {"ours": Ours(), "nginx": Nginx()}
    if options.llama:
        servers["llama-server"] = Llama(options, "--threads-http", "64")
    rates = {name: [] for name in servers}
    costs = {name: [] for name in servers}
    for _ in range(options.rounds):
        for name, server in servers.items():
            before = server.cpu_seconds()
            rate, total, bad = wrk(server, "/health", 64, SECONDS)
            assert bad == 0, f"{name}: {bad} bad answers"
            rates[name].append(rate)
            costs[name].append((server.cpu_seconds() - before) / total)
    for server in servers.values():
        server.kill()
    by_core = {name: 1 / median(cost) for name, cost in costs.items()}
    ratio = median([a / b for a, b in zip(rates["ours"], rates["nginx"])])
    core_ratio = median([b / a for a, b in zip(costs["ours"], costs["nginx"])])
    anchor = f"nginx {median(rates['nginx']):,.0f}/s ({by_core['nginx']:,.0f}/s of CPU time)"
    met = max(ratio, core_ratio) >= 0.8
    if options.llama:
        llama = median([a / b for a, b in zip(rates["ours"], rates["llama-server"])])
        anchor += f"; llama-server {median(rates['llama-server']):,.0f}/s, ours is {llama:.1f} times that"
        met = met and llama >= 2
    return {"target": "/health: 0.8 of nginx `return 200`, twice llama-server (cpp-httplib), a core",
            "measured": f"{median(rates['ours']):,.0f}/s ({by_core['ours']:,.0f}/s of CPU time): {ratio:.2f} of nginx, "
                        f"{core_ratio:.2f} by CPU time",
            "anchor": anchor, "met": met, "rates": rates, "costs": costs}


def completion(options):
    body = '{"prompt":"Once upon a time","max_tokens":1}'
    rates, cores, llama_rates = [], [], []
    llama = Llama(options, "-np", "64", "-c", "16384", "--threads-http", "64") if options.llama else None
    with Ours("--engine", "null", "--max-running", "128", "--max-waiting", "1024") as ours:
        for _ in range(options.rounds):
            before = ours.loop_seconds()
            rate, total, bad = wrk(ours, "/v1/completions", 64, SECONDS, body)
            assert bad == 0, f"{bad} bad answers"
            rates.append(rate)
            cores.append(total / (ours.loop_seconds() - before))
            if llama:
                llama_rates.append(wrk(llama, "/v1/completions", 64, SECONDS, body)[0])
    if llama:
        llama.kill()
    return {"target": "completion of 1 token, null engine: 20,000/s on one loop core",
            "measured": f"{median(rates):,.0f}/s with loop and engine thread on one CPU; "
                        f"{median(cores):,.0f}/s of the loop's CPU time",
            "anchor": f"llama-server with a model of its own {median(llama_rates):,.0f}/s" if llama else "",
            "met": median(cores) >= 20000, "rates": rates, "cores": cores}


def paced(streams, rate, seconds):
    with Ours("--engine", "null", "--null-rate", str(rate), "--max-running", str(streams), "--max-waiting",
              str(streams), "--step-tokens", "8192", "--max-connections", str(streams + 100)) as server:
        n = max(2, int(rate * 2))
        run = serving.start_load(server, "--mix", "stream", "--clients", streams, "--tokens", n, "--pace", rate,
                                 "--ramp", min(2, n / rate), "--warmup", 3, "--seconds", seconds, "--expect", "first",
                                 "--sources", 4)
        time.sleep(3.5)
        before, begun = (server.loop_seconds(), server.metrics()["gptqt_generated_tokens_total"]), time.monotonic()
        time.sleep(max(1, seconds - 2))
        took = time.monotonic() - begun
        loop, tokens = server.loop_seconds() - before[0], server.metrics()["gptqt_generated_tokens_total"] - before[1]
        result = serving.end_load(run)
        assert result["lost"] == result["wrong"] == result["refused"] == 0, result
        return {"rate": rate, "delivered": result["tokens"] / result["seconds"], "ideal": streams * rate,
                "loop_share": loop / took, "per_core": tokens / loop if loop else 0, "late": result["ms"]["late"],
                "gap": result["ms"]["gap"]}


def sse(options):
    runs = [paced(1000, rate, 5) for rate in (5, 10, 20, 50, 100)]
    told = "; ".join(f"{r['rate']}/s each: {r['delivered']:,.0f} of {r['ideal']:,} delivered, loop {r['loop_share']:.0%}, "
                     f"late p50 {r['late']['p50']:.2f} p99 {r['late']['p99']:.2f} ms" for r in runs)
    best = max(r["per_core"] for r in runs)
    late = min(r["late"]["p99"] for r in runs)
    return {"target": "100,000 paced tokens/s a core; p99 added latency below 1 ms at 1,000 streams",
            "measured": f"{best:,.0f} tokens/s of the loop's CPU time. {told}", "met": best >= 100000 and late < 1,
            "runs": runs}


def many_streams(options):
    """64 streams at once, without a pace: what comes out of each server."""
    flags = ["--mix", "stream", "--clients", 64, "--tokens", 64, "--seconds", 5, "--expect", "none", "--no-ids"]
    with Ours("--max-running", "64") as ours:
        mine = serving.load(ours, *flags)
    told = f"real model (story, 1.7 M parameters), 64 streams: {mine['tokens'] / mine['seconds']:,.0f} tokens/s, " \
           f"TTFT p50 {mine['ms']['ttft']['p50']:.1f} ms, gap p99 {mine['ms']['gap']['p99']:.1f} ms"
    anchor = ""
    if options.llama:
        with Llama(options, "-np", "64", "-c", "16384", "--threads-http", "80") as llama:
            theirs = serving.load(llama, *flags)
        anchor = f"llama-server with {options.llama_model.rsplit('/', 1)[-1]}: " \
                 f"{theirs['tokens'] / theirs['seconds']:,.0f} tokens/s, TTFT p50 {theirs['ms']['ttft']['p50']:.1f} ms, " \
                 f"gap p99 {theirs['ms']['gap']['p99']:.1f} ms, {theirs['lost']} lost"
    return {"target": "(no target: many streams with a model)", "measured": told, "anchor": anchor,
            "met": mine["lost"] == mine["wrong"] == 0}


def held(options):
    idle = min(10000, serving.raise_descriptors() - 400)
    with Ours("--engine", "null", "--max-connections", str(idle + 100)) as server:
        run = serving.start_load(server, "--idle", idle, "--clients", 1, "--mix", "health", "--seconds", 5, "--sources", 4)
        peak = 0
        while run.poll() is None:
            peak = max(peak, server.memory("VmRSS"))
            time.sleep(0.2)
        result = serving.end_load(run)
    p99 = result["ms"]["quick"]["p99"]
    return {"target": "10,000 idle connections below 400 MB, /health p99 below 5 ms",
            "measured": f"{result['held']:,} held, {result['dropped']} dropped, RSS {peak / 1e6:.1f} MB, /health p50 "
                        f"{result['ms']['quick']['p50']:.3f}, p99 {p99:.3f} ms",
            "met": result["held"] == idle == 10000 and peak < 400e6 and p99 < 5, "result": result}


def admission(options):
    """Ten times what the engine can do, at random moments."""
    capacity = 16 * 100 / 16
    with Ours("--engine", "null", "--null-rate", "100", "--max-running", "16", "--max-waiting", "32",
              "--max-connections", "6000") as server:
        result = serving.load(server, "--mix", "stream", "--rate", 10 * capacity, "--clients", 2000, "--tokens", 16,
                              "--seconds", 10, "--expect", "first", "--sources", 8, "--timeout", 20)
        left = server.metrics()["gptqt_requests_running"] + server.metrics()["gptqt_requests_waiting"]
    refusal = result["ms"]["refusal"]
    asked = sum(result[k] for k in ("ok", "refused", "lost", "wrong"))
    return {"target": "admission decision p99 below 1 ms under 10x overload; 100 % of the excess answered, none hang",
            "measured": f"{asked} asked, {result['ok']} served, {result['refused']} refused with Retry-After, "
                        f"{result['lost'] + result['wrong']} without an answer, {left:.0f} left over; refusal as the client "
                        f"sees it p50 {refusal['p50']:.3f}, p99 {refusal['p99']:.3f} ms",
            "met": result["lost"] + result["wrong"] + left == 0 and refusal["n"] > 0 and refusal["p99"] < 1,
            "result": result}


def ttft(options):
    """1,000 streams run, and new ones come at random moments as old ones end."""
    runs = []
    for _ in range(min(3, options.rounds)):
        with Ours("--engine", "null", "--null-rate", "10", "--max-running", "2000", "--max-waiting", "2000",
                  "--step-tokens", "8192", "--max-connections", "3000") as server:
            runs.append(serving.load(server, "--mix", "stream", "--rate", 200, "--clients", 2000, "--tokens", 50,
                                     "--warmup", 6, "--seconds", 6, "--expect", "first", "--sources", 8))
    p50, p99 = (median([r["ms"]["ttft"][p] for r in runs]) for p in ("p50", "p99"))
    bad = sum(r["lost"] + r["wrong"] + r["refused"] for r in runs)
    return {"target": "TTFT of the server itself (null engine): p50 below 0.3 ms, p99 below 2 ms at 1,000 streams",
            "measured": f"p50 {p50:.3f}, p99 {p99:.3f} ms, {bad} not served", "met": p50 < 0.3 and p99 < 2 and bad == 0,
            "runs": runs}


ROWS = {"health": health, "completion": completion, "sse": sse, "streams": many_streams, "held": held,
        "admission": admission, "ttft": ttft}
