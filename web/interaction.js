// The page itself: unpacks the data, follows the pointer, runs the clock, and offers window.dynamics to scripts.
"use strict";

// A gesture shorter than this had no time to pull the picture along: its speed is given to the picture when it ends.
const FLICK_MS = 200;
// Below this bound of any pixel's swing, px of the motion grid, the picture has come to rest.
const REST_PX = 0.01;
// Longer pauses between frames, as of a hidden tab, are not made up for.
const LONGEST_STEP_S = 0.1;

async function unpack(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function say(sentence) {
  const message = document.getElementById("message");
  message.textContent = sentence;
  message.hidden = false;
}

class Page {
  constructor(canvas, simulation, renderer) {
    this.canvas = canvas;
    this.simulation = simulation;
    this.renderer = renderer;
    this.paused = false;
    this.grip = null;
    this.drawn = false;
    this.lastTime = null;
    this.listen();
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
    this.canvas.addEventListener("pointerdown", (event) => this.take(event));
    this.canvas.addEventListener("pointermove", (event) => this.pull(event));
    this.canvas.addEventListener("pointerup", (event) => this.letGo(event));
    this.canvas.addEventListener("pointercancel", (event) => this.letGo(event));
    this.slider("strength", (value) => (this.simulation.strength = value));
    this.slider("damping", (value) => (this.simulation.damping = value));
    document.getElementById("pause").addEventListener("click", () => this.pause(!this.paused));
    document.getElementById("reset").addEventListener("click", () => this.reset());
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

  take(event) {
    if (this.grip !== null || event.button !== 0) return;
    this.canvas.setPointerCapture(event.pointerId);
    const from = this.position(event);
    this.grip = { id: event.pointerId, from, point: this.simulation.locate(...from), start: event.timeStamp };
    this.pull(event);
  }

  pull(event) {
    if (this.grip === null || this.grip.id !== event.pointerId) return;
    // The next frame holds: a mouse may move many times between two frames.
    this.grip.to = this.position(event);
  }

  letGo(event) {
    if (this.grip === null || this.grip.id !== event.pointerId) return;
    const { point, from, start } = this.grip;
    this.grip = null;
    this.simulation.release();
    const seconds = (event.timeStamp - start) / 1000;
    const [x, y] = this.position(event);
    if (seconds > 0 && seconds * 1000 < FLICK_MS) {
      this.simulation.flick(...point, (x - from[0]) / seconds, (y - from[1]) / seconds);
    }
    this.drawn = false;
  }

  pause(paused) {
    this.paused = paused;
    const button = document.getElementById("pause");
    button.textContent = paused ? "Go on" : "Pause";
    button.setAttribute("aria-pressed", String(paused));
  }

  reset() {
    this.grip = null;
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
    if (this.grip !== null && !this.paused) {
      const { point, to } = this.grip;
      simulation.hold(...point, to[0] - point[0], to[1] - point[1]);
    }
    const moving = simulation.target !== null || simulation.bound() > 0;
    if (moving && !this.paused) {
      simulation.step(Math.max(dt, 0));
      if (simulation.target === null && simulation.bound() < REST_PX) simulation.reset();
      this.draw();
    } else if (!this.drawn) {
      this.draw();
    }
    requestAnimationFrame((next) => this.tick(next));
  }
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
    hold: (x, y, dx, dy) => simulation.hold(x, y, dx, dy),
    release: () => simulation.release(),
    displacementAt: (x, y) => simulation.displacementAt(x, y),
    energy: () => simulation.energy(),
    setDamping: (damping) => (simulation.damping = damping),
    setStrength: (strength) => (simulation.strength = strength),
    pause: (paused = true) => page.pause(paused),
    reset: () => page.reset(),
  };
}

async function start() {
  const description = JSON.parse(document.getElementById("description").textContent);
  const picture = document.getElementById("picture");
  const canvas = document.getElementById("canvas");
  await picture.decode();
  canvas.width = picture.naturalWidth;
  canvas.height = picture.naturalHeight;
  const gl = canvas.getContext("webgl2", { alpha: false, antialias: false, depth: false });
  if (gl === null || typeof DecompressionStream === "undefined") {
    say(
      "This picture can be moved in a browser with WebGL 2, which this one does not offer or has switched off. " +
        "Please open the page in a current Firefox, Chrome, Edge or Safari.",
    );
    return;
  }
  const codes = await unpack(document.getElementById("modes").textContent);
  const shapes = Modal.dequantise(codes, description.scales, description.constants);
  const simulation = new Modal.Simulation(shapes, description);
  const sources = JSON.parse(document.getElementById("shaders").textContent);
  const makeRenderer = () => new Renderer(gl, picture, codes, description, sources, simulation.amplitude);
  const page = new Page(canvas, simulation, makeRenderer());
  // A browser may take the graphics card away, from a sleeping phone for one, and give it back later.
  canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
  canvas.addEventListener("webglcontextrestored", () => {
    page.renderer = makeRenderer();
    page.drawn = false;
  });
  page.draw();
  picture.hidden = true;
  canvas.hidden = false;
  document.getElementById("controls").disabled = false;
  if (Math.max(...simulation.peak) === 0) say("Nothing in this picture moves.");
  window.dynamics = makeDynamics(page);
}

start().catch((error) => say(`This page could not be started: ${error.message}`));
