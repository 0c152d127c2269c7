// Forward, by gathering: sources are put into lists by the cell they land in, and each target reads the lists around
// it. So every output is written once and normalised on the way, and sums need neither atomics nor cleared memory.
//
// A source's cell is its landing pixel, up and left of p + flow(p). With footprints of side x side taps (2 without
// sigma, else 4) cells start side/2 rows above and side/2 columns left of the image. Counted from there, the sources
// that may touch target (r, c) are those in the side x side cells from (r, c) on.

struct alignas(4 * sizeof(Sum)) Source {
    Sum fx, fy, z;  // fractions of the landing point; importance, 0 where there is none
    int next;       // the next pixel in the list of the same cell, or -1
};

// Thread per source. What is not valid or lands out of frame is in no list.
extern "C" __global__ void __launch_bounds__(THREADS) link_sources(
    const Sum* __restrict__ flow,        // (B, 2, H, W)
    const Sum* __restrict__ importance,  // (B, 1, H, W), or null: none
    const Sum* __restrict__ sigma,       // (), or null: bilinear
    int* __restrict__ heads,             // (B, H + side - 1, W + side - 1), -1 on entry: first pixel of each list
    Source* __restrict__ sources,        // (B, H, W)
    Gaussian* __restrict__ gaussians,    // (B, H, W), or null: none or round
    int height, int width)
{
    const Place place = place_in(blockIdx.x, height, width);
    if (!place.inside)
        return;
    const int side = sigma ? 4 : 2, cells_across = width + side - 1, cells_down = height + side - 1;
    const int n = place.row * width + place.column;
    const Offset first = Offset(place.image) * height * width;
    flow += 2 * first;
    importance = importance ? importance + first : importance;

    const Landing landing = land(flow, importance, place.row, place.column, height, width);
    const int row = landing.row + side / 2, column = landing.column + side / 2;
    if (!landing.valid || row < 0 || row >= cells_down || column < 0 || column >= cells_across)
        return;
    const Offset cell = (Offset(place.image) * cells_down + row) * cells_across + column;
    const int next = atomicExch(&heads[cell], n);
    sources[first + n] = {landing.fx, landing.fy, importance ? importance[n] : 0, next};
    if (gaussians)
        gaussians[first + n] =
            stretched_gaussian(*sigma, flow, importance, place.row, place.column, height, width, nullptr);
}

// Joins two sorted lists into one. Either may be empty.
__device__ inline int merge(Source* sources, int one, int other)
{
    int head;
    int* end = &head;
    while (one >= 0 && other >= 0) {
        int& smaller = one < other ? one : other;
        *end = smaller;
        end = &sources[smaller].next;
        smaller = *end;
    }
    *end = one >= 0 ? one : other;
    return head;
}

// Thread per cell: sorts its list by pixel, because its order is that in which the atomics came. Only in deterministic
// mode. By merging, because all sources may have landed in one cell.
extern "C" __global__ void __launch_bounds__(THREADS) sort_lists(
    int* __restrict__ heads,  // (B, cells down, cells across)
    Source* sources,          // (B, H W)
    int cells_down, int cells_across, int pixels)
{
    const Place place = place_in(blockIdx.x, cells_down, cells_across);
    if (!place.inside)
        return;
    int* head = heads + (Offset(place.image) * cells_down + place.row) * cells_across + place.column;
    sources += Offset(place.image) * pixels;
    if (*head < 0 || sources[*head].next < 0)
        return;
    int sorted[31];  // sorted[k] is a sorted list of 2^k sources, or empty: the digits of the count so far
#pragma unroll 1
    for (int k = 0; k < 31; ++k)
        sorted[k] = -1;
    for (int n = *head, rest; n >= 0; n = rest) {
        rest = sources[n].next;
        sources[n].next = -1;
        int k = 0, list = n;
        for (; sorted[k] >= 0; ++k) {
            list = merge(sources, sorted[k], list);
            sorted[k] = -1;
        }
        sorted[k] = list;
    }
    int list = -1;
#pragma unroll 1
    for (int k = 0; k < 31; ++k)
        list = merge(sources, sorted[k], list);
    *head = list;
}

// Walks over the sources that may touch a target. One loop over all lists, because the threads of a warp stay closer
// together in it than in a loop per list.
template <int SIDE>
struct Walk {
    const int* heads;       // of the image, from the target's first cell on
    const Source* sources;  // (H, W)
    int cells_across;
    Source source = {0, 0, 0, -1};  // the current source
    int n = -1;                     // its pixel
    int cell = 0;                   // how many cells have been entered, row by row
    int waiting[4] = {};            // heads of the cells that come next

    __device__ bool next()
    {
        n = source.next;
        while (n < 0) {
            if (cell == SIDE * SIDE)
                return false;
            if (cell % 4 == 0)  // four loads at once: their latencies overlap
                for (int k = 0; k < 4; ++k)
                    waiting[k] = heads[Offset(cell / SIDE + k / SIDE) * cells_across + k % SIDE];
            n = waiting[0];
            waiting[0] = waiting[1], waiting[1] = waiting[2], waiting[2] = waiting[3];
            ++cell;
        }
        source = sources[n];
        return true;
    }

    // From the landing pixel of the current source to the target.
    __device__ int across() const { return SIDE / 2 - (cell - 1) % SIDE; }
    __device__ int down() const { return SIDE / 2 - (cell - 1) / SIDE; }

    // The weight of the current source by its place; 0 where it is too small to be divided by. gaussians: (H, W), or
    // null: all are round.
    __device__ Sum weight(const Gaussian* gaussians, const Gaussian& round) const
    {
        const Sum fx = source.fx, fy = source.fy;
        const Sum weight = SIDE == 2 ? bilinear(fx, fy, across(), down())
                                     : weight_at(gaussians ? gaussians[n] : round, across() - fx, down() - fy);
        return weight >= MIN_TAP_WEIGHT ? weight : 0;
    }
};

// Adds w v of COUNT channels to their sums (COUNT), values (count, H, W) being read from the source's pixel on. All
// loads come first and none is conditional, so that their latencies overlap; what is read again in place of missing
// channels goes into sums that nobody reads.
template <int COUNT>
__device__ inline void add(Sum* sums, Sum w, const Value* values, int pixels, int count)
{
    Value loaded[COUNT];
#pragma unroll
    for (int k = 0; k < COUNT; ++k)
        loaded[k] = values[Offset(k < count ? k : 0) * pixels];
#pragma unroll
    for (int k = 0; k < COUNT; ++k)
        sums[k] += w * to_sum(loaded[k]);
}

#define GATHER_PARAMETERS                                                                                            \
    const Value *__restrict__ values,        /* (B, C, H, W) */                                                      \
    const Sum *__restrict__ sigma,           /* (), SIDE 4 */                                                        \
    const int *__restrict__ heads,           /* (B, H + SIDE - 1, W + SIDE - 1) */                                   \
    const Source *__restrict__ sources,      /* (B, H, W) */                                                         \
    const Gaussian *__restrict__ gaussians,  /* (B, H, W), or null: none or round */                                 \
    Value *__restrict__ out,                 /* (B, C, H, W) */                                                      \
    Sum *__restrict__ weight,                /* (B, 1, H, W) */                                                      \
    Sum *__restrict__ largest,               /* (B, 1, H, W), or null: no importance */                              \
    int channels, int height, int width, int normalise

// Thread per target and chunk of CHUNK channels. The chunks of a tile are neighbours in the grid, so that they find
// the lists in the cache.
template <int SIDE>
__device__ inline void gather(GATHER_PARAMETERS)
{
    const unsigned chunks = channels > CHUNK ? (channels - 1) / CHUNK + 1 : 1;
    const int first_channel = blockIdx.x % chunks * CHUNK, count = channels - first_channel;
    const Place place = place_in(blockIdx.x / chunks, height, width);
    if (!place.inside)
        return;
    const int pixels = height * width, cells_across = width + SIDE - 1, cells_down = height + SIDE - 1;
    const Offset first_pixel = Offset(place.image) * pixels;
    const Offset first_cell = (Offset(place.image) * cells_down + place.row) * cells_across + place.column;
    gaussians = gaussians ? gaussians + first_pixel : gaussians;
    const Gaussian round = SIDE == 4 ? make_gaussian(*sigma, {1, 1, 0, 0}, 0, nullptr) : Gaussian();
    const Walk<SIDE> start = {heads + first_cell, sources + first_pixel, cells_across};

    Sum largest_here = -infinity();  // the largest importance that touches this target
    if (largest)
        for (Walk<SIDE> walk = start; walk.next();)
            if (walk.source.z > largest_here && walk.weight(gaussians, round) > 0)
                largest_here = walk.source.z;

    const Offset first_value = (Offset(place.image) * channels + first_channel) * pixels;
    Sum total = 0, sums[CHUNK] = {};
    for (Walk<SIDE> walk = start; walk.next();) {
        Sum w = walk.weight(gaussians, round);
        if (w == 0)
            continue;  // not even a NaN arrives then
        if (largest)
            w *= exp(walk.source.z - largest_here);
        total += w;
        const Value* source_values = values + first_value + walk.n;
        if (count >= CHUNK)
            add<CHUNK>(sums, w, source_values, pixels, CHUNK);
        else
#pragma unroll
            for (int k = 0; k < CHUNK; k += 4)
                if (k < count)
                    add<4>(sums + k, w, source_values + Offset(k) * pixels, pixels, count - k);
    }

    const int n = place.row * width + place.column;
    const Sum share = normalise && total > 0 ? 1 / total : 1;
#pragma unroll
    for (int k = 0; k < CHUNK; ++k)
        if (k < count)
            out[first_value + n + Offset(k) * pixels] = to_value(share * sums[k]);
    if (first_channel > 0)
        return;
    weight[first_pixel + n] = total;
    if (largest)
        largest[first_pixel + n] = largest_here;
}

extern "C" __global__ void __launch_bounds__(THREADS) gather_2x2(GATHER_PARAMETERS)
{
    gather<2>(values, sigma, heads, sources, gaussians, out, weight, largest, channels, height, width, normalise);
}

extern "C" __global__ void __launch_bounds__(THREADS) gather_4x4(GATHER_PARAMETERS)
{
    gather<4>(values, sigma, heads, sources, gaussians, out, weight, largest, channels, height, width, normalise);
}
