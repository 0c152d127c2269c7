// Backward, from the gradients of out = sum w v [/ D] and of D = sum w at each target, where w = s e, s the weight by
// the place and e = exp(min(z - largest, 0)). There are no atomics: each thread owns what it writes.

struct alignas(4 * sizeof(Sum)) Target {
    Sum share;     // by which it hands on the gradient to out: 1 / D where out is normalised, else 1; 0 where D is 0
    Sum to_total;  // gradient to D, both the direct one and the one by way of a normalised out
    Sum largest;   // importance, 0 where there is none
    Sum unused;
};

// Thread per target.
extern "C" __global__ void __launch_bounds__(THREADS) target_gradients(
    const Value* __restrict__ grad_out,   // (B, C, H, W)
    const Sum* __restrict__ grad_weight,  // (B, 1, H, W), or null: 0
    const Value* __restrict__ out,        // (B, C, H, W), or null: not normalised, or gradients to w are not wanted
    const Sum* __restrict__ weight,       // (B, 1, H, W)
    const Sum* __restrict__ largest,      // (B, 1, H, W), or null: no importance
    Target* __restrict__ targets,         // (B, H, W)
    int channels, int height, int width, int normalise)
{
    const Place place = place_in(blockIdx.x, height, width);
    if (!place.inside)
        return;
    const int pixels = height * width, n = place.row * width + place.column;
    const Offset target = Offset(place.image) * pixels + n;
    const Sum total = weight[target], scale = !normalise ? 1 : total > 0 ? 1 / total : 0;
    Sum dot = 0;
    if (out && total > 0) {
        Offset at = Offset(place.image) * channels * pixels + n;
#pragma unroll 8
        for (int channel = 0; channel < channels; ++channel, at += pixels)
            dot += to_sum(grad_out[at]) * to_sum(out[at]);
    }
    const Sum direct = grad_weight ? grad_weight[target] : 0;
    targets[target] = {scale, direct - dot * scale, largest ? largest[target] : 0, 0};
}

// The SIDE x SIDE taps of one source, numbered row by row.
template <int SIDE>
struct Taps {
    Landing landing;
    Gaussian gaussian, by_sigma;  // SIDE 4: the footprint, and its derivatives by sigma
    Sum z;                        // importance
    const Target* targets;        // (H, W)
    int n, height, width;         // the source's pixel, the image's size

    struct Tap {
        bool exists;  // it lies inside the image, and its weight is 0 or at least MIN_TAP_WEIGHT
        Sum s, e;
        Sum share, to_total;  // its target's
    };

    // From the landing pixel to tap t.
    static __device__ int across(int t) { return t % SIDE + 1 - SIDE / 2; }
    static __device__ int down(int t) { return t / SIDE + 1 - SIDE / 2; }

    __device__ Tap at(int t) const
    {
        const int row = landing.row + down(t), column = landing.column + across(t);
        const bool inside = landing.valid && row >= 0 && row < height && column >= 0 && column < width;
        const Sum dx = across(t) - landing.fx, dy = down(t) - landing.fy;
        const Sum s = SIDE == 2 ? bilinear(landing.fx, landing.fy, across(t), down(t)) : weight_at(gaussian, dx, dy);
        // Read in any case, from the source's own pixel where the tap lies outside, so that the latencies overlap.
        const Target target = targets[inside ? row * width + column : n];
        // A tap of weight 0 stays: at integer landing points it carries the gradient to the flow. It is not in the
        // maximum, and may lie above it or be where nothing arrives.
        const bool exists = inside && (s >= MIN_TAP_WEIGHT || s == 0);
        const Sum exponent = z - target.largest;
        return {exists, s, exponent < 0 ? exp(exponent) : 1, target.share, target.to_total};
    }
};

// Writes the gradient to the values, sum over taps of w share grad_out, and adds grad_out . v of each tap to dots.
template <int SIDE>
__device__ inline void through_values(
    const Taps<SIDE>& taps,
    const Value* __restrict__ grad_out,  // (C, H, W)
    const Value* __restrict__ values,    // (C, H, W), or null: dots are not wanted
    Value* __restrict__ grad_values,     // (C, H, W), or null: not wanted
    int channels,
    Sum (&dots)[SIDE * SIDE])
{
    Sum factors[SIDE * SIDE];
    unsigned passing = 0;  // bit t: tap t exists and its target hands on a gradient to out
#pragma unroll
    for (int t = 0; t < SIDE * SIDE; ++t) {
        const auto tap = taps.at(t);
        const bool passes = tap.exists && tap.share > 0;
        factors[t] = passes ? tap.s * tap.e * tap.share : 0;
        passing |= unsigned(passes) << t;
    }
    const int n = taps.n, pixels = taps.height * taps.width;
    const int corner = (taps.landing.row + taps.down(0)) * taps.width + taps.landing.column + taps.across(0);
#pragma unroll(SIDE == 2 ? 4 : 1)
    for (int channel = 0; channel < channels; ++channel) {
        const Offset plane = Offset(channel) * pixels;
        const Sum value = values ? to_sum(values[plane + n]) : 0;
        Value upstream[SIDE * SIDE];
#pragma unroll
        for (int t = 0; t < SIDE * SIDE; ++t)
            upstream[t] = passing >> t & 1 ? grad_out[plane + corner + t / SIDE * taps.width + t % SIDE] : Value();
        Sum gradient = 0;
#pragma unroll
        for (int t = 0; t < SIDE * SIDE; ++t) {
            gradient += factors[t] * to_sum(upstream[t]);
            dots[t] += value * to_sum(upstream[t]);
        }
        if (grad_values)
            grad_values[plane + n] = to_value(gradient);
    }
}

struct SourceGradients {
    Sum x, y, z, sigma;  // to the flow, the importance and sigma
};

template <int SIDE>
__device__ inline SourceGradients through_weights(const Taps<SIDE>& taps, const Sum (&dots)[SIDE * SIDE])
{
    SourceGradients to = {0, 0, 0, 0};
    const Gaussian &gaussian = taps.gaussian, &by_sigma = taps.by_sigma;
#pragma unroll
    for (int t = 0; t < SIDE * SIDE; ++t) {
        const auto tap = taps.at(t);
        const Sum to_s = tap.exists ? tap.e * (dots[t] * tap.share + tap.to_total) : 0;
        to.z += to_s * tap.s;
        const Sum dx = taps.across(t) - taps.landing.fx, dy = taps.down(t) - taps.landing.fy;
        if (SIDE == 2) {
            // s = (1 - |dx|) (1 - |dy|), and at dx = 0 the derivative from the right
            to.x += to_s * (taps.across(t) ? 1 : -1) * (1 - fabs(dy));
            to.y += to_s * (taps.down(t) ? 1 : -1) * (1 - fabs(dx));
        } else {
            const Sum to_log_s = to_s * tap.s;
            to.x += to_log_s * (gaussian.a * dx + gaussian.c * dy);
            to.y += to_log_s * (gaussian.b * dy + gaussian.c * dx);
            const Sum square = by_sigma.a * dx * dx + by_sigma.b * dy * dy;
            to.sigma += to_log_s * (by_sigma.scale - Sum(0.5) * square - by_sigma.c * dx * dy);
        }
    }
    return to;
}

// A null output is not wanted.
#define SOURCE_PARAMETERS                                                                                            \
    const Value *__restrict__ grad_out,    /* (B, C, H, W) */                                                        \
    const Target *__restrict__ targets,    /* (B, H, W) */                                                           \
    const Value *__restrict__ values,      /* (B, C, H, W) */                                                        \
    const Sum *__restrict__ flow,          /* (B, 2, H, W) */                                                        \
    const Sum *__restrict__ importance,    /* (B, 1, H, W), or null: none */                                         \
    const Sum *__restrict__ sigma,         /* (), SIDE 4 */                                                          \
    Value *__restrict__ grad_values,       /* (B, C, H, W) */                                                        \
    Sum *__restrict__ grad_flow,           /* (B, 2, H, W) */                                                        \
    Sum *__restrict__ grad_importance,     /* (B, 1, H, W) */                                                        \
    Sum *__restrict__ grad_sigma,          /* (B, 1, H, W) each source's part */                                     \
    int channels, int height, int width, int ewa

// Thread per source. SIDE is known to the compiler, so that the sums of the taps stay in registers.
template <int SIDE>
__device__ inline void source_gradients(SOURCE_PARAMETERS)
{
    const Place place = place_in(blockIdx.x, height, width);
    if (!place.inside)
        return;
    const int pixels = height * width, n = place.row * width + place.column;
    const Offset first_pixel = Offset(place.image) * pixels, first_value = first_pixel * channels;
    flow += 2 * first_pixel;
    importance = importance ? importance + first_pixel : importance;

    const Landing landing = land(flow, importance, place.row, place.column, height, width);
    const Sum z = importance ? importance[n] : 0;
    Taps<SIDE> taps = {landing, {}, {}, z, targets + first_pixel, n, height, width};
    if (SIDE == 4 && ewa)
        taps.gaussian = stretched_gaussian(
            *sigma, flow, importance, place.row, place.column, height, width, &taps.by_sigma);
    else if (SIDE == 4)
        taps.gaussian = make_gaussian(*sigma, {1, 1, 0, 0}, 0, &taps.by_sigma);

    const bool weights_too = grad_flow || grad_importance || grad_sigma;
    Sum dots[SIDE * SIDE] = {};
    through_values<SIDE>(taps, grad_out + first_value, weights_too ? values + first_value : nullptr,
                         grad_values ? grad_values + first_value : nullptr, channels, dots);
    if (!weights_too)
        return;
    const SourceGradients to = through_weights<SIDE>(taps, dots);
    if (grad_flow) {
        grad_flow[2 * first_pixel + n] = to.x;
        grad_flow[2 * first_pixel + pixels + n] = to.y;
    }
    if (grad_importance)
        grad_importance[first_pixel + n] = to.z;
    if (grad_sigma)
        grad_sigma[first_pixel + n] = to.sigma;
}

// The second number of the bounds, blocks at a time on a multiprocessor, makes the compiler spare registers.
extern "C" __global__ void __launch_bounds__(THREADS, 4) source_gradients_2x2(SOURCE_PARAMETERS)
{
    source_gradients<2>(grad_out, targets, values, flow, importance, sigma, grad_values, grad_flow, grad_importance,
                        grad_sigma, channels, height, width, ewa);
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) source_gradients_4x4(SOURCE_PARAMETERS)
{
    source_gradients<4>(grad_out, targets, values, flow, importance, sigma, grad_values, grad_flow, grad_importance,
                        grad_sigma, channels, height, width, ewa);
}
