#version 300 es
// Second pass: the mesh, each node at the place the first pass found.
precision highp float;

in vec4 placed;
out vec2 texturePosition;

void main() {
  texturePosition = placed.zw;
  gl_Position = vec4(2.0 * placed.x - 1.0, 1.0 - 2.0 * placed.y, 0.0, 1.0);
}
