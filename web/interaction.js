// The page itself: unpacks the data, follows the pointer, runs the clock, and offers window.dynamics to scripts.
"use strict";

// A gesture shorter than this had no time to pull the image along: its speed is given to the image when it ends.
const FLICK_MS = 200;
// Below this bound of any pixel's swing, px of the motion grid, the image has come to rest.
const REST_PX = 0.01;
// The keyboard's hand: a step as a share of the image's sides, a push as long sides a second.
const HAND_STEP = 1 / 40;
const KEY_PUSH = 0.4;
// How long the light over what moves is shown to those who switch it on.
const GLANCE_MS = 2000;
// Longer pauses between frames, as of a hidden tab, are not made up for.
const LONGEST_STEP_S = 0.1;

async function unpack(base64) {
  const letters = atob(base64);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i); // ten times as fast as Uint8Array.from
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function say(sentence) {
  const message = document.getElementById("message");
  message.textContent = sentence;
  message.hidden = false;
}

// Without WebGL: a sentence, and the image as a small moving one that takes no hand.
function showLoop(sentence) {
  say(sentence);
  const loop = document.getElementById("loop").textContent;
  const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (loop && !isCalm) document.getElementById("picture").src = `data:image/webp;base64,${loop}`;
}

class Page {
  constructor(canvas, simulation, renderer) {
    this.canvas = canvas;
    this.stage = document.getElementById("stage");
    this.simulation = simulation;
    this.renderer = renderer;
    this.paused = false;
    this.speed = 1;
    this.grips = new Map(); // of each pointer that is down
    this.hand = [simulation.width / 2, simulation.height / 2]; // the keyboard's
    this.drawn = false;
    this.lastTime = null;
    this.listen();
    this.drawReach();
    requestAnimationFrame((time) => this.tick(time));
  }

  // Pointer position in pixels of the motion grid.
  position(event) {
    const box = this.canvas.getBoundingClientRect();
    const { width, height } = this.simulation;
    return [
      ((event.clientX - box.left) / box.width) * width - 0.5,
      ((event.clientY - box.top) / box.height) * height - 0.5,
    ];
  }

  listen() {
    const canvas = this.canvas;
    canvas.addEventListener("pointerdown", (event) => this.take(event));
    canvas.addEventListener("pointermove", (event) => this.pull(event));
    canvas.addEventListener("pointerup", (event) => this.letGo(event));
    canvas.addEventListener("pointercancel", (event) => this.letGo(event));
    canvas.addEventListener("pointerenter", () => this.hover(true));
    canvas.addEventListener("pointerleave", () => this.hover(false));
    canvas.addEventListener("keydown", (event) => this.press(event));
    document.getElementById("show-reach").addEventListener("change", () => this.glance());
    this.slider("strength", (value) => (this.simulation.strength = value));
    this.slider("damping", (value) => (this.simulation.damping = value));
    this.slider("wind", (value) => (this.simulation.wind = value));
    this.slider("speed", (value) => (this.speed = value));
    document.getElementById("pause").addEventListener("click", () => this.pause(!this.paused));
    document.getElementById("reset").addEventListener("click", () => this.reset());
    this.listModes();
    this.offerFullScreen();
    this.offerRecording();
  }

  slider(name, apply) {
    const input = document.getElementById(name);
    const output = document.getElementById(`${name}-value`);
    const update = () => {
      apply(input.valueAsNumber);
      output.textContent = input.valueAsNumber.toFixed(2);
    };
    input.addEventListener("input", update);
    update();
  }

  listModes() {
    const list = document.getElementById("modes-on");
    this.simulation.omega.forEach((omega, mode) => {
      const label = document.createElement("label");
      const box = document.createElement("input");
      box.type = "checkbox";
      box.checked = true;
      box.addEventListener("change", () => {
        this.simulation.setActive(mode, box.checked);
        this.drawn = false;
      });
      label.append(box, `${(omega / (2 * Math.PI)).toFixed(1)} Hz`);
      list.append(label);
    });
  }

  offerFullScreen() {
    const button = document.getElementById("full-screen");
    if (!document.fullscreenEnabled) return;
    button.hidden = false;
    button.addEventListener("click", () => {
      this.stage.requestFullscreen().catch(() => say("This browser does not let the page fill the screen."));
    });
  }

  // A video, WebM where the browser can, of what the canvas shows, from one click to the next.
  offerRecording() {
    const button = document.getElementById("record");
    if (typeof MediaRecorder === "undefined" || !this.canvas.captureStream) return;
    const kinds = ["video/webm", "video/mp4"]; // Safari before 18.4 has the second alone
    const mimeType = kinds.find((kind) => MediaRecorder.isTypeSupported(kind));
    if (!mimeType) return;
    button.hidden = false;
    let recorder = null;
    button.addEventListener("click", () => {
      if (recorder !== null) {
        recorder.stop();
        return;
      }
      const pieces = [];
      const stream = this.canvas.captureStream(30);
      recorder = new MediaRecorder(stream, { mimeType, videoBitsPerSecond: 12e6 });
      recorder.addEventListener("dataavailable", (event) => pieces.push(event.data));
      recorder.addEventListener("stop", () => {
        recorder = null;
        stream.getTracks().forEach((track) => track.stop());
        button.textContent = "Record";
        save(new Blob(pieces, { type: mimeType }), `${document.title}.${mimeType.split("/")[1]}`);
      });
      recorder.start();
      // A still canvas gives no frames.
      this.drawn = false;
      button.textContent = "Stop recording";
    });
  }

  // Where the image can be moved, as a light over it: as bright as the square root of how far.
  drawReach() {
    const { width, height, amplitude } = this.simulation;
    const reach = document.getElementById("reach");
    reach.width = width;
    reach.height = height;
    const pixels = new ImageData(width, height);
    const most = amplitude.reduce((largest, value) => Math.max(largest, value), 1e-9);
    amplitude.forEach((value, i) => pixels.data.set([255, 220, 80, 255 * Math.sqrt(value / most)], 4 * i));
    reach.getContext("2d").putImageData(pixels, 0, 0);
    reach.hidden = false;
  }

  hover(inside) {
    const shown = inside && this.grips.size === 0 && document.getElementById("show-reach").checked;
    document.getElementById("frame").classList.toggle("hovered", shown);
  }

  // For those who have no pointer to hover with: the light for a while.
  glance() {
    this.hover(true);
    setTimeout(() => this.hover(false), GLANCE_MS);
  }

  take(event) {
    if (event.button !== 0) return;
    this.canvas.setPointerCapture(event.pointerId);
    const from = this.position(event);
    const point = this.simulation.locate(...from);
    const offset = this.simulation.displacementAt(...point);
    const grip = { from, to: from, point, offset, start: event.timeStamp };
    this.grips.set(event.pointerId, grip);
    this.canvas.classList.add("pulled");
    this.hover(false);
  }

  pull(event) {
    const grip = this.grips.get(event.pointerId);
    // The next frame holds: a mouse may move many times between two frames.
    if (grip) grip.to = this.position(event);
  }

  letGo(event) {
    const grip = this.grips.get(event.pointerId);
    if (!grip) return;
    this.grips.delete(event.pointerId);
    this.simulation.release(event.pointerId);
    const seconds = (event.timeStamp - grip.start) / 1000;
    const [x, y] = this.position(event);
    if (seconds > 0 && seconds * 1000 < FLICK_MS) {
      this.simulation.flick(...grip.point, (x - grip.from[0]) / seconds, (y - grip.from[1]) / seconds);
    }
    if (this.grips.size === 0) this.canvas.classList.remove("pulled");
    this.drawn = false;
  }

  press(event) {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (event.key === "Escape") this.reset();
    if (!way || event.altKey || event.ctrlKey || event.metaKey) return; // those are the browser's
    event.preventDefault();
    const { width, height } = this.simulation;
    if (event.shiftKey) {
      const push = KEY_PUSH * Math.max(width, height);
      this.simulation.flick(...this.hand, way[0] * push, way[1] * push);
      this.drawn = false;
      return;
    }
    this.moveHand(this.hand[0] + way[0] * width * HAND_STEP, this.hand[1] + way[1] * height * HAND_STEP);
  }

  moveHand(x, y) {
    const { width, height } = this.simulation;
    this.hand = [Math.min(Math.max(x, 0), width - 1), Math.min(Math.max(y, 0), height - 1)];
    const hand = document.getElementById("hand");
    hand.style.left = `${(100 * (this.hand[0] + 0.5)) / width}%`;
    hand.style.top = `${(100 * (this.hand[1] + 0.5)) / height}%`;
  }

  pause(paused) {
    this.paused = paused;
    document.getElementById("pause").textContent = paused ? "Go on" : "Pause";
  }

  reset() {
    this.grips.clear();
    this.canvas.classList.remove("pulled");
    this.simulation.reset();
    this.draw();
  }

  draw() {
    this.renderer.draw(this.simulation.q);
    this.drawn = true;
  }

  tick(time) {
    const dt = this.lastTime === null ? 0 : Math.min((time - this.lastTime) / 1000, LONGEST_STEP_S);
    this.lastTime = time;
    const simulation = this.simulation;
    if (!this.paused) {
      for (const [pointer, { point, offset, from, to }] of this.grips) {
        // From where it is, which `hold` multiplies by the strength too; at strength 0 nothing can be drawn.
        const pull = [0, 1].map((axis) => offset[axis] / Math.max(simulation.strength, 1e-3) + to[axis] - from[axis]);
        simulation.hold(...point, ...pull, pointer);
      }
    }
    const moving = simulation.target !== null || simulation.wind > 0 || simulation.bound() > 0;
    if (moving && !this.paused) {
      simulation.step(Math.max(dt, 0) * this.speed);
      const resting = simulation.target === null && simulation.wind === 0 && simulation.bound() < REST_PX;
      if (resting) simulation.reset();
      this.draw();
    } else if (!this.drawn) {
      this.draw();
    }
    requestAnimationFrame((next) => this.tick(next));
  }
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

// For tests and for other scripts on the page; lengths are pixels of the motion grid, flicks px/s.
function makeDynamics(page) {
  const { simulation } = page;
  return {
    size: [simulation.width, simulation.height],
    step(dt) {
      simulation.step(dt);
      page.draw();
    },
    flick: (x, y, dx, dy) => simulation.flick(x, y, dx, dy),
    hold: (x, y, dx, dy, pointer) => simulation.hold(x, y, dx, dy, pointer),
    release: (pointer) => simulation.release(pointer),
    displacementAt: (x, y) => simulation.displacementAt(x, y),
    energy: () => simulation.energy(),
    setDamping: (damping) => (simulation.damping = damping),
    setStrength: (strength) => (simulation.strength = strength),
    setWind: (wind) => (simulation.wind = wind),
    setActive: (mode, active) => simulation.setActive(mode, active),
    pause: (paused = true) => page.pause(paused),
    reset: () => page.reset(),
  };
}

async function start() {
  const canUnpack = typeof DecompressionStream !== "undefined";
  const description = JSON.parse(document.getElementById("description").textContent);
  const picture = document.getElementById("picture");
  const canvas = document.getElementById("canvas");
  const unpacked = canUnpack ? unpack(document.getElementById("modes").textContent) : null; // beside what follows
  await picture.decode();
  canvas.width = picture.naturalWidth;
  canvas.height = picture.naturalHeight;
  document.getElementById("stage").style.setProperty("--aspect", canvas.width / canvas.height);
  const gl = canvas.getContext("webgl2", { alpha: false, antialias: false, depth: false });
  if (gl === null || !canUnpack) {
    showLoop(
      "This picture can be moved by hand in a browser with WebGL 2, which this one does not offer or has switched off. " +
        "Please open the page in a current Firefox, Chrome, Edge or Safari.",
    );
    return;
  }
  const codes = Modal.sums(await unpacked, description);
  const shapes = Modal.dequantise(codes, description.scales, description.constants);
  const simulation = new Modal.Simulation(shapes, description);
  const sources = JSON.parse(document.getElementById("shaders").textContent);
  const makeRenderer = () => new Renderer(gl, picture, codes, description, sources, simulation);
  const page = new Page(canvas, simulation, makeRenderer());
  // A browser may take the graphics card away, from a sleeping phone for one, and give it back later.
  const show = (moving) => {
    picture.hidden = moving;
    canvas.hidden = !moving;
  };
  canvas.addEventListener("webglcontextlost", (event) => {
    event.preventDefault();
    show(false);
    say("The browser has taken the graphics card away; the picture moves again when it gives it back.");
  });
  canvas.addEventListener("webglcontextrestored", () => {
    page.renderer = makeRenderer();
    page.drawn = false;
    show(true);
    document.getElementById("message").hidden = true;
  });
  page.moveHand(...page.hand);
  page.draw();
  show(true);
  document.getElementById("controls").disabled = false;
  if (Math.max(...simulation.peak) === 0) say("Nothing in this picture moves.");
  window.dynamics = makeDynamics(page);
}

start().catch((error) => say(`This page could not be started: ${error.message}`));
