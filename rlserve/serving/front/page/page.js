// The page of a server: a chat with the model, and the numbers of /metrics.
//
//   key, if one is wanted ─► /v1/models ─► chat: POST /v1/chat/completions, pieces of a stream into the last answer
//                                      │   (a model without a chat template continues a text: POST /v1/completions)
//                                      └─► every two seconds: /metrics ─► numbers, replica by replica
//
// Whatever the model or the server says goes into the page as text, never as markup.
"use strict";

const POLL_MS = 2000;
// Most tokens of a text where nothing else is asked for, as it may have no end; of a small model half of what fits.
const TEXT_TOKENS = 200;
const byId = (id) => document.getElementById(id);
const page = { key: "", model: null, chats: true, textTokens: TEXT_TOKENS };
Object.assign(page, { messages: [], answering: null, counted: null, version: null });

// --- the server ---

class ServerError extends Error {}

async function ask(path, options = {}) {
  const headers = { ...options.headers };
  if (page.key) headers.Authorization = `Bearer ${page.key}`;
  const response = await fetch(path, { ...options, headers, cache: "no-store" });
  if (response.status === 401) {
    byId("key-form").hidden = false;
    throw new ServerError(page.key ? "The server does not know this key." : "");
  }
  if (!response.ok) throw new ServerError(errorText(await response.text(), response.status));
  return response;
}

function errorText(body, status) {
  let message = null;
  try {
    message = JSON.parse(body).error.message;
  } catch { /* an answer of something in between, whose status says enough */ }
  return message ?? `The server answers with status ${status}.`;
}

// Data of the events in a stream, as they become complete.
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (rest + value).replaceAll("\r\n", "\n").split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const lines = block.split("\n").filter((line) => line.startsWith("data:"));
      if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
    }
  }
}

// --- the chat ---

function element(name, className, text) {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

function say(role, text) {
  const said = element("p", `said ${role}`, text);
  byId("log").append(said);
  byId("log").scrollTop = byId("log").scrollHeight;
  return said;
}

async function send() {
  const text = byId("text").value.trim();
  if (!text || page.answering) return;
  byId("text").value = "";
  page.messages.push({ role: "user", content: text });
  say("user", text);
  const answer = { said: say("assistant", ""), text: "", begun: performance.now(), first: null, usage: null, how: "" };
  setAnswering(new AbortController());
  showError("");
  try {
    await stream(answer);
  } catch (error) {
    if (error.name === "AbortError") answer.how = "stopped";
    else showError(error.message);
  }
  setAnswering(null);
  finish(answer);
}

async function stream(answer) {
  const most = Number(byId("max-tokens").value);
  const body = {
    model: page.model,
    temperature: Number(byId("temperature").value),
    stream: true,
    stream_options: { include_usage: true },
    return_weight_versions: true,
  };
  if (page.chats) Object.assign(body, { messages: page.messages, max_completion_tokens: most || undefined });
  else Object.assign(body, { prompt: page.messages.at(-1).content, max_tokens: most || page.textTokens });
  const response = await ask(page.chats ? "v1/chat/completions" : "v1/completions", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal: page.answering.signal,
  });
  for await (const data of eventsOf(response)) {
    if (data === "[DONE]") return;
    take(answer, JSON.parse(data));
  }
  throw new ServerError("The stream broke off.");
}

function take(answer, chunk) {
  if (chunk.error) throw new ServerError(chunk.error.message);
  answer.usage = chunk.usage ?? answer.usage;
  const choice = chunk.choices[0];
  if (!choice) return;
  answer.how = choice.finish_reason ?? answer.how;
  const spans = choice.weight_versions;
  if (spans?.length) page.version = spans.at(-1)[0];
  const thought = choice.delta?.reasoning ?? choice.delta?.reasoning_content ?? "";
  const text = choice.text ?? choice.delta?.content ?? "";
  if (!thought && !text) return;
  answer.first ??= performance.now();
  if (thought) think(answer, thought);
  answer.text += text;
  answer.said.textContent = answer.text;
  byId("log").scrollTop = byId("log").scrollHeight;
}

// Reasoning stands before the answer, and is not said again to the model.
function think(answer, text) {
  if (!answer.thought) {
    answer.thought = element("p", "said thought", "");
    answer.said.before(answer.thought);
  }
  answer.thought.textContent += text;
}

function finish(answer) {
  // The server takes no conversation in which an answer is missing.
  if (answer.text) page.messages.push({ role: "assistant", content: answer.text });
  else page.messages.pop();
  const seconds = (performance.now() - answer.begun) / 1000;
  const tokens = answer.usage?.completion_tokens;
  const about = [
    answer.how === "length" ? "cut at the most tokens" : answer.how,
    answer.first === null ? "" : `first token after ${(answer.first - answer.begun).toFixed(0)} ms`,
    tokens ? `${tokens} tokens in ${seconds.toFixed(2)} s` : "",
    page.version === null ? "" : `weights v${page.version}`,
  ];
  byId("log").append(element("p", "about", about.filter(Boolean).join(" · ")));
  byId("log").scrollTop = byId("log").scrollHeight;
}

function setAnswering(controller) {
  page.answering = controller;
  byId("send").disabled = controller !== null;
  byId("stop").disabled = controller === null;
  byId("log").setAttribute("aria-busy", String(controller !== null));
}

function startAnew() {
  page.answering?.abort();
  page.messages = [];
  byId("log").replaceChildren();
  byId("text").focus();
}

// --- live numbers ---

// Samples of Prometheus' text format: name, labels, value.
function samplesOf(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    const found = line.match(/^([\w:]+)(?:\{(.*)\})? (\S+)$/);
    if (!found) continue;
    const labels = {};
    for (const [, name, value] of (found[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) labels[name] = value;
    samples.push({ name: found[1], labels, value: Number(found[3]) });
  }
  return samples;
}

function sum(samples, name) {
  return samples.filter((sample) => sample.name === name).reduce((total, sample) => total + sample.value, 0);
}

// Tokens a second since the last look, replica by replica; a counter that went back is of a new process.
function ratesOf(samples, now) {
  const counts = new Map();
  for (const sample of samples) {
    if (sample.name === "vllm:generation_tokens_total") counts.set(sample.labels.engine, sample.value);
  }
  const before = page.counted;
  page.counted = { counts, now };
  const rates = new Map();
  for (const [engine, count] of counts) {
    const last = before?.counts.get(engine);
    if (last !== undefined) rates.set(engine, Math.max(0, count - last) / ((now - before.now) / 1000));
  }
  return rates;
}

function showNumbers(samples, rates) {
  const total = [...rates.values()].reduce((all, rate) => all + rate, 0);
  const lookedUp = sum(samples, "vllm:prefix_cache_queries_total");
  const rows = {
    "replicas ready": sum(samples, "rlserve:ready_replicas"),
    "version of the weights": page.version === null ? "-" : `v${page.version}`,
    "answers under way": sum(samples, "rlserve:live_samples"),
    "waiting in queues": sum(samples, "vllm:num_requests_waiting"),
    "tokens/s": rates.size ? total.toFixed(0) : "-",
    "input found in the cache": lookedUp ? share(sum(samples, "vllm:prefix_cache_hits_total") / lookedUp) : "-",
  };
  if (sum(samples, "rlserve:degradation_level")) rows["degradation level"] = sum(samples, "rlserve:degradation_level");
  byId("numbers").replaceChildren(
    ...Object.entries(rows).flatMap(([name, value]) => [element("dt", "", name), element("dd", "", String(value))]),
  );
}

function showEngines(samples, rates) {
  const names = [...new Set(samples.map((sample) => sample.labels.engine).filter(Boolean))].sort();
  const rows = names.map((name) => {
    const own = samples.filter((sample) => sample.labels.engine === name);
    const row = document.createElement("tr");
    const cells = [
      name,
      sum(own, "vllm:num_requests_running"),
      sum(own, "vllm:num_requests_waiting"),
      share(sum(own, "vllm:kv_cache_usage_perc")),
      rates.has(name) ? rates.get(name).toFixed(0) : "-",
    ];
    row.append(...cells.map((cell) => element("td", "", String(cell))));
    return row;
  });
  byId("engines").tBodies[0].replaceChildren(...rows);
}

function share(value) {
  return `${(100 * value).toFixed(0)} %`;
}

async function look() {
  const samples = samplesOf(await (await ask("metrics")).text());
  const rates = ratesOf(samples, performance.now());
  showNumbers(samples, rates);
  showEngines(samples, rates);
}

// --- the page ---

function showError(message) {
  byId("error").textContent = message;
}

async function lookAgainAndAgain() {
  if (!document.hidden && byId("key-form").hidden) {
    try {
      if (page.model === null) await meet();
      await look();
      byId("state").textContent = "";
    } catch (error) {
      if (error instanceof ServerError) showError(error.message);
      else byId("state").textContent = "the server does not answer";
    }
  }
  setTimeout(lookAgainAndAgain, POLL_MS);
}

async function meet() {
  page.chats = (await (await ask("tokenizer_info")).json()).chat_template !== null;
  const card = (await (await ask("v1/models")).json()).data[0];
  page.model = card.id;
  page.textTokens = Math.min(TEXT_TOKENS, Math.floor(card.max_model_len / 2));
  if (!page.chats) {
    byId("text").placeholder = "This model has no chat template: it continues each text that you write.";
    byId("max-tokens").placeholder = String(page.textTokens);
  }
  byId("model").textContent = page.model;
  document.title = `${page.model} – rlserve`;
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
byId("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    byId("ask").requestSubmit();
  }
});
byId("stop").addEventListener("click", () => page.answering?.abort());
byId("new").addEventListener("click", startAnew);
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  page.key = byId("key").value.trim();
  byId("key").value = "";
  byId("key-form").hidden = true;
  showError("");
});
lookAgainAndAgain();
