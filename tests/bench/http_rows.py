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
    rates, cores, real, llama_rates = [], [], [], []
    flags = ["--max-running", "64", "--max-waiting", "1024"]
    llama = Llama(options, "-np", "64", "-c", "16384", "--threads-http", "80") if options.llama else None
    with Ours("--engine", "null", *flags) as null, Ours(*flags, model=anchors.TINY) as model:
        for _ in range(options.rounds):
            before = null.loop_seconds()
            rate, total, bad = wrk(null, "/v1/completions", 64, SECONDS, body)
            assert bad == 0, f"{bad} bad answers"
            rates.append(rate)
            cores.append(total / (null.loop_seconds() - before))
            real.append(wrk(model, "/v1/completions", 64, SECONDS, body)[0])
            if llama:
                llama_rates.append(wrk(llama, "/v1/completions", 64, SECONDS, body)[0])
    anchor = ""
    if llama:
        llama.kill()
        anchor = f"with the same GGUF of 0.5 M parameters, one CPU each: llama-server {median(llama_rates):,.0f}/s, ours " \
                 f"{median(real):,.0f}/s ({median([a / b for a, b in zip(real, llama_rates)]):.1f} times)"
    return {"target": "completion of 1 token, null engine: 20,000/s on one loop core",
            "measured": f"{median(rates):,.0f}/s with loop and engine thread on one CPU; "
                        f"{median(cores):,.0f}/s of the loop's CPU time", "anchor": anchor,
            "met": median(cores) >= 20000, "rates": rates, "cores": cores, "real": real, "llama": llama_rates}


def paced(streams, rate, seconds):
    with Ours("--engine", "null", "--null-rate", str(rate), "--max-running", str(streams), "--max-waiting",
              str(streams), "--step-tokens", "8192", "--max-connections", str(streams + 100)) as server:
        n = max(2, int(rate * 2))
        run = serving.start_load(server, "--mix", "stream", "--clients", streams, "--tokens", n, "--pace", rate,
                                 "--ramp", min(2, n / rate), "--warmup", 3, "--seconds", seconds, "--expect", "first",
                                 "--sources", 4, prefix=anchors.CLIENT)
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
    """64 streams at once, without a pace: what comes out of each server with the same tiny model."""
    flags = ["--mix", "stream", "--clients", 64, "--tokens", 64, "--words", 4, "--seconds", 4, "--expect", "none",
             "--no-ids"]
    servers = {"ours": Ours("--max-running", "64", model=anchors.TINY)}
    if options.llama:
        servers["llama-server"] = Llama(options, "-np", "64", "-c", "16384", "--threads-http", "80")
    runs = {name: [] for name in servers}
    for _ in range(options.rounds):
        for name, server in servers.items():
            # llama-server closes connections that wait for their next request.
            runs[name].append(serving.load(server, *flags, *([] if name == "ours" else ["--patient"]), prefix=anchors.CLIENT))
    for server in servers.values():
        server.kill()
    rates, told = {}, {}
    for name, results in runs.items():
        rates[name] = median([r["tokens"] / r["seconds"] for r in results])
        told[name] = f"{rates[name]:,.0f} tokens/s, TTFT p50 {median([r['ms']['ttft']['p50'] for r in results]):.1f} ms, " \
                     f"gap p99 {median([r['ms']['gap']['p99'] for r in results]):.1f} ms, " \
                     f"{sum(r['lost'] + r['wrong'] for r in results)} lost"
    anchor = f"llama-server, the same GGUF: {told['llama-server']}" if options.llama else ""
    return {"target": "(none set: 64 streams of a model of 0.5 M parameters)", "measured": told["ours"], "anchor": anchor,
            "met": all(r["lost"] == r["wrong"] == 0 for r in runs["ours"]) and
            rates["ours"] >= rates.get("llama-server", 0), "runs": runs}


def held(options):
    idle = min(10000, serving.raise_descriptors() - 400)
    with Ours("--engine", "null", "--max-connections", str(idle + 100)) as server:
        run = serving.start_load(server, "--idle", idle, "--clients", 1, "--mix", "health", "--seconds", 5, "--sources", 4,
                                 prefix=anchors.CLIENT)
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
                              "--seconds", 10, "--expect", "first", "--sources", 8, "--timeout", 20, prefix=anchors.CLIENT)
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
                                     "--warmup", 6, "--seconds", 6, "--expect", "first", "--sources", 8, prefix=anchors.CLIENT))
    p50, p99 = (median([r["ms"]["ttft"][p] for r in runs]) for p in ("p50", "p99"))
    bad = sum(r["lost"] + r["wrong"] + r["refused"] for r in runs)
    return {"target": "TTFT of the server itself (null engine): p50 below 0.3 ms, p99 below 2 ms at 1,000 streams",
            "measured": f"p50 {p50:.3f}, p99 {p99:.3f} ms, {bad} not served", "met": p50 < 0.3 and p99 < 2 and bad == 0,
            "runs": runs}


ROWS = {"health": health, "completion": completion, "sse": sse, "streams": many_streams, "held": held,
        "admission": admission, "ttft": ttft}
