#version 300 es
// The first pass draws nothing, but a program needs both halves.
void main() {}
