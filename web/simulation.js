// The modal simulation of motion/modal.py, on the quantised modes that the page carries. All lengths are pixels of the
// motion grid, pixel centres at integers. No DOM in here: tests run this file in node beside the Python original.
"use strict";

const Modal = (() => {
  // Undo animation.interactive_page.differences: bytes (M, 4, H, W) of neighbours' differences -> the bytes, in place.
  function sums(codes, { width, height }) {
    for (let i = 0; i < codes.length; i++) if (i % (width * height) >= width) codes[i] += codes[i - width];
    for (let i = 0; i < codes.length; i++) if (i % width > 0) codes[i] += codes[i - 1];
    return codes;
  }

  // Undo motion.modal.quantise: bytes (M, 4, H, W) -> Float32Array of the same layout, px.
  function dequantise(codes, scales, constants) {
    const length = codes.length / scales.length;
    const shapes = new Float32Array(codes.length);
    const expanded = Float32Array.from({ length: 256 }, (_, code) => {
      const v = (code - constants.zeroCode) / constants.codeSteps;
      return v * Math.abs(v);
    });
    for (let i = 0; i < codes.length; i++) shapes[i] = expanded[codes[i]] * scales[Math.floor(i / length)];
    return shapes;
  }

  // The pixels along one axis that a point reads, and their weights, which sum to 1.
  function axisWeights(position, length, extentPx) {
    position = Math.min(Math.max(position, 0), length - 1);
    if (extentPx > 0) {
      const first = Math.max(0, Math.ceil(position - 3 * extentPx));
      const end = Math.min(length, Math.floor(position + 3 * extentPx) + 1);
      const weights = [];
      for (let i = first; i < end; i++) weights.push(Math.exp(-0.5 * ((i - position) / extentPx) ** 2));
      const total = weights.reduce((sum, weight) => sum + weight, 0);
      // A Gaussian narrower than a pixel may have none within three deviations.
      if (total > 0) return { first, weights: weights.map((weight) => weight / total) };
    }
    const first = Math.max(0, Math.min(Math.floor(position), length - 2));
    const fraction = position - first;
    return { first, weights: length > 1 ? [1 - fraction, fraction] : [1] };
  }

  // Advance z'' + 2 xi w z' + w^2 z = 0 by dt exactly; returns the 2 x 2 matrix [zz, zv, vz, vv].
  function propagator(omega, damping, dt) {
    const decay = damping * omega;
    let cosine, sine;
    if (damping < 1) {
      const ringing = omega * Math.sqrt(1 - damping * damping);
      const envelope = Math.exp(-decay * dt);
      cosine = envelope * Math.cos(ringing * dt);
      sine = (envelope * Math.sin(ringing * dt)) / ringing;
    } else if (damping === 1) {
      cosine = Math.exp(-decay * dt);
      sine = cosine * dt;
    } else {
      // Both exponents are negative, so nothing overflows as cosh alone would.
      const spread = omega * Math.sqrt(damping * damping - 1);
      const slow = Math.exp((spread - decay) * dt);
      const fast = Math.exp((-spread - decay) * dt);
      cosine = (slow + fast) / 2;
      sine = (slow - fast) / (2 * spread);
    }
    return [cosine + decay * sine, sine, -omega * omega * sine, cosine - decay * sine];
  }

  // A number of mean 0 and variance 1 that depends on its arguments alone; motion.modal.gust, in 32-bit integers.
  function gust(number, part) {
    let mixed = (Math.imul(number, 0x9e3779b1) + Math.imul(part, 0x85ebca77) + 0x27d4eb2f) >>> 0;
    mixed = Math.imul(mixed ^ (mixed >>> 16), 0x7feb352d) >>> 0;
    mixed = Math.imul(mixed ^ (mixed >>> 15), 0x846ca68b) >>> 0;
    mixed = (mixed ^ (mixed >>> 16)) >>> 0;
    return ((mixed + 0.5) / 2 ** 31 - 1) * Math.sqrt(3);
  }

  // Solve A x = b for a small symmetric positive definite A (rows of numbers), by elimination; A and b are used up.
  function solveSystem(rows, right) {
    const count = right.length;
    for (let pivot = 0; pivot < count; pivot++) {
      for (let i = pivot + 1; i < count; i++) {
        const factor = rows[i][pivot] / rows[pivot][pivot];
        for (let j = pivot; j < count; j++) rows[i][j] -= factor * rows[pivot][j];
        right[i] -= factor * right[pivot];
      }
    }
    for (let i = count - 1; i >= 0; i--) {
      for (let j = i + 1; j < count; j++) right[i] -= rows[i][j] * right[j];
      right[i] /= rows[i][i];
    }
    return right;
  }

  const largest = (values, least = 0) => values.reduce((most, value) => Math.max(most, value), least);
  // |q_k|^2 of (real, imaginary) pairs.
  const square = (pairs, k) => pairs[2 * k] ** 2 + pairs[2 * k + 1] ** 2;

  class Simulation {
    // description: { height, width, frequenciesHz, constants }; shapes as dequantise returns them.
    constructor(shapes, { height, width, frequenciesHz, constants }) {
      Object.assign(this, { shapes, height, width, constants });
      this.area = height * width;
      this.omega = frequenciesHz.map((hz) => 2 * Math.PI * hz);
      this.numModes = this.omega.length;
      this.damping = constants.damping;
      this.strength = 1;
      this.wind = 0;
      this.active = new Array(this.numModes).fill(true);
      this.measureShapes();
      this.reset();
    }

    // Squared amplitudes (M, H, W); modal masses; per pixel the amplitude over all modes; the softest pixel's responses.
    measureShapes() {
      const { shapes, area } = this;
      this.squared = new Float32Array(this.numModes * area);
      for (let plane = 0; plane < 4 * this.numModes; plane++) {
        const from = plane * area, to = (plane >> 2) * area;
        for (let i = 0; i < area; i++) this.squared[to + i] += shapes[from + i] ** 2;
      }
      const ofMode = this.omega.map((_, k) => this.squared.subarray(k * area, (k + 1) * area));
      this.mass = ofMode.map((values) => values.reduce((sum, value) => sum + value, 0) / area);
      this.peak = ofMode.map((values) => Math.sqrt(largest(values)));
      this.amplitude = this.sumSquared(this.omega.map(() => 1)).map(Math.sqrt);
      // 1 / m_k, and 0 for a mode without any motion, which cannot be set going.
      this.mobility = this.mass.map((mass) => (mass > 0 ? 1 / mass : 0));
      this.compliance = this.mobility.map((mobility, k) => mobility / this.omega[k] ** 2);
      this.largestCompliance = largest(this.sumSquared(this.compliance));
      this.largestMobility = largest(this.sumSquared(this.mobility));
    }

    // sum_k weight_k |S_k|^2 of every pixel.
    sumSquared(weights) {
      const { squared, area } = this;
      const total = new Float64Array(area);
      weights.forEach((weight, k) => {
        for (let i = 0; i < area; i++) total[i] += weight * squared[k * area + i];
      });
      return total;
    }

    // Back to the static image. q and velocity hold (real, imaginary) pairs.
    reset() {
      this.q = new Float64Array(2 * this.numModes);
      this.velocity = new Float64Array(2 * this.numModes);
      this.held = new Map();
      this.target = null;
      this.gusts = 0;
    }

    // A mode that is switched off does not move.
    setActive(mode, active) {
      this.active[mode] = active;
      for (const part of [2 * mode, 2 * mode + 1]) this.q[part] = this.velocity[part] = 0;
      this.pull();
    }

    // S_k at a point: [re_x, im_x, re_y, im_y] of every mode, a Gaussian mean of extentPx, or bilinear when that is 0.
    sample(x, y, extentPx) {
      const columns = axisWeights(x, this.width, extentPx);
      const rows = axisWeights(y, this.height, extentPx);
      return Float64Array.from({ length: 4 * this.numModes }, (_, plane) => {
        let sum = 0;
        rows.weights.forEach((rowWeight, j) => {
          const start = plane * this.area + (rows.first + j) * this.width + columns.first;
          let line = 0;
          for (let i = 0; i < columns.weights.length; i++) line += columns.weights[i] * this.shapes[start + i];
          sum += rowWeight * line;
        });
        return sum;
      });
    }

    // c_k = weight_k conj(sum of S_k(p) . f), with the forces f that bring the points to where they are pulled, as far
    // as they can move. pulls: [x, y, dx, dy] of each point.
    solve(pulls, modeWeights, largestWeight) {
      const weights = modeWeights.map((weight, k) => (this.active[k] ? weight : 0));
      const shapes = pulls.map(([x, y]) => this.sample(x, y, this.constants.extentPx));
      const count = 2 * pulls.length;
      // Real and imaginary part of component i (x and y of the first point, of the second, ...) of mode k.
      const part = (i, k) => [shapes[i >> 1][4 * k + 2 * (i & 1)], shapes[i >> 1][4 * k + 2 * (i & 1) + 1]];
      const response = Array.from({ length: count }, () => new Float64Array(count));
      let trace = 0;
      for (let i = 0; i < count; i++) {
        for (let j = 0; j < count; j++) {
          for (let k = 0; k < this.numModes; k++) {
            const [ri, ii] = part(i, k), [rj, ij] = part(j, k);
            response[i][j] += weights[k] * (ri * rj + ii * ij);
          }
        }
        trace += response[i][i];
      }
      const [ofOwn, ofLargest] = this.constants.stiffFractions;
      const stiff = Math.max((ofOwn * trace) / pulls.length, ofLargest * largestWeight);
      const change = new Float64Array(2 * this.numModes);
      if (stiff === 0) return change;
      // (A A + 1) f = A d / stiff, with A in units of stiff.
      for (const row of response) for (let j = 0; j < count; j++) row[j] /= stiff;
      const wanted = pulls.flatMap(([, , dx, dy]) => [this.strength * dx, this.strength * dy]);
      const dot = (one, other) => one.reduce((sum, value, i) => sum + value * other[i], 0);
      const rows = response.map((row, i) => response.map((other, j) => dot(row, other) + (i === j ? 1 : 0)));
      const force = solveSystem(rows, response.map((row) => dot(row, wanted))).map((value) => value / stiff);
      for (let k = 0; k < this.numModes; k++) {
        for (let i = 0; i < count; i++) {
          const [real, imaginary] = part(i, k);
          change[2 * k] += weights[k] * real * force[i];
          change[2 * k + 1] -= weights[k] * imaginary * force[i];
        }
      }
      return change;
    }

    // Add the velocity (dx, dy), px/s, to a point, as far as no pixel swings beyond the limit, or where it is.
    flick(x, y, dx, dy) {
      const change = this.solve([[x, y, dx, dy]], this.mobility, this.largestMobility);
      // Where does the square of a pixel's swing, a + b s + c s^2 in the fraction s of the change, reach the limit's?
      const v = this.velocity;
      const cross = (k) => 2 * (v[2 * k] * change[2 * k] + v[2 * k + 1] * change[2 * k + 1]);
      const a = this.sumSquared(this.swings());
      const b = this.sumSquared(this.omega.map((omega, k) => cross(k) / omega ** 2));
      const c = this.sumSquared(this.omega.map((omega, k) => square(change, k) / omega ** 2));
      const limit = largest(a, (this.constants.limitPx * this.strength) ** 2);
      let fraction = 1;
      for (let i = 0; i < a.length; i++) {
        if (c[i] === 0) continue;
        const room = Math.max(limit - a[i], 0);
        fraction = Math.min(fraction, (Math.sqrt(b[i] * b[i] + 4 * c[i] * room) - b[i]) / (2 * c[i]));
      }
      this.velocity = v.map((value, i) => value + fraction * change[i]);
    }

    // Pull a point towards the displacement (dx, dy), px, until release; no pixel of the pose goes beyond the limit. Each
    // pointer, whatever it is named, holds one point.
    hold(x, y, dx, dy, pointer = 0) {
      this.held.set(pointer, [x, y, dx, dy]);
      this.pull();
    }

    release(pointer = 0) {
      this.held.delete(pointer);
      this.pull();
    }

    // The pose that the pointers draw the image to.
    pull() {
      this.target = null;
      if (this.held.size === 0) return;
      const target = this.solve([...this.held.values()], this.compliance, this.largestCompliance);
      const furthest = this.furthest(target);
      const limit = this.constants.limitPx * this.strength;
      this.target = furthest > limit ? target.map((value) => (value * limit) / furthest) : target;
    }

    // max_x |F(x)| of a pose q, px.
    furthest(q) {
      const { shapes, area } = this;
      const field = [new Float64Array(area), new Float64Array(area)];
      for (let k = 0; k < this.numModes; k++) {
        for (let axis = 0; axis < 2; axis++) {
          const real = (4 * k + 2 * axis) * area, imaginary = real + area;
          for (let i = 0; i < area; i++) {
            field[axis][i] += shapes[real + i] * q[2 * k] - shapes[imaginary + i] * q[2 * k + 1];
          }
        }
      }
      return Math.sqrt(largest(field[0].map((dx, i) => dx ** 2 + field[1][i] ** 2)));
    }

    step(dt) {
      if (!(dt >= 0 && Number.isFinite(dt))) throw new RangeError(`dt: expected seconds of at least 0, got ${dt}`);
      const held = this.target !== null;
      for (let k = 0; k < this.numModes; k++) {
        const omega = held ? Math.max(this.omega[k], 2 * Math.PI * this.constants.holdHz) : this.omega[k];
        const [zz, zv, vz, vv] = propagator(omega, held ? 1 : this.damping, dt);
        for (let i = 2 * k; i < 2 * k + 2; i++) {
          const rest = held ? this.target[i] : 0;
          const z = this.q[i] - rest;
          const velocity = this.velocity[i];
          this.q[i] = rest + zz * z + zv * velocity;
          this.velocity[i] = vz * z + vv * velocity;
        }
      }
      if (!held && this.wind > 0) this.blow(dt);
    }

    // The noise of a wind that keeps E |q_k|^2 = wind^2, exactly for any dt: see Simulation._blow in motion/modal.py.
    blow(dt) {
      const varQ = this.wind ** 2 / 2;
      for (let k = 0; k < this.numModes; k++) {
        if (!this.active[k]) continue;
        const varV = varQ * this.omega[k] ** 2;
        const [qq, qv, vq, vv] = propagator(this.omega[k], this.damping, dt);
        const addedVar = varQ - qq * qq * varQ - qv * qv * varV;
        // In a very short step it is only rounding.
        const ofQ = addedVar > this.constants.leastVariance * varQ ? Math.sqrt(addedVar) : 0;
        const shared = ofQ > 0 ? -(qq * vq * varQ + qv * vv * varV) / ofQ : 0;
        const ofV = Math.sqrt(Math.max(varV - vq * vq * varQ - vv * vv * varV - shared * shared, 0));
        for (let part = 0; part < 2; part++) {
          const first = gust(this.gusts, 4 * k + part), second = gust(this.gusts, 4 * k + 2 + part);
          this.q[2 * k + part] += ofQ * first;
          this.velocity[2 * k + part] += shared * first + ofV * second;
        }
      }
      this.gusts++;
    }

    // |q_k|^2 + |q_k'|^2 / w_k^2 of every mode.
    swings() {
      return this.omega.map((omega, k) => square(this.q, k) + square(this.velocity, k) / omega ** 2);
    }

    energy() {
      return this.swings().reduce((sum, swing, k) => sum + (this.mass[k] * this.omega[k] ** 2 * swing) / 2, 0);
    }

    // No pixel ever swings further than this, px.
    bound() {
      return this.swings().reduce((sum, swing, k) => sum + this.peak[k] * Math.sqrt(swing), 0);
    }

    // F at a point, px.
    displacementAt(x, y) {
      const shape = this.sample(x, y, 0);
      let dx = 0, dy = 0;
      for (let k = 0; k < this.numModes; k++) {
        dx += shape[4 * k] * this.q[2 * k] - shape[4 * k + 1] * this.q[2 * k + 1];
        dy += shape[4 * k + 2] * this.q[2 * k] - shape[4 * k + 3] * this.q[2 * k + 1];
      }
      return [dx, dy];
    }

    // The pixel of the static image that is seen at (x, y) now: p + F(p) = (x, y).
    locate(x, y) {
      let at = [x, y];
      for (let i = 0; i < 8; i++) {
        const [dx, dy] = this.displacementAt(...at);
        at = [x - dx, y - dy];
      }
      return at;
    }
  }

  return { Simulation, dequantise, sums };
})();
