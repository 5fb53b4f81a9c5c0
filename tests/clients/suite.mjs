// OpenAI's client for Node against a server: node suite.mjs URL KEY CLIP; prints the number of calls.
import assert from "node:assert/strict";
import fs from "node:fs";
import OpenAI, { toFile } from "openai";

const [url, apiKey, path] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 });
const data = fs.readFileSync(path).toString("base64");
const clip = { type: "input_audio", input_audio: { data, format: "wav" } };
const text = (words) => ({ type: "text", text: words });
const model = "tiny";
let calls = 0;

const user = (...content) => [{ role: "user", content }];
async function chat(messages, settings = {}) {
  calls++;
  return client.chat.completions.create({ model, messages, max_tokens: 8, temperature: 0, ...settings });
}
async function fails(status, work) {
  calls++;
  await assert.rejects(work, (error) => error.status === status && Boolean(error.message));
}

calls++;
assert.deepEqual((await client.models.list()).data.map((m) => m.id), [model]);
calls++;
assert.equal((await client.models.retrieve(model)).object, "model");

const prompts = [
  user(clip), user(clip, text("what?")), user(text("what?"), clip), user(clip, clip, text("both?")),
  [{ role: "system", content: "be brief" }, ...user(text("hello"))],
  [...user(clip), { role: "assistant", content: "a dog" }, ...user(text("sure?"))],
  [{ role: "user", content: "plain" }],
  [{ role: "developer", content: "be brief" }, ...user(clip)],
  user(text("one"), text("two")), user(clip, text("and"), clip, text("again")),
  user(text("你好 naïve 🙂"), clip),
];
for (const messages of prompts) {
  const whole = await chat(messages);
  assert.equal(whole.object, "chat.completion");
  assert.equal(whole.usage.total_tokens, whole.usage.prompt_tokens + whole.usage.completion_tokens);
  let parts = "", usage = null, reason = null;
  for await (const chunk of await chat(messages, { stream: true, stream_options: { include_usage: true } })) {
    parts += chunk.choices[0]?.delta?.content ?? "";
    reason = chunk.choices[0]?.finish_reason ?? reason;
    usage = chunk.usage ?? usage;
  }
  assert.equal(parts, whole.choices[0].message.content);
  assert.equal(reason, whole.choices[0].finish_reason);
  assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
}

const drawn = { temperature: 1, seed: 5, n: 3, max_completion_tokens: 6, max_tokens: undefined };
const [a, b] = [await chat(prompts[1], drawn), await chat(prompts[1], drawn)];
assert.equal(a.choices.length, 3);
assert.deepEqual(a.choices.map((c) => c.message), b.choices.map((c) => c.message));
const told = await chat(prompts[0], { logprobs: true, top_logprobs: 3, user: "me" });
assert.ok(told.choices[0].logprobs.content.every((t) => t.top_logprobs.length === 3));
for (const settings of [
  { stop: ["e"] }, { presence_penalty: 0.5 }, { frequency_penalty: 0.5 }, { top_p: 0.5 },
  { logit_bias: { 11: -5 } }, { n: 2, temperature: 0.7 }, { seed: 1, temperature: 2 },
  { max_completion_tokens: 1, max_tokens: undefined }, { modalities: ["text"] }, { response_format: { type: "text" } },
]) assert.ok((await chat(prompts[1], settings)).choices[0].message);

for (const prompt of ["hello", ["hello", "you"], [20, 21, 22]]) {
  calls++;
  const found = await client.completions.create({ model, prompt, max_tokens: 4 });
  assert.equal(found.choices.length, Array.isArray(prompt) && prompt[0] === "hello" ? 2 : 1);
}
calls++;
let raw = "";
for await (const chunk of await client.completions.create({ model, prompt: "hello", stream: true }))
  raw += chunk.choices[0]?.text ?? "";
assert.ok(raw);

const file = () => toFile(fs.readFileSync(path), "clip.wav");
for (const response_format of ["json", "text", "verbose_json", "srt", "vtt"]) {
  calls += 2;
  const settings = { model, response_format };
  assert.ok(await client.audio.transcriptions.create({ ...settings, file: await file(), language: "en" }));
  assert.ok(await client.audio.translations.create({ ...settings, file: await file() }));
}
calls++;
let last = null;
for await (const event of await client.audio.transcriptions.create({ model, file: await file(), stream: true }))
  last = event;
assert.equal(last.type, "transcript.text.done");

await fails(404, () => client.chat.completions.create({ model: "x", messages: prompts[0] }));
await fails(400, () => client.chat.completions.create({ model, messages: [] }));
await fails(400, () => client.chat.completions.create({ model, messages: prompts[0], colour: 1 }));
await fails(400, () => client.chat.completions.create({ model, messages: prompts[0], n: 99 }));
await fails(400, () => client.completions.create({ model, prompt: [] }));
await fails(400, async () =>
  client.audio.transcriptions.create({ model, file: await toFile(Buffer.from("x"), "a.wav") }));
const stranger = new OpenAI({ baseURL: `${url}/v1`, apiKey: "wrong", maxRetries: 0 });
await fails(401, () => stranger.models.list());

const aborted = await client.chat.completions.create({ model, messages: prompts[1], stream: true, max_tokens: 300 });
calls++;
for await (const chunk of aborted) { assert.ok(chunk.id); aborted.controller.abort(); break; }
console.log(calls);
