import * as api from "./api.js";
import { base64Of, clipElement, clipOfFile, secondsOf, startRecording } from "./audio.js";

const $ = (id) => document.getElementById(id);
const SETTINGS = ["system", "temperature", "top_p", "max_tokens", "seed", "language", "key"];

const state = { clips: [], messages: [], stopRecording: null, abort: null, tab: "chat", segments: [] };

// Settings.

const storeOf = (name) => (name === "key" ? sessionStorage : localStorage);
for (const name of SETTINGS) {
  const input = $(`set-${name}`);
  input.value = storeOf(name).getItem(`qa_jax.${name}`) || "";
  input.addEventListener("input", () => storeOf(name).setItem(`qa_jax.${name}`, input.value));
}
const setting = (name) => $(`set-${name}`).value.trim();
const key = () => setting("key");

$("open-settings").onclick = () => $("settings").showModal();
$("settings").onclose = () => connect();

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  dispatchEvent(new Event("themechange"));
}
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
setTheme(localStorage.getItem("qa_jax.theme") || (prefersDark.matches ? "dark" : "light"));
$("theme").onclick = () => {
  const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  localStorage.setItem("qa_jax.theme", theme);
  setTheme(theme);
};

// Errors and state.

function showError(error) {
  if (error.name === "AbortError") return;
  $("error-text").textContent = error.name === "NotAllowedError"
    ? "The browser does not give the microphone to this page" : error.message;
  $("error").hidden = false;
  if (error.status === 401) $("settings").showModal();
}
$("close-error").onclick = () => { $("error").hidden = true; };

async function connect() {
  try {
    const names = await api.models(key());
    const chosen = $("model").value;
    $("model").replaceChildren(...names.map((name) => new Option(name, name)));
    if (names.includes(chosen)) $("model").value = chosen;
    const isReady = await api.isReady();
    $("status").textContent = isReady ? "ready" : "loading the model";
    if (!isReady) setTimeout(connect, 2000);
  } catch (error) {
    $("status").textContent = "not connected";
    showError(error);
  }
}

function setBusy(isBusy) {
  $("send").hidden = isBusy;
  $("stop").hidden = !isBusy;
  $("stop").textContent = "Stop";
}
$("stop").onclick = () => state.abort?.abort();

// Tabs.

const TABS = ["chat", "transcript"];
function showTab(name) {
  state.tab = name;
  for (const tab of TABS) {
    $(tab).hidden = tab !== name;
    $(`tab-${tab}`).setAttribute("aria-selected", tab === name);
    $(`tab-${tab}`).tabIndex = tab === name ? 0 : -1;
  }
  $("text").disabled = name === "transcript";
  $("text").placeholder = name === "chat" ? "Message, or audio alone" : "Add a recording";
  $("send").textContent = name === "chat" ? "Send" : "Transcribe";
  $("clear").hidden = name !== "chat";
}
for (const tab of TABS) {
  $(`tab-${tab}`).onclick = () => showTab(tab);
  $(`tab-${tab}`).onkeydown = (event) => {
    if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
    const other = TABS[1 - TABS.indexOf(tab)];
    showTab(other);
    $(`tab-${other}`).focus();
  };
}

// Clips.

function addClip(clip) {
  if (state.tab === "transcript") state.clips = [];
  state.clips.push(clip);
  showClips();
}

function showClips() {
  $("clips").replaceChildren(...state.clips.map((clip) => {
    const remove = document.createElement("button");
    remove.type = "button";
    remove.className = "icon";
    remove.textContent = "✕";
    remove.setAttribute("aria-label", `Remove ${clip.name}`);
    remove.onclick = () => { state.clips = state.clips.filter((c) => c !== clip); showClips(); };
    const item = document.createElement("li");
    item.append(clipElement(clip, remove));
    return item;
  }));
}

async function addFiles(files) {
  for (const file of files) {
    try { addClip(await clipOfFile(file)); } catch (error) { showError(error); }
  }
}
$("upload").onclick = () => $("file").click();
$("file").onchange = () => { addFiles([...$("file").files]); $("file").value = ""; };

let dragged = 0;
const hasFiles = (event) => event.dataTransfer?.types.includes("Files");
addEventListener("dragenter", (e) => { if (hasFiles(e)) { dragged++; $("drop").hidden = false; } });
addEventListener("dragleave", (e) => { if (hasFiles(e) && --dragged <= 0) $("drop").hidden = true; });
addEventListener("dragover", (e) => e.preventDefault());
addEventListener("drop", (e) => {
  e.preventDefault();
  dragged = 0;
  $("drop").hidden = true;
  addFiles([...(e.dataTransfer?.files || [])]);
});

async function toggleRecording() {
  try {
    if (state.stopRecording) {
      const stop = state.stopRecording;
      state.stopRecording = null;
      addClip(await stop());
    } else {
      state.stopRecording = await startRecording();
    }
  } catch (error) {
    state.stopRecording = null;
    showError(error);
  }
  const isOn = Boolean(state.stopRecording);
  $("record").setAttribute("aria-pressed", isOn);
  $("record").setAttribute("aria-label", isOn ? "Stop recording" : "Record");
}
$("record").onclick = toggleRecording;

// Conversation.

function addTurn(role) {
  $("welcome")?.remove();
  const turn = document.createElement("article");
  turn.className = `turn ${role}`;
  turn.setAttribute("aria-label", role === "user" ? "You" : "Model");
  const body = document.createElement("div");
  body.className = "body";
  turn.append(body);
  $("log").append(turn);
  turn.scrollIntoView({ block: "end" });
  return { turn, body };
}

function userMessage(text, clips) {
  const parts = clips.map((clip) => ({
    type: "input_audio",
    input_audio: { data: base64Of(clip.bytes), format: clip.name.split(".").pop().toLowerCase() },
  }));
  if (text) parts.push({ type: "text", text });
  return { role: "user", content: parts };
}

function chatBody() {
  const body = { model: $("model").value, messages: [...state.messages] };
  if (setting("system")) body.messages.unshift({ role: "system", content: setting("system") });
  for (const name of ["temperature", "top_p", "max_tokens", "seed"])
    if (setting(name)) body[name] = Number(setting(name));
  return body;
}

async function converse(text, clips) {
  const { turn, body } = addTurn("user");
  clips.forEach((clip) => turn.insertBefore(clipElement(clip), body));
  body.textContent = text;
  body.hidden = !text;
  state.messages.push(userMessage(text, clips));
  const answer = addTurn("assistant");
  answer.turn.classList.add("busy");
  const started = performance.now();
  let first = 0, usage = null, isTold = false;
  try {
    for await (const chunk of api.chat(chatBody(), key(), state.abort.signal)) {
      const delta = chunk.choices[0]?.delta?.content;
      if (delta) {
        first ||= performance.now();
        answer.body.textContent += delta;
        answer.turn.scrollIntoView({ block: "end" });
      }
      if (chunk.choices[0]?.finish_reason === "length") isTold = true;
      usage = chunk.usage || usage;
    }
  } catch (error) {
    if (!answer.body.textContent) {  // nothing was said: the turn can be sent again
      state.messages.pop();
      turn.remove();
      answer.turn.remove();
      $("text").value = text;
      state.clips = clips;
      showClips();
      throw error;
    }
    showError(error);
  }
  answer.turn.classList.remove("busy");
  state.messages.push({ role: "assistant", content: answer.body.textContent });
  const about = document.createElement("div");
  about.className = "about";
  const seconds = (x) => `${((x - started) / 1000).toFixed(2)} s`;
  about.textContent = [
    first && `first word ${seconds(first)}`,
    `${seconds(performance.now())} in all`,
    usage && `${usage.prompt_tokens} + ${usage.completion_tokens} tokens, ${usage.prompt_tokens_details.cached_tokens} cached`,
    isTold && "cut at the longest answer",
  ].filter(Boolean).join(" · ");
  answer.turn.append(about);
}

$("clear").onclick = () => {
  state.abort?.abort();
  state.messages = [];
  $("log").replaceChildren();
  $("text").focus();
};

// Transcripts.

const clock = (seconds, point = ".") => {
  const ms = Math.round(seconds * 1000), two = (x) => String(Math.floor(x)).padStart(2, "0");
  return `${two(ms / 3600000)}:${two((ms / 60000) % 60)}:${two((ms / 1000) % 60)}${point}${String(ms % 1000).padStart(3, "0")}`;
};

async function transcribe(clip) {
  const element = clipElement(clip);
  $("transcript-clip").replaceChildren(element);
  $("segments").replaceChildren();
  $("downloads").hidden = true;
  $("transcript-state").textContent = "Transcribing …";
  state.segments = [];
  const fields = { model: $("model").value };
  if (setting("language")) fields.language = setting("language");
  for await (const event of api.transcribe(fields, clip, key(), state.abort.signal)) {
    if (event.type !== "transcript.text.segment") continue;
    state.segments.push(event);
    const item = document.createElement("li");
    const time = document.createElement("button");
    time.type = "button";
    time.textContent = clock(event.start).slice(3, 10);
    time.setAttribute("aria-label", `Play from ${clock(event.start)}`);
    time.onclick = () => element.playFrom(event.start);
    const text = document.createElement("span");
    text.textContent = event.text || "(nothing)";
    item.append(time, text);
    $("segments").append(item);
    item.scrollIntoView({ block: "nearest" });
  }
  $("transcript-state").textContent =
    `${state.segments.length} windows, ${secondsOf(clip).toFixed(1)} s. Times are those of the windows.`;
  $("downloads").hidden = false;
}

function transcriptAs(form) {
  const said = state.segments.filter((s) => s.text);
  if (form === "txt") return said.map((s) => s.text).join("\n") + "\n";
  const point = form === "srt" ? "," : ".";
  const cues = said.map((s, i) =>
    `${form === "srt" ? `${i + 1}\n` : ""}${clock(s.start, point)} --> ${clock(s.end, point)}\n${s.text}\n`);
  return (form === "vtt" ? "WEBVTT\n\n" : "") + cues.join("\n");
}
for (const button of document.querySelectorAll("[data-form]")) {
  button.onclick = () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([transcriptAs(button.dataset.form)]));
    link.download = `transcript.${button.dataset.form}`;
    link.click();
    URL.revokeObjectURL(link.href);
  };
}
$("copy").onclick = () => navigator.clipboard.writeText(transcriptAs("txt")).catch(showError);

// Sending.

async function send() {
  if (state.abort) return;
  if (state.stopRecording) await toggleRecording();
  const text = $("text").value.trim(), clips = state.clips;
  if (state.tab === "chat" ? !text && !clips.length : !clips.length) return;
  $("error").hidden = true;
  state.abort = new AbortController();
  state.clips = [];
  if (state.tab === "chat") $("text").value = "";
  showClips();
  setBusy(true);
  try {
    await (state.tab === "chat" ? converse(text, clips) : transcribe(clips[0]));
  } catch (error) {
    if (state.tab === "transcript") $("transcript-state").textContent = "Stopped.";
    showError(error);
  } finally {
    state.abort = null;
    setBusy(false);
    $("text").focus();
  }
}
$("composer").onsubmit = (event) => { event.preventDefault(); send(); };
$("text").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
};
$("text").oninput = () => {
  $("text").rows = Math.min(8, $("text").value.split("\n").length);
};
addEventListener("keydown", (event) => {
  if (event.altKey && event.code === "KeyR") { event.preventDefault(); toggleRecording(); }
  if (event.key === "Escape" && !$("settings").open) state.abort?.abort();
});

connect();
