// Draws the displaced picture: first all of it as it is, then a mesh of the motion grid over it. The mesh's cells are
// drawn in order of how much they move, so that what moves more, and is nearer as a rule, covers what moves less; cells
// that never move are left out.
"use strict";

class Renderer {
  // gl: a WebGL2 context; picture: a loaded image; codes: bytes (M, 4, H, W); sources: GLSL by file name;
  // amplitude: how much each pixel of the motion grid moves.
  constructor(gl, picture, codes, description, sources, amplitude) {
    this.gl = gl;
    this.description = description;
    this.displace = this.makeProgram(sources, "displace", "placed");
    this.mesh = this.makeProgram(sources, "draw");
    this.uniforms = {};
    for (const name of ["shapes", "coordinates", "gridSize"]) {
      this.uniforms[name] = gl.getUniformLocation(this.displace, name);
    }
    this.uploadPicture(picture);
    this.uploadShapes(codes);
    this.makeMesh(amplitude);
    this.coordinates = new Float32Array(2 * description.scales.length);
  }

  // caught: an output of the vertex shader to be kept by transform feedback.
  makeProgram(sources, name, caught) {
    const { zeroCode, codeSteps } = this.description.constants;
    const defines =
      `#define NUM_MODES ${this.description.scales.length}\n` +
      `#define ZERO_CODE ${zeroCode.toFixed(1)}\n#define CODE_STEPS ${codeSteps.toFixed(1)}\n`;
    const gl = this.gl;
    const program = gl.createProgram();
    for (const [kind, half] of [[gl.VERTEX_SHADER, "vertex"], [gl.FRAGMENT_SHADER, "fragment"]]) {
      const shader = gl.createShader(kind);
      // #version has to stay the first line.
      gl.shaderSource(shader, sources[`${name}_${half}`].trim().replace("\n", "\n" + defines));
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    if (caught) gl.transformFeedbackVaryings(program, [caught], gl.INTERLEAVED_ATTRIBS);
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost()) {
      const logs = gl.getAttachedShaders(program).map((shader) => gl.getShaderInfoLog(shader));
      throw new Error(`the shaders cannot be used: ${logs.join(" ")} ${gl.getProgramInfoLog(program)}`);
    }
    return program;
  }

  uploadPicture(picture) {
    const gl = this.gl;
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGB8, gl.RGB, gl.UNSIGNED_BYTE, picture);
    for (const side of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, side, gl.CLAMP_TO_EDGE);
    for (const filter of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) {
      gl.texParameteri(gl.TEXTURE_2D, filter, gl.LINEAR);
    }
  }

  uploadShapes(codes) {
    const gl = this.gl;
    const { width, height, scales } = this.description;
    const area = width * height;
    const texels = new Uint8Array(codes.length); // (M, H, W, 4)
    for (let mode = 0; mode < scales.length; mode++) {
      for (let part = 0; part < 4; part++) {
        const from = (4 * mode + part) * area;
        const to = 4 * mode * area + part;
        for (let i = 0; i < area; i++) texels[to + 4 * i] = codes[from + i];
      }
    }
    gl.activeTexture(gl.TEXTURE1);
    gl.bindTexture(gl.TEXTURE_2D_ARRAY, gl.createTexture());
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    gl.texImage3D(
      gl.TEXTURE_2D_ARRAY, 0, gl.RGBA8, width, height, scales.length, 0, gl.RGBA, gl.UNSIGNED_BYTE, texels,
    );
    // Companded bytes must not be mixed before they are expanded.
    for (const filter of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) {
      gl.texParameteri(gl.TEXTURE_2D_ARRAY, filter, gl.NEAREST);
    }
  }

  // The nodes' places as the first pass writes them, and two triangles between four neighbours, least moving first.
  makeMesh(amplitude) {
    const gl = this.gl;
    const { width, height } = this.description;
    this.numNodes = (width + 2) * (height + 2) + 4;
    this.places = gl.createBuffer();
    gl.bindBuffer(gl.ARRAY_BUFFER, this.places);
    gl.bufferData(gl.ARRAY_BUFFER, 16 * this.numNodes, gl.DYNAMIC_COPY);
    this.feedback = gl.createTransformFeedback();

    this.emptyLayout = gl.createVertexArray();
    this.layout = gl.createVertexArray();
    gl.bindVertexArray(this.layout);
    const attribute = gl.getAttribLocation(this.mesh, "placed");
    gl.enableVertexAttribArray(attribute);
    gl.vertexAttribPointer(attribute, 4, gl.FLOAT, false, 0, 0);
    const indices = this.orderedTriangles(amplitude);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, indices, gl.STATIC_DRAW);
    this.numIndices = indices.length;
    // WebGL refuses to write into a buffer that is bound for reading.
    gl.bindBuffer(gl.ARRAY_BUFFER, null);
  }

  orderedTriangles(amplitude) {
    const { width, height } = this.description;
    const columns = width + 2;
    const numCells = (width + 1) * (height + 1);
    const at = (x, y) => amplitude[
      Math.min(Math.max(y, 0), height - 1) * width + Math.min(Math.max(x, 0), width - 1)
    ];
    const movement = new Float32Array(numCells);
    for (let cell = 0; cell < numCells; cell++) {
      const x = cell % (width + 1), y = Math.floor(cell / (width + 1));
      movement[cell] = at(x - 1, y - 1) + at(x, y - 1) + at(x - 1, y) + at(x, y);
    }
    const order = Uint32Array.from(movement.keys()).filter((cell) => movement[cell] > 0);
    order.sort((a, b) => movement[a] - movement[b]);
    const square = (corner, below) => [corner, corner + 1, below, corner + 1, below + 1, below];
    const indices = new Uint32Array(6 * (order.length + 1));
    indices.set(square(this.numNodes - 4, this.numNodes - 2));
    order.forEach((cell, i) => {
      const corner = Math.floor(cell / (width + 1)) * columns + (cell % (width + 1));
      indices.set(square(corner, corner + columns), 6 * (i + 1));
    });
    return indices;
  }

  // q: (real, imaginary) pairs of the simulation.
  draw(q) {
    const gl = this.gl;
    const { width, height, scales } = this.description;
    scales.forEach((scale, k) => {
      this.coordinates[2 * k] = q[2 * k] * scale;
      this.coordinates[2 * k + 1] = q[2 * k + 1] * scale;
    });

    gl.useProgram(this.displace);
    gl.uniform1i(this.uniforms.shapes, 1);
    gl.uniform2i(this.uniforms.gridSize, width, height);
    gl.uniform2fv(this.uniforms.coordinates, this.coordinates);
    gl.bindVertexArray(this.emptyLayout);
    gl.bindTransformFeedback(gl.TRANSFORM_FEEDBACK, this.feedback);
    gl.bindBufferBase(gl.TRANSFORM_FEEDBACK_BUFFER, 0, this.places);
    gl.enable(gl.RASTERIZER_DISCARD);
    gl.beginTransformFeedback(gl.POINTS);
    gl.drawArrays(gl.POINTS, 0, this.numNodes);
    gl.endTransformFeedback();
    gl.disable(gl.RASTERIZER_DISCARD);
    gl.bindBufferBase(gl.TRANSFORM_FEEDBACK_BUFFER, 0, null);
    gl.bindTransformFeedback(gl.TRANSFORM_FEEDBACK, null);

    // The picture is texture unit 0, which a sampler reads unless told otherwise.
    gl.useProgram(this.mesh);
    gl.bindVertexArray(this.layout);
    gl.viewport(0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight);
    gl.drawElements(gl.TRIANGLES, this.numIndices, gl.UNSIGNED_INT, 0);
  }
}
