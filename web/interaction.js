// The page itself: unpacks the data, follows the pointer, runs the clock, and offers window.dynamics to scripts.
"use strict";

// A gesture shorter than this had no time to pull the image along: its speed is given to the image when it ends.
const FLICK_MS = 200;
// Below this bound of any pixel's swing, px of the motion grid, the image is static again.
const STATIC_PX = 0.01;
// The keyboard's hand: a step as a fraction of the image's sides, a push as long sides a second.
const HAND_STEP = 1 / 40;
const KEY_PUSH = 0.4;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
// How long the light over what moves is shown to those who switch it on.
const GLANCE_MS = 2000;
// Longer pauses between frames, as of a hidden tab, are not made up for.
const LONGEST_STEP_S = 0.1;

const element = (id) => document.getElementById(id);

function showMessage(sentence) {
  element("message").textContent = sentence;
  element("message").hidden = false;
}

async function unpack(base64) {
  const letters = atob(base64);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i); // ten times as fast as Uint8Array.from
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

class Page {
  constructor(canvas, simulation, renderer) {
    Object.assign(this, { canvas, simulation, renderer });
    this.paused = false;
    this.speed = 1;
    this.grips = new Map(); // of each pointer that is down
    this.drawn = false;
    this.lastTime = null;
    this.moveHand(simulation.width / 2, simulation.height / 2); // the keyboard's
    this.listen();
    this.listModes();
    this.offerFullScreen();
    this.offerRecording();
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
    const on = (target, name, action) => target.addEventListener(name, action);
    on(this.canvas, "pointerdown", (event) => this.take(event));
    on(this.canvas, "pointermove", (event) => this.pull(event));
    on(this.canvas, "pointerup", (event) => this.letGo(event));
    on(this.canvas, "pointercancel", (event) => this.letGo(event));
    on(this.canvas, "pointerenter", () => this.hover(true));
    on(this.canvas, "pointerleave", () => this.hover(false));
    on(this.canvas, "keydown", (event) => this.press(event));
    on(element("pause"), "click", () => this.pause(!this.paused));
    on(element("reset"), "click", () => this.reset());
    // For those who have no pointer to hover with: the light for a while.
    on(element("show-reach"), "change", () => {
      this.hover(true);
      setTimeout(() => this.hover(false), GLANCE_MS);
    });
    for (const name of ["strength", "damping", "wind", "speed"]) {
      const input = element(name);
      const update = () => {
        (name === "speed" ? this : this.simulation)[name] = input.valueAsNumber;
        element(`${name}-value`).textContent = input.valueAsNumber.toFixed(2);
      };
      on(input, "input", update);
      update();
    }
  }

  listModes() {
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
      element("modes-on").append(label);
    });
  }

  offerFullScreen() {
    if (!document.fullscreenEnabled) return;
    element("full-screen").hidden = false;
    element("full-screen").addEventListener("click", () => {
      const refused = () => showMessage("This browser does not let the page fill the screen.");
      element("stage").requestFullscreen().catch(refused);
    });
  }

  // A video, WebM where the browser can, of what the canvas shows, from one click to the next.
  offerRecording() {
    const button = element("record");
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
        const link = document.createElement("a");
        link.href = URL.createObjectURL(new Blob(pieces, { type: mimeType }));
        link.download = `${document.title}.${mimeType.split("/")[1]}`;
        link.click();
        setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
      });
      recorder.start();
      // A static canvas gives no frames.
      this.drawn = false;
      button.textContent = "Stop recording";
    });
  }

  // Where the image can be moved, as a light over it: as bright as the square root of how far.
  drawReach() {
    const { width, height, amplitude } = this.simulation;
    const reach = element("reach");
    reach.width = width;
    reach.height = height;
    const pixels = new ImageData(width, height);
    const most = amplitude.reduce((largest, value) => Math.max(largest, value), 1e-9);
    amplitude.forEach((value, i) => pixels.data.set([255, 220, 80, 255 * Math.sqrt(value / most)], 4 * i));
    reach.getContext("2d").putImageData(pixels, 0, 0);
    reach.hidden = false;
  }

  hover(inside) {
    const shown = inside && this.grips.size === 0 && element("show-reach").checked;
    element("frame").classList.toggle("hovered", shown);
  }

  take(event) {
    if (event.button !== 0) return;
    this.canvas.setPointerCapture(event.pointerId);
    const from = this.position(event);
    const point = this.simulation.locate(...from);
    const offset = this.simulation.displacementAt(...point);
    this.grips.set(event.pointerId, { from, to: from, point, offset, start: event.timeStamp });
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
    // What the browser takes over was no gesture of this page, and tells no place where it ended.
    if (event.type !== "pointercancel" && seconds > 0 && seconds * 1000 < FLICK_MS) {
      this.simulation.flick(...grip.point, (x - grip.from[0]) / seconds, (y - grip.from[1]) / seconds);
    }
    if (this.grips.size === 0) this.canvas.classList.remove("pulled");
    this.drawn = false;
  }

  press(event) {
    if (event.key === "Escape") this.reset();
    const way = ARROWS[event.key];
    if (!way || event.altKey || event.ctrlKey || event.metaKey) return; // those are the browser's
    event.preventDefault();
    const { width, height } = this.simulation;
    if (event.shiftKey) {
      this.simulation.flick(...this.hand, ...way.map((side) => side * KEY_PUSH * Math.max(width, height)));
      this.drawn = false;
    } else {
      this.moveHand(this.hand[0] + way[0] * width * HAND_STEP, this.hand[1] + way[1] * height * HAND_STEP);
    }
  }

  moveHand(x, y) {
    const { width, height } = this.simulation;
    this.hand = [Math.min(Math.max(x, 0), width - 1), Math.min(Math.max(y, 0), height - 1)];
    element("hand").style.left = `${(100 * (this.hand[0] + 0.5)) / width}%`;
    element("hand").style.top = `${(100 * (this.hand[1] + 0.5)) / height}%`;
  }

  pause(paused = true) {
    this.paused = paused;
    element("pause").textContent = paused ? "Go on" : "Pause";
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
    for (const [pointer, { point, offset, from, to }] of this.paused ? [] : this.grips) {
      // From where it is, which `hold` multiplies by the strength too; at strength 0 nothing can be drawn.
      const pull = [0, 1].map((axis) => offset[axis] / Math.max(simulation.strength, 1e-3) + to[axis] - from[axis]);
      simulation.hold(...point, ...pull, pointer);
    }
    const isDriven = () => simulation.target !== null || simulation.wind > 0;
    if (!this.paused && (isDriven() || simulation.bound() > 0)) {
      simulation.step(Math.max(dt, 0) * this.speed);
      if (!isDriven() && simulation.bound() < STATIC_PX) simulation.reset();
      this.draw();
    } else if (!this.drawn) {
      this.draw();
    }
    requestAnimationFrame((next) => this.tick(next));
  }

  // For tests and for other scripts on the page; lengths are pixels of the motion grid, flicks px/s.
  makeDynamics() {
    const simulation = this.simulation;
    const dynamics = { size: [simulation.width, simulation.height] };
    dynamics.step = (dt) => {
      simulation.step(dt);
      this.draw();
    };
    for (const name of ["pause", "reset"]) dynamics[name] = (...values) => this[name](...values);
    for (const name of ["flick", "hold", "release", "displacementAt", "energy", "setActive"]) {
      dynamics[name] = (...values) => simulation[name](...values);
    }
    for (const name of ["Damping", "Strength", "Wind"]) {
      dynamics[`set${name}`] = (value) => (simulation[name.toLowerCase()] = value);
    }
    return dynamics;
  }
}

async function start() {
  const canUnpack = typeof DecompressionStream !== "undefined";
  const description = JSON.parse(element("description").textContent);
  const image = element("image");
  const canvas = element("canvas");
  const unpacked = canUnpack ? unpack(element("modes").textContent) : null; // beside what follows
  await image.decode();
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  element("stage").style.setProperty("--aspect", canvas.width / canvas.height);
  const gl = canvas.getContext("webgl2", { alpha: false, antialias: false, depth: false });
  if (gl === null || !canUnpack) {
    // A sentence, and the image as a small moving one that cannot be dragged.
    showMessage(
      "This image can be moved by hand in a browser with WebGL 2, which this one does not offer or has switched off. " +
        "Please open the page in a current Firefox, Chrome, Edge or Safari.",
    );
    const loop = element("loop").textContent;
    const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)").matches;
    if (loop && !reducedMotion) image.src = `data:image/webp;base64,${loop}`;
    return;
  }
  const codes = Modal.sums(await unpacked, description);
  const shapes = Modal.dequantise(codes, description.scales, description.constants);
  const simulation = new Modal.Simulation(shapes, description);
  const sources = JSON.parse(element("shaders").textContent);
  const makeRenderer = () => new Renderer(gl, image, codes, description, sources, simulation);
  const page = new Page(canvas, simulation, makeRenderer());
  // A browser may take the graphics card away, from a sleeping phone for one, and give it back later.
  const show = (moving) => {
    image.hidden = moving;
    canvas.hidden = !moving;
  };
  canvas.addEventListener("webglcontextlost", (event) => {
    event.preventDefault();
    show(false);
    showMessage("The browser has taken the graphics card away; the image moves again when it gives it back.");
  });
  canvas.addEventListener("webglcontextrestored", () => {
    page.renderer = makeRenderer();
    page.drawn = false;
    show(true);
    element("message").hidden = true;
  });
  page.draw();
  show(true);
  element("controls").disabled = false;
  if (Math.max(...simulation.peak) === 0) showMessage("Nothing in this image moves.");
  window.dynamics = page.makeDynamics();
}

start().catch((error) => showMessage(`This page could not be started: ${error.message}`));
