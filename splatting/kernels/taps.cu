// What forward.cu and backward.cu share: the types, where a source lands, how it weighs on the pixels around it.
//
// cuda.py joins its constants, this file, forward.cu and backward.cu into one program for each dtype of the values.
// NVRTC compiles it without any header. Pixels and cells of an image are counted in int, elements of a batch of
// images in Offset. The definition of everything here is splatting/reference.py.
// In functions of one image flow is (2, H, W), and importance is (H, W) or null.

using Offset = long long;

// Values are stored as Value and added up as Sum.
#if defined(VALUES_FLOAT64)
using Sum = double;
#else
using Sum = float;
#endif

#if defined(VALUES_FLOAT16) || defined(VALUES_BFLOAT16)
struct Value {
    unsigned short bits;
};
#else
using Value = Sum;
#endif

#if defined(VALUES_FLOAT16)
#ifndef HALF_TO_FLOAT  // not cuda_fp16.h: it would have to be found
#define HALF_TO_FLOAT(single, half) asm("cvt.f32.f16 %0, %1;" : "=f"(single) : "h"(half))
#define FLOAT_TO_HALF(half, single) asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(single))
#endif

__device__ inline Sum to_sum(Value value)
{
    Sum sum;
    HALF_TO_FLOAT(sum, value.bits);
    return sum;
}

__device__ inline Value to_value(Sum sum)
{
    Value value;
    FLOAT_TO_HALF(value.bits, sum);
    return value;
}

#elif defined(VALUES_BFLOAT16)
// A bfloat16 is the upper half of a float. By bits, because before sm_90 there is no instruction for it.

__device__ inline Sum to_sum(Value value)
{
    return __int_as_float(int(unsigned(value.bits) << 16));
}

__device__ inline Value to_value(Sum sum)
{
    const unsigned bits = unsigned(__float_as_int(sum));
    if (sum != sum)
        return {0x7fff};  // rounding could carry a NaN over into infinity
    // To nearest, ties to even: half of the last place, less one where the last bit that stays is 0.
    return {(unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

#else
__device__ inline Sum to_sum(Value value)
{
    return value;
}

__device__ inline Value to_value(Sum sum)
{
    return sum;
}
#endif

__device__ inline Sum infinity()
{
    return __int_as_float(0x7f800000);
}

__device__ inline bool is_finite(Sum x)
{
    return x - x == 0;  // infinity - infinity is NaN
}

__device__ inline Sum clamp(Sum x, Sum low, Sum high)
{
    return x < low ? low : x > high ? high : x;
}

struct Place {
    int image, row, column;
    bool inside;  // of the image; blocks stand out over its right and lower edge
};

// Finds this thread's pixel. A block is a tile of TILE_WIDTH x TILE_HEIGHT pixels, because sources that share a tile
// share cache lines; tiles are counted along rows, images one after another.
__device__ inline Place place_in(unsigned tile, int height, int width)
{
    const unsigned tiles_across = (width - 1) / TILE_WIDTH + 1, tiles_down = (height - 1) / TILE_HEIGHT + 1;
    const unsigned row_of_tiles = tile / tiles_across;
    const int column = tile % tiles_across * TILE_WIDTH + threadIdx.x % TILE_WIDTH;
    const int row = row_of_tiles % tiles_down * TILE_HEIGHT + threadIdx.x / TILE_WIDTH;
    return {int(row_of_tiles / tiles_down), row, column, row < height && column < width};
}

struct Landing {
    bool valid;       // the flow and the importance are finite
    int column, row;  // the pixel up and left of p + flow(p)
    Sum fx, fy;       // the rest of the way, in [0, 1]
};

// n: the pixel, row W + column; pixels: H W
__device__ inline bool is_valid(const Sum* flow, const Sum* importance, int n, int pixels)
{
    return is_finite(flow[n]) && is_finite(flow[Offset(pixels) + n]) && (!importance || is_finite(importance[n]));
}

__device__ inline Landing land(const Sum* flow, const Sum* importance, int row, int column, int height, int width)
{
    const int n = row * width + column, pixels = height * width;
    if (!is_valid(flow, importance, n, pixels))
        return {false, 0, 0, 0, 0};
    // From beyond the margin no tap gets back into the image, and within it no int overflows.
    const Sum x = clamp(column + flow[n], -MARGIN_PX, Sum(width) + MARGIN_PX);
    const Sum y = clamp(row + flow[Offset(pixels) + n], -MARGIN_PX, Sum(height) + MARGIN_PX);
    const Sum left = floor(x), top = floor(y);
    return {true, int(left), int(top), x - left, y - top};
}

__device__ inline Sum bilinear(Sum fx, Sum fy, int right, int below)  // right, below: 0 or 1
{
    return (right ? fx : 1 - fx) * (below ? fy : 1 - fy);
}

// scale exp(-(a dx^2 + b dy^2) / 2 - c dx dy), where scale = 1 / (2 pi sqrt(det S)) and S^-1 = [[a, c], [c, b]]
struct alignas(4 * sizeof(Sum)) Gaussian {
    Sum a, b, c, scale;
};

__device__ inline Sum weight_at(const Gaussian& gaussian, Sum dx, Sum dy)
{
    const Sum square = gaussian.a * dx * dx + gaussian.b * dy * dy;
    return gaussian.scale * exp(Sum(-0.5) * square - gaussian.c * dx * dy);
}

// The singular values of J = I + d flow / d p, the larger first, and cos and sin of twice the larger one's angle.
struct Stretch {
    Sum first, second, cos, sin;
};

// Makes the Gaussian of S = J (sigma^2 I) J^T + least_variance I. by_sigma, if not null, receives the derivatives of
// a, b, c and ln scale by sigma.
__device__ inline Gaussian make_gaussian(Sum sigma, const Stretch& stretch, Sum least_variance, Gaussian* by_sigma)
{
    const Sum squares[2] = {stretch.first * stretch.first, stretch.second * stretch.second};
    Sum half_inverse[2], half_slope[2], rate = 0, determinant = 1;  // along the axes of J J^T
    for (int k = 0; k < 2; ++k) {
        const Sum variance = sigma * sigma * squares[k] + least_variance;
        const Sum relative_slope = 2 * sigma * squares[k] / variance;  // d ln variance / d sigma
        determinant *= variance;
        half_inverse[k] = Sum(0.5) / variance;
        half_slope[k] = -half_inverse[k] * relative_slope;
        rate -= Sum(0.5) * relative_slope;
    }
    const Sum mean = half_inverse[0] + half_inverse[1], difference = half_inverse[0] - half_inverse[1];
    const Sum mean_slope = half_slope[0] + half_slope[1], difference_slope = half_slope[0] - half_slope[1];
    const Sum cos = stretch.cos, sin = stretch.sin;
    if (by_sigma)
        *by_sigma = {
            mean_slope + difference_slope * cos, mean_slope - difference_slope * cos, difference_slope * sin, rate};
    const Sum scale = 1 / (Sum(2 * PI) * sqrt(determinant));
    return {mean + difference * cos, mean - difference * cos, difference * sin, scale};
}

struct Slope {
    Sum x, y;  // of the flow's two components along one direction
};

// Differentiates the flow between two neighbours of a pixel; 0 beside a source that is not valid.
__device__ inline Slope slope_between(
    const Sum* flow, const Sum* importance, int before, int after, int distance, int pixels)
{
    if (distance == 0 || !is_valid(flow, importance, before, pixels) || !is_valid(flow, importance, after, pixels))
        return {0, 0};
    const Sum x = (flow[after] - flow[before]) / distance;
    const Sum y = (flow[Offset(pixels) + after] - flow[Offset(pixels) + before]) / distance;
    // Neighbours that fly apart would overflow what follows; the singular values are clamped far below this.
    return {clamp(x, -MAX_DERIVATIVE, MAX_DERIVATIVE), clamp(y, -MAX_DERIVATIVE, MAX_DERIVATIVE)};
}

__device__ inline Stretch local_stretch(
    const Sum* flow, const Sum* importance, int row, int column, int height, int width)
{
    const int n = row * width + column, pixels = height * width;
    const int left = column > 0, right = column < width - 1, up = row > 0, down = row < height - 1;
    const Slope across = slope_between(flow, importance, n - left, n + right, left + right, pixels);
    const Slope along = slope_between(flow, importance, n - up * width, n + down * width, up + down, pixels);
    // J as the sum of a rotation scaled by q = |(e, h)| and a reflection scaled by r = |(f, g)|
    const Sum e = 1 + (across.x + along.y) / 2, h = (across.y - along.x) / 2;
    const Sum f = (across.x - along.y) / 2, g = (across.y + along.x) / 2;
    const Sum q = sqrt(e * e + h * h), r = sqrt(f * f + g * g);
    // Where q or r is 0 both singular values agree, and any angle will do.
    const Sum unit_q = q > 0 ? q : 1, unit_r = r > 0 ? r : 1;
    const Sum first = clamp(q + r, EWA_MIN_STRETCH, EWA_MAX_STRETCH);
    const Sum second = clamp(fabs(q - r), EWA_MIN_STRETCH, EWA_MAX_STRETCH);
    const Sum cos_q = e / unit_q, sin_q = h / unit_q, cos_r = f / unit_r, sin_r = g / unit_r;
    return {first, second, cos_q * cos_r - sin_q * sin_r, cos_q * sin_r + sin_q * cos_r};
}

__device__ inline Gaussian stretched_gaussian(
    Sum sigma, const Sum* flow, const Sum* importance, int row, int column, int height, int width, Gaussian* by_sigma)
{
    const Stretch stretch = local_stretch(flow, importance, row, column, height, width);
    return make_gaussian(sigma, stretch, EWA_VARIANCE_FLOOR, by_sigma);
}
