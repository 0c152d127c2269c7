#version 300 es
precision highp float;

uniform sampler2D image;
in vec2 texturePosition;
out vec4 colour;

void main() {
  colour = vec4(texture(image, texturePosition).rgb, 1.0);
}
