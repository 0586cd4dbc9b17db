"use strict";

const $ = (id) => document.getElementById(id);

let running = null; // the AbortController of the request under way
let history = []; // the chat so far: {role, content}; a new array after each clear()
let known = false; // whether the model's facts are shown

const examples = { completion: "Once upon a time", chat: "Tell me a story about a brave cat." };

const mode = () => document.querySelector("input[name=mode]:checked").value;

function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB"];
  let i = 0;
  for (; bytes >= 1024 && i < units.length - 1; i++) bytes /= 1024;
  return `${bytes.toFixed(i ? 1 : 0)} ${units[i]}`;
}

function describe(model) {
  const m = model.meta;
  const facts = [model.id, m.architecture];
  if (m.bits) facts.push(`${m.bits}-bit ${m.quantization}`, `groups of ${m.group}`);
  facts.push(size(m.weight_bytes), `context ${model.max_model_len}`, m.backend);
  return facts.join(" · ");
}

async function loadModel() {
  try {
    const list = await (await fetch("/v1/models")).json();
    const model = list.data[0];
    $("model").textContent = describe(model);
    const chat = document.querySelector("input[value=chat]");
    chat.disabled = !model.meta.chat;
    if (!model.meta.chat) chat.parentElement.title = "This model has no chat template";
    known = true;
  } catch {
    $("model").textContent = "the server does not answer";
  }
}

async function loadState() {
  try {
    const health = await (await fetch("/health")).json();
    $("state").textContent = `${health.status}, ${health.running} running, ${health.waiting} waiting`;
    $("state").dataset.status = health.status;
    if (!known) loadModel();
  } catch {
    $("state").textContent = "offline";
    $("state").dataset.status = "offline";
  }
}

function add(parent, kind, text = "") {
  const block = document.createElement("div");
  block.className = kind;
  block.textContent = text;
  parent.append(block);
  return block;
}

// Follows growing text, unless the reader has scrolled up.
function follow(block, always) {
  const below = document.documentElement.scrollHeight - scrollY - innerHeight;
  if (always || below < 150) block.scrollIntoView({ block: "end" });
}

// JSON.stringify would round a seed above 2^53, so its digits are put in as they are.
function body(request, seed) {
  const text = JSON.stringify(request);
  return seed ? `${text.slice(0, -1)},"seed":${seed}}` : text;
}

function makeRequest(prompt) {
  const request = { stream: true, stream_options: { include_usage: true } };
  for (const [name, id] of [["max_tokens", "max_tokens"], ["temperature", "temperature"], ["top_p", "top_p"]])
    if ($(id).value !== "") request[name] = Number($(id).value);
  if (mode() === "chat") request.messages = [...history, { role: "user", content: prompt }];
  else request.prompt = prompt;
  return request;
}

// Calls handle(data) for each event of the stream; lines may be split anywhere.
async function readEvents(response, handle) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events)
      if (event.startsWith("data: ") && event !== "data: [DONE]") handle(JSON.parse(event.slice(6)));
  }
}

function showSpeed(meter, usage) {
  const now = performance.now();
  const tokens = usage ? usage.completion_tokens : meter.texts;
  const seconds = (meter.last - meter.first) / 1000;
  const speed = tokens > 1 && seconds > 0 ? `${((tokens - 1) / seconds).toFixed(1)} tokens/s, ` : "";
  const first = meter.first ? `first after ${(meter.first - meter.start).toFixed(0)} ms` : `${((now - meter.start) / 1000).toFixed(1)} s`;
  $("speed").textContent = `${tokens} tokens, ${speed}${first}${meter.cut ? ", cut by length" : ""}`;
}

async function generate(prompt, turn) {
  const chat = mode() === "chat";
  const path = chat ? "/v1/chat/completions" : "/v1/completions";
  const meter = { start: performance.now(), first: 0, last: 0, texts: 0, cut: false };
  add(turn, "given", prompt);
  const block = add(turn, "made");
  follow(block, true);
  const response = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: body(makeRequest(prompt), $("seed").value.trim()),
    signal: running.signal,
  });
  if (!response.ok) {
    const answer = await response.json().catch(() => null);
    throw new Error(answer?.error?.message ?? `status ${response.status}`);
  }
  const said = history;
  try {
    await readEvents(response, (event) => {
      if (event.error) throw new Error(event.error.message);
      const choice = event.choices[0];
      if (choice?.finish_reason === "length") meter.cut = true;
      const text = choice && (chat ? choice.delta.content : choice.text);
      if (text) {
        meter.last = performance.now();
        meter.first ||= meter.last;
        meter.texts++;
        block.append(text);
        follow(block, false);
      }
      showSpeed(meter, event.usage);
    });
  } finally {
    // What was said before a stop stays in the chat.
    if (chat && meter.texts) {
      said.push({ role: "user", content: prompt }, { role: "assistant", content: block.textContent });
      $("prompt").value = "";
    }
  }
}

function setBusy(busy) {
  $("send").disabled = busy;
  $("stop").disabled = !busy;
  $("answer").setAttribute("aria-busy", busy);
}

async function submit(event) {
  event.preventDefault();
  const prompt = $("prompt").value || $("prompt").placeholder;
  if (running || !$("form").reportValidity()) return;
  running = new AbortController();
  setBusy(true);
  const turn = add($("answer"), `turn ${mode()}`);
  try {
    await generate(prompt, turn);
  } catch (error) {
    follow(add(turn, "trouble", error.name === "AbortError" ? "stopped" : error.message), false);
  } finally {
    running = null;
    setBusy(false);
    loadState();
  }
}

function clear() {
  running?.abort();
  history = [];
  $("answer").replaceChildren();
  $("speed").textContent = "";
  $("prompt").placeholder = examples[mode()];
}

$("form").addEventListener("submit", submit);
$("stop").addEventListener("click", () => running?.abort());
$("clear").addEventListener("click", clear);
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});
for (const radio of document.querySelectorAll("input[name=mode]")) radio.addEventListener("change", clear);
clear(); // a reloaded page keeps its mode
loadState();
setInterval(() => document.hidden || loadState(), 5000);
