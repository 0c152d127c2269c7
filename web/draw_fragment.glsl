#version 300 es
precision highp float;

uniform sampler2D picture;
in vec2 texturePosition;
out vec4 colour;

void main() {
  colour = vec4(texture(picture, texturePosition).rgb, 1.0);
}
