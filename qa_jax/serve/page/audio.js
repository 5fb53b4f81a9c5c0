// Clips: reading files, recording, WAV, waveforms.

// What the server reads as it is; other files are decoded here and sent as WAV.
const READ_BY_SERVER = /\.(wav|flac|mp3|ogg|opus|aiff?|au)$/i;

export async function clipOfFile(file) {
  const raw = new Uint8Array(await file.arrayBuffer());
  const context = new OfflineAudioContext(1, 1, 16000);
  let decoded;
  try {
    decoded = await context.decodeAudioData(raw.slice().buffer);
  } catch {
    if (READ_BY_SERVER.test(file.name)) return { name: file.name, bytes: raw, samples: null, rate: 0 };
    throw new Error(`${file.name} is no audio that this browser can read`);
  }
  const samples = decoded.getChannelData(0);
  const bytes = READ_BY_SERVER.test(file.name) ? raw : wavOf(mix(decoded), decoded.sampleRate);
  return { name: file.name, bytes, samples, rate: decoded.sampleRate };
}

export function clipOfSamples(name, samples, rate) {
  return { name, bytes: wavOf(samples, rate), samples, rate };
}

function mix(decoded) {
  const mixed = new Float32Array(decoded.length);
  for (let c = 0; c < decoded.numberOfChannels; c++) {
    const channel = decoded.getChannelData(c);
    for (let i = 0; i < mixed.length; i++) mixed[i] += channel[i] / decoded.numberOfChannels;
  }
  return mixed;
}

function wavOf(samples, rate) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, word) => [...word].forEach((c, i) => view.setUint8(at + i, c.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + 2 * samples.length, true); text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, rate, true); view.setUint32(28, 2 * rate, true);
  view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  text(36, "data"); view.setUint32(40, 2 * samples.length, true);
  samples.forEach((x, i) => view.setInt16(44 + 2 * i, Math.max(-1, Math.min(1, x)) * 32767, true));
  return new Uint8Array(view.buffer);
}

export function base64Of(bytes) {
  let text = "";
  for (let i = 0; i < bytes.length; i += 0x8000)
    text += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return btoa(text);
}

export const secondsOf = (clip) => (clip.samples ? clip.samples.length / clip.rate : NaN);

// Records until stop() is called, which returns the clip.
export async function startRecording() {
  if (!navigator.mediaDevices)
    throw new Error("Browsers give the microphone to https pages and localhost alone");
  const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
  const context = new AudioContext();
  await context.audioWorklet.addModule("page/recorder.js");
  const source = context.createMediaStreamSource(stream);
  const node = new AudioWorkletNode(context, "recorder");
  const parts = [];
  node.port.onmessage = (event) => parts.push(event.data);
  source.connect(node);
  node.connect(context.destination); // silent: the node writes nothing
  return async () => {
    stream.getTracks().forEach((track) => track.stop());
    const rate = context.sampleRate;
    await context.close();
    const samples = new Float32Array(parts.reduce((n, part) => n + part.length, 0));
    let at = 0;
    for (const part of parts) { samples.set(part, at); at += part.length; }
    if (!samples.length) throw new Error("Nothing was recorded");
    const time = new Date().toTimeString().slice(0, 8).replaceAll(":", "");
    return clipOfSamples(`recording-${time}.wav`, samples, rate);
  };
}

let playing = null;

// A clip as an element: play, waveform, name, and further buttons.
export function clipElement(clip, ...more) {
  const element = document.createElement("div");
  element.className = "clip";
  const button = document.createElement("button");
  button.type = "button";
  button.className = "icon";
  const canvas = document.createElement("canvas");
  const name = document.createElement("span");
  name.className = "name";
  const seconds = secondsOf(clip);
  name.textContent = Number.isNaN(seconds) ? clip.name : `${clip.name} · ${seconds.toFixed(1)} s`;
  name.title = name.textContent;
  const sound = new Audio(URL.createObjectURL(new Blob([clip.bytes])));
  const show = () => {
    button.textContent = sound.paused ? "▶" : "❚❚";
    button.setAttribute("aria-label", `${sound.paused ? "Play" : "Pause"} ${clip.name}`);
    draw(canvas, clip.samples, sound.duration ? sound.currentTime / sound.duration : 0);
  };
  const toggle = () => {
    if (!sound.paused) return sound.pause();
    if (playing && playing !== sound) playing.pause();
    playing = sound;
    sound.play().catch(() => {});
  };
  button.onclick = toggle;
  canvas.onclick = (event) => {
    if (sound.duration) sound.currentTime = (event.offsetX / canvas.clientWidth) * sound.duration;
    if (sound.paused) toggle();
  };
  for (const kind of ["play", "pause", "timeupdate", "ended"]) sound.addEventListener(kind, show);
  element.playFrom = (seconds) => { sound.currentTime = seconds; if (sound.paused) toggle(); };
  element.append(button, canvas, name, ...more);
  new ResizeObserver(show).observe(canvas);
  addEventListener("themechange", show);
  show();
  return element;
}

function draw(canvas, samples, played) {
  const scale = devicePixelRatio || 1;
  const width = (canvas.width = canvas.clientWidth * scale);
  const height = (canvas.height = canvas.clientHeight * scale);
  if (!samples || !width) return;
  const style = getComputedStyle(document.documentElement);
  const context = canvas.getContext("2d");
  const bars = Math.floor(width / (3 * scale));
  const per = samples.length / bars;
  let loudest = 1e-4;
  const peaks = Array.from({ length: bars }, (_, i) => {
    let peak = 0;
    const last = Math.min(samples.length, Math.ceil((i + 1) * per));
    for (let j = Math.floor(i * per); j < last; j += Math.max(1, Math.floor(per / 200)))
      peak = Math.max(peak, Math.abs(samples[j]));
    loudest = Math.max(loudest, peak);
    return peak;
  });
  peaks.forEach((peak, i) => {
    const size = Math.max(2 * scale, (peak / loudest) * height * 0.9);
    context.fillStyle = style.getPropertyValue(i / bars < played ? "--accent" : "--faint");
    context.fillRect(i * 3 * scale, (height - size) / 2, 2 * scale, size);
  });
}
