// Draws the displaced image: first all of it as it is, then the mesh of mesh.js over it, in its order.
"use strict";

class Renderer {
  // gl: a WebGL2 context; image: a loaded <img>; codes: bytes (M, 4, H, W); sources: GLSL by file name;
  // shapes, amplitude: as the simulation has them.
  constructor(gl, image, codes, description, sources, { shapes, amplitude }) {
    this.gl = gl;
    this.description = description;
    this.displace = this.makeProgram(sources, "displace", "placed");
    this.mesh = this.makeProgram(sources, "draw");
    this.uniforms = {};
    for (const name of ["shapes", "coordinates", "gridSize"]) {
      this.uniforms[name] = gl.getUniformLocation(this.displace, name);
    }
    this.bindTexture(0, gl.TEXTURE_2D, gl.LINEAR);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGB8, gl.RGB, gl.UNSIGNED_BYTE, image);
    this.uploadShapes(codes);
    this.makeMesh(shapes, amplitude);
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

  bindTexture(unit, target, filter) {
    const gl = this.gl;
    gl.activeTexture(gl.TEXTURE0 + unit);
    gl.bindTexture(target, gl.createTexture());
    for (const side of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(target, side, gl.CLAMP_TO_EDGE);
    for (const size of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(target, size, filter);
  }

  uploadShapes(codes) {
    const gl = this.gl;
    const { width, height, scales } = this.description;
    const area = width * height;
    const texels = new Uint8Array(codes.length); // (M, H, W, 4)
    for (let plane = 0; plane < 4 * scales.length; plane++) {
      const to = 4 * (plane >> 2) * area + (plane & 3);
      for (let i = 0; i < area; i++) texels[to + 4 * i] = codes[plane * area + i];
    }
    // Companded bytes must not be mixed before they are expanded.
    this.bindTexture(1, gl.TEXTURE_2D_ARRAY, gl.NEAREST);
    gl.pixelStorei(gl.UNPACK_ALIGNMENT, 1);
    const size = [width, height, scales.length];
    gl.texImage3D(gl.TEXTURE_2D_ARRAY, 0, gl.RGBA8, ...size, 0, gl.RGBA, gl.UNSIGNED_BYTE, texels);
  }

  // The mesh, and buffers for its nodes: which pixels they are, and their places as the first pass writes them.
  makeMesh(shapes, amplitude) {
    const gl = this.gl;
    const { nodes, indices } = Mesh.make(shapes, amplitude, this.description);
    this.numNodes = nodes.length;
    this.numIndices = indices.length;
    // A vertex array whose attribute reads a new buffer.
    const attribute = (program, name, contents, usage) => {
      const layout = gl.createVertexArray(), buffer = gl.createBuffer();
      gl.bindVertexArray(layout);
      gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
      gl.bufferData(gl.ARRAY_BUFFER, contents, usage);
      const location = gl.getAttribLocation(program, name);
      gl.enableVertexAttribArray(location);
      return [layout, buffer, location];
    };

    let location;
    [this.nodeLayout, , location] = attribute(this.displace, "node", nodes, gl.STATIC_DRAW);
    gl.vertexAttribIPointer(location, 1, gl.INT, 0, 0);
    [this.layout, this.places, location] = attribute(this.mesh, "placed", 16 * this.numNodes, gl.DYNAMIC_COPY);
    gl.vertexAttribPointer(location, 4, gl.FLOAT, false, 0, 0);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, indices, gl.STATIC_DRAW);
    this.feedback = gl.createTransformFeedback();
    // WebGL refuses to write into a buffer that is bound for reading.
    gl.bindVertexArray(null);
    gl.bindBuffer(gl.ARRAY_BUFFER, null);
  }

  // q: (real, imaginary) pairs of the simulation.
  draw(q) {
    const gl = this.gl;
    const { width, height, scales } = this.description;
    for (let i = 0; i < q.length; i++) this.coordinates[i] = q[i] * scales[i >> 1];

    gl.useProgram(this.displace);
    gl.uniform1i(this.uniforms.shapes, 1);
    gl.uniform2i(this.uniforms.gridSize, width, height);
    gl.uniform2fv(this.uniforms.coordinates, this.coordinates);
    gl.bindVertexArray(this.nodeLayout);
    gl.bindTransformFeedback(gl.TRANSFORM_FEEDBACK, this.feedback);
    gl.bindBufferBase(gl.TRANSFORM_FEEDBACK_BUFFER, 0, this.places);
    gl.enable(gl.RASTERIZER_DISCARD);
    gl.beginTransformFeedback(gl.POINTS);
    gl.drawArrays(gl.POINTS, 0, this.numNodes);
    gl.endTransformFeedback();
    gl.disable(gl.RASTERIZER_DISCARD);
    gl.bindBufferBase(gl.TRANSFORM_FEEDBACK_BUFFER, 0, null);
    gl.bindTransformFeedback(gl.TRANSFORM_FEEDBACK, null);

    // The image is texture unit 0, which a sampler reads unless it is set.
    gl.useProgram(this.mesh);
    gl.bindVertexArray(this.layout);
    gl.viewport(0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight);
    gl.drawElements(gl.TRIANGLES, this.numIndices, gl.UNSIGNED_INT, 0);
  }
}
