#version 300 es
// First pass: where every node of the mesh is now, F = sum_k Re(S_k q_k) away from its static place, caught by transform feedback.
// The nodes are pixels of the motion grid, and of one more ring around its border; then the image's corners, static.
precision highp float;
precision highp int;
precision highp sampler2DArray;

// (re_x, im_x, re_y, im_y) of every mode as bytes, one layer a mode; see motion/modal.py, quantise.
uniform sampler2DArray shapes;
// q_k times the scale of mode k.
uniform vec2 coordinates[NUM_MODES];
uniform ivec2 gridSize;
// Of the node: row by row on the grid with its ring, then the four corners.
in int node;
// Parts of the image, y down: (x, y) now and when static.
out vec4 placed;

void main() {
  int columns = gridSize.x + 2;
  int corner = node - columns * (gridSize.y + 2);
  if (corner >= 0) {
    vec2 rest = vec2(corner % 2, corner / 2);
    placed = vec4(rest, rest);
    return;
  }
  ivec2 place = ivec2(node % columns, node / columns);
  ivec2 pixel = clamp(place - 1, ivec2(0), gridSize - 1);
  // With edges at integers: a pixel's centre at + .5, the border's nodes on the image's edge.
  vec2 rest = clamp(vec2(place) - 0.5, vec2(0.0), vec2(gridSize));

  vec2 displacement = vec2(0.0);
  for (int k = 0; k < NUM_MODES; k++) {
    vec4 v = (round(texelFetch(shapes, ivec3(pixel, k), 0) * 255.0) - ZERO_CODE) / CODE_STEPS;
    vec4 shape = v * abs(v);
    vec2 q = coordinates[k];
    displacement += shape.xz * q.x - shape.yw * q.y;
  }
  // The edge of the image may leave the frame but not come inside, where it would open a crack.
  if (place.x == 0) displacement.x = min(displacement.x, 0.0);
  if (place.y == 0) displacement.y = min(displacement.y, 0.0);
  if (place.x == gridSize.x + 1) displacement.x = max(displacement.x, 0.0);
  if (place.y == gridSize.y + 1) displacement.y = max(displacement.y, 0.0);

  placed = vec4(rest + displacement, rest) / vec4(gridSize, gridSize);
}
