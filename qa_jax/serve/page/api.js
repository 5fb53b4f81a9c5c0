// Requests to the server that this page came from.

export class ServerError extends Error {}

async function request(path, key, options = {}) {
  const headers = { ...options.headers };
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("The server cannot be reached");
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const error = new ServerError(body?.error?.message || `The server answers ${response.status}`);
  error.status = response.status;
  throw error;
}

export async function models(key) {
  const response = await request("v1/models", key);
  return (await response.json()).data.map((model) => model.id);
}

export const isReady = () => fetch("ready").then((r) => r.ok, () => false);

export async function* chat(body, key, signal) {
  const response = await request("v1/chat/completions", key, {
    method: "POST", signal, body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    headers: { "Content-Type": "application/json" },
  });
  yield* events(response);
}

export async function* transcribe(fields, clip, key, signal) {
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) form.append(name, value);
  form.append("stream", "true");
  form.append("timestamp_granularities[]", "segment");
  form.append("file", new Blob([clip.bytes]), clip.name);
  const response = await request("v1/audio/transcriptions", key, { method: "POST", signal, body: form });
  yield* events(response);
}

// Server-sent events as objects.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n\n");
    rest = lines.pop();
    for (const line of lines) {
      const data = line.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const event = JSON.parse(data);
      if (event.error) throw new ServerError(event.error.message);
      yield event;
    }
  }
}
