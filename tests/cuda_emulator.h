// Plays the part of CUDA that splatting/kernels/*.cu use, so that g++ compiles the same text and a CPU runs it.
//
// Threads run one after another, in grid order or shuffled by a seed: a result that depends on their order shows, and
// every atomic is one by itself. The kernels use no shared memory and no __syncthreads; one that did would not compile
// here, and would need threads that can wait for each other.

#pragma once

#include <math.h>  // not cmath: it is this one that brings exp(float) and its kind outside of std
#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __launch_bounds__(...)

struct Index {
    unsigned x, y, z;
};

static Index threadIdx, blockIdx, blockDim, gridDim;

static inline int atomicExch(int* address, int value)
{
    return std::exchange(*address, value);
}

static inline float __int_as_float(int bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline int __float_as_int(float x)
{
    int bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

// PTX: cvt.f32.f16
static inline float half_to_float(uint16_t half)
{
    const int exponent = half >> 10 & 31, mantissa = half & 1023;
    float size = exponent ? ldexpf(1024 + mantissa, exponent - 25) : ldexpf(mantissa, -24);
    if (exponent == 31)
        size = mantissa ? NAN : INFINITY;
    return half >> 15 ? -size : size;
}

// PTX: cvt.rn.f16.f32, to nearest, ties to even
static inline uint16_t float_to_half(float x)
{
    if (x != x)
        return 0x7fff;
    const uint16_t sign = signbit(x) ? 0x8000 : 0;
    const float size = fabsf(x);
    if (size >= 65520)  // halfway from the largest number to what would follow it
        return sign | 0x7c00;
    if (size < ldexpf(1, -14))
        return sign | uint16_t(nearbyintf(ldexpf(size, 24)));
    int exponent;
    const float mantissa = nearbyintf(ldexpf(frexpf(size, &exponent), 11));  // 1024 .. 2048, which carries over
    return sign | uint16_t(((exponent + 13) << 10) + int(mantissa));
}

#define HALF_TO_FLOAT(single, half) single = half_to_float(half)
#define FLOAT_TO_HALF(half, single) half = float_to_half(single)

// Launching, from an array of pointers to the arguments as the driver gets it ---------------------------------------

template <typename... Parameters, size_t... I>
void call(void (*kernel)(Parameters...), void** arguments, std::index_sequence<I...>)
{
    kernel(*static_cast<Parameters*>(arguments[I])...);
}

template <typename... Parameters>
void launch(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, void** arguments, uint64_t seed)
{
    std::vector<uint64_t> order(uint64_t(blocks) * threads);
    std::iota(order.begin(), order.end(), 0);
    if (seed)
        std::shuffle(order.begin(), order.end(), std::mt19937_64(seed));
    gridDim = {blocks, 1, 1};
    blockDim = {threads, 1, 1};
    for (uint64_t number : order) {
        blockIdx = {unsigned(number / threads), 0, 0};
        threadIdx = {unsigned(number % threads), 0, 0};
        call(kernel, arguments, std::index_sequence_for<Parameters...>());
    }
}

template <typename... Parameters>
int parameter_sizes(void (*)(Parameters...), int* sizes)
{
    ((*sizes++ = sizeof(Parameters)), ...);
    return sizeof...(Parameters);
}

#define EMULATE(kernel)                                                                                  \
    extern "C" void emulate_##kernel(unsigned blocks, unsigned threads, void** arguments, uint64_t seed) \
    {                                                                                                    \
        launch(kernel, blocks, threads, arguments, seed);                                                \
    }                                                                                                    \
    extern "C" int sizes_of_##kernel(int* sizes)                                                         \
    {                                                                                                    \
        return parameter_sizes(kernel, sizes);                                                           \
    }
