// The mesh that carries the image. Its nodes are pixels of the motion grid and one more ring around its border. Where
// four cells move as one would, one is drawn: a browser without a graphics card needs half a microsecond for a triangle.
// Cells are drawn in order of how much they move, so that what moves more, and is nearer as a rule, covers what moves
// less; cells that never move are left out. No DOM in here: tests run this file in node.
"use strict";

const Mesh = (() => {
  // Four cells are one where no node between its corners is farther than this from where the corners put it, px of the
  // motion grid, at the swing that was predicted. Most of motion is smooth to less than 0.1 px.
  const MERGE_PX = 0.2;

  // How far the pixels between the corners of each block of 3 x 3 pixels are from where the corners put them, at most.
  function deviations(shapes, numPlanes, width, height) {
    const columns = (width - 1) >> 1, rows = (height - 1) >> 1;
    const squared = new Float32Array(5 * columns * rows);
    for (let plane = 0; plane < numPlanes; plane++) {
      for (let row = 0; row < rows; row++) {
        let i = (plane * height + 2 * row) * width;
        let out = 5 * row * columns;
        for (let column = 0; column < columns; column++, i += 2, out += 5) {
          const a = shapes[i], b = shapes[i + 2], c = shapes[i + 2 * width], d = shapes[i + 2 * width + 2];
          squared[out] += (shapes[i + 1] - (a + b) / 2) ** 2;
          squared[out + 1] += (shapes[i + width] - (a + c) / 2) ** 2;
          squared[out + 2] += (shapes[i + width + 1] - (a + b + c + d) / 4) ** 2;
          squared[out + 3] += (shapes[i + width + 2] - (b + d) / 2) ** 2;
          squared[out + 4] += (shapes[i + 2 * width + 1] - (c + d) / 2) ** 2;
        }
      }
    }
    return Float32Array.from({ length: columns * rows }, (_, block) =>
      Math.sqrt(Math.max(...squared.subarray(5 * block, 5 * block + 5))));
  }

  // A map (H, W) with its border once more around it, so that node n of the mesh has its value at n.
  function withRing(map, width, height) {
    const inside = (value, length) => Math.min(Math.max(value - 1, 0), length - 1);
    const columns = width + 2;
    return Float32Array.from({ length: columns * (height + 2) }, (_, node) =>
      map[inside(Math.floor(node / columns), height) * width + inside(node % columns, width)]);
  }

  // shapes (M, 4, H, W) px, amplitude (H, W) px, description { width, height, scales }. Returns the nodes, numbered row
  // by row on the grid with its ring, then the image's four corners; and triangles as indices into them, first the two
  // of the whole static image.
  function make(shapes, amplitude, { width, height, scales }) {
    const columns = width + 2;
    const moved = withRing(amplitude, width, height);
    // Around 2 x 2 cells and then in their middle, from the top left node: corners are even, between two corners odd.
    const around = [0, 1, 2, 2 + columns, 2 + 2 * columns, 1 + 2 * columns, 2 * columns, columns, 1 + columns];
    const corners = { 1: [0, 1, 1 + columns, columns], 2: [0, 2, 2 + 2 * columns, 2 * columns] };
    const cells = []; // what is drawn: top left node, cells a side, movement
    const add = (start, size) => {
      const movement = corners[size].reduce((sum, offset) => sum + moved[start + offset], 0);
      if (movement > 0) cells.push({ start, size, movement });
    };

    // Four cells are one where they are smooth and all of them moves: what is static stays so, to the pixel.
    const blockColumns = (width - 1) >> 1;
    const merged = new Uint8Array(moved.length);
    deviations(shapes, 4 * scales.length, width, height).forEach((deviation, block) => {
      const start = (1 + 2 * Math.floor(block / blockColumns)) * columns + 1 + 2 * (block % blockColumns);
      if (deviation > MERGE_PX || around.some((offset) => moved[start + offset] === 0)) return;
      for (const offset of corners[1]) merged[start + offset] = 1;
      add(start, 2);
    });
    for (let start = 0; start < (height + 1) * columns; start++) {
      if (start % columns <= width && !merged[start]) add(start, 1);
    }
    cells.sort((a, b) => a.movement - b.movement);

    // Which nodes there are, then their numbers.
    const numbers = new Int32Array(moved.length).fill(-1);
    for (const { start, size } of cells) for (const offset of corners[size]) numbers[start + offset] = 0;
    const nodes = [];
    numbers.forEach((there, node) => {
      if (there === 0) numbers[node] = nodes.push(node) - 1;
    });
    const first = nodes.length;
    for (let corner = 0; corner < 4; corner++) nodes.push(moved.length + corner);

    const indices = [first, first + 1, first + 2, first + 1, first + 3, first + 2];
    for (const { start, size } of cells) {
      // Beside a smaller cell four have a node between two corners too: without, a crack would open. A fan starts at
      // such a node, for with these two corners it makes a triangle of no area.
      const outline = [];
      let apex = 0;
      (size === 1 ? corners[1] : around.slice(0, 8)).forEach((offset, i) => {
        const isBetween = size === 2 && i % 2 === 1;
        if (isBetween && numbers[start + offset] < 0) return;
        if (isBetween) apex = outline.length;
        outline.push(numbers[start + offset]);
      });
      for (let i = 1; i < outline.length - 1; i++) {
        for (const step of [0, i, i + 1]) indices.push(outline[(apex + step) % outline.length]);
      }
    }
    return { nodes: Int32Array.from(nodes), indices: Uint32Array.from(indices) };
  }

  return { make };
})();
