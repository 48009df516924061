// Forward attention of sm_90a: wgmma, the copy unit, and warps with different roles.

#include "ops/sparse_attention/cuda/tile_kernels.h"
#include "ops/sparse_attention/cuda/tiles.cuh"
//
#include "core/cuda/hopper.h"

namespace lacuna::gpu {
namespace {

constexpr int kWidth = 64;     // of a head
constexpr int kQueries = 128;  // of a block
constexpr int kKeys = 128;     // of a tile
constexpr int kStages = 2;     // tiles of k, and of v, in shared memory
constexpr int kConsumerWarps = kQueries / 16;
constexpr int kHopperThreads = (kConsumerWarps + 4) * kWarpSize;  // registers go to whole warpgroups
constexpr int kWorkBands = 4;                                     // of a head at most
constexpr int kKeyMaps = 2;                                       // ways in which keys lie in memory

/// Keys in runs of `width` every `period` positions: two tensor maps of boxes [kKeys / width runs][width][kWidth].
struct KeyMap {
  int64_t period = 0, width = 0;
  TensorMap k, v;
};

template <class T>
struct HopperForward {
  BandLaunch<T> call;
  TensorMap q;
  KeyMap keys[kKeyMaps];
};

template <class T>
struct Shared {
  T q[kQueries * kWidth];
  T k[kStages][kKeys * kWidth];
  T v[kStages][kKeys * kWidth];
  int begin[kWorkBands][kQueries], end[kWorkBands][kQueries];  // the keys that each query meets of each band
  uint64_t q_full, k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];
};

/// The tiles of keys that a block meets, band after band: elements t .. t + kKeys - 1 of the band's keys.
template <class T>
struct KeyTiles {
  const Shared<T>& shared;
  const Band* bands;  // those of the launch
  int count;
  int band = -1, t = 0, end = 0;
  int index = -1;  // of the tile among all

  __device__ __forceinline__ bool next() {
    ++index;
    for (t += kKeys; t >= end;) {
      if (++band == count) return false;
      end = shared.end[band][kQueries - 1];
      t = shared.begin[band][0];
      t -= t % static_cast<int>(bands[band].view.keys_of_group_0.width);  // boxes hold whole runs
    }
    return true;
  }
  __device__ __forceinline__ int stage() const { return index % kStages; }
  __device__ __forceinline__ int parity() const { return index / kStages % 2; }
};

// o = softmax(q k^T / sqrt(d_qk)) v and its log-sum-exp, of heads of width 64 whose queries are all positions.
//   grid       a block per kQueries queries
//   warps      kConsumerWarps compute 16 queries each, with registers that the other four leave them; one thread of
//              those has the copy unit bring q, then tiles of k and v in turn
//   shared     rows of 128 bytes, swizzled. A tile of k is free again when every warp has its scores, one of v when
//              every warp has added its values
//   overlap    the scores of a tile are computed while the values of the tile before are added, and its weights too
//   precision  products of T in f32; softmax in f32; weights rounded to T for the second product
template <class T>
__global__ void __launch_bounds__(kHopperThreads, 1)
    attention_forward_hopper(const __grid_constant__ HopperForward<T> work) {
#if LACUNA_SM90A_CODE
  constexpr int kStep = 16, kGroupBytes = 8 * 2 * kWidth;  // the depth of one wgmma, eight rows in shared memory
  LACUNA_DYNAMIC_SHARED(Shared<T>, shared_memory);
  Shared<T>& shared = *shared_memory;
  const BandLaunch<T>& call = work.call;
  const int warp = threadIdx.x / kWarpSize, lane = threadIdx.x % kWarpSize;

  // Heads go fastest, as in TileOfBlock, and the last queries first.
  const int64_t index = blockIdx.x;
  const int64_t tiles = (call.n + kQueries - 1) / kQueries, per_batch = tiles * call.table.n_heads;
  const HeadBands& head = call.table.heads[index % call.table.n_heads];
  const Band* const bands = call.table.bands + head.first;
  const int batch = static_cast<int>(index / per_batch);
  const int64_t row = (tiles - 1 - index % per_batch / call.table.n_heads) * kQueries;
  const int count = static_cast<int>(lesser(kQueries, call.n - row));

  if (threadIdx.x == kConsumerWarps * kWarpSize) {
    mbarrier_init(&shared.q_full, 1);
    for (int stage = 0; stage < kStages; ++stage) {
      mbarrier_init(&shared.k_full[stage], 1);
      mbarrier_init(&shared.v_full[stage], 1);
      mbarrier_init(&shared.k_empty[stage], kConsumerWarps);
      mbarrier_init(&shared.v_empty[stage], kConsumerWarps);
    }
    fence_proxy_async();
    mbarrier_arrive_expecting(&shared.q_full, sizeof(shared.q));
    copy_box(shared.q, work.q, &shared.q_full, {0, head.head, 0, static_cast<int>(row), batch});
  }
  for (int x = threadIdx.x; x < (head.end - head.begin) * kQueries; x += kHopperThreads) {
    const int band = x / kQueries, r = x % kQueries;
    const Range range = keys_of(bands, head.begin + band, 0, row + (r < count ? r : count - 1));
    shared.begin[band][r] = static_cast<int>(r < count ? range.begin : range.end);
    shared.end[band][r] = static_cast<int>(range.end);
  }
  __syncthreads();
  KeyTiles<T> at{shared, bands + head.begin, head.end - head.begin};

  if (warp >= kConsumerWarps) {
    decrease_registers<40>();
    if (threadIdx.x != kConsumerWarps * kWarpSize) return;
    while (at.next()) {
      const Strip keys = at.bands[at.band].view.keys_of_group_0;
      const KeyMap& map = work.keys[work.keys[0].period != keys.period || work.keys[0].width != keys.width];
      const int place[kTensorRank] = {0, head.head, static_cast<int>(keys.first), at.t / static_cast<int>(keys.width),
                                      batch};
      const int stage = at.stage();
      mbarrier_wait(&shared.k_empty[stage], at.parity() ^ 1);
      mbarrier_arrive_expecting(&shared.k_full[stage], sizeof(shared.k[0]));
      copy_box(shared.k[stage], map.k, &shared.k_full[stage], place);
      mbarrier_wait(&shared.v_empty[stage], at.parity() ^ 1);
      mbarrier_arrive_expecting(&shared.v_full[stage], sizeof(shared.v[0]));
      copy_box(shared.v[stage], map.v, &shared.v_full[stage], place);
    }
    return;
  }

  increase_registers<232>();
  const float scale = call.scale * kLog2e;
  const int group_row = warp / 4 * 64;
  const int first_row = warp * 16 + lane / 4;  // the thread has the row 8 further on too
  float s[kKeys / 2];                          // scores of a tile, then weights
  uint32_t p[kKeys / kStep][4];                // weights, rounded
  float o[kWidth / 2] = {};
  float top[2] = {-INFINITY, -INFINITY};  // largest q . k of the thread's rows so far
  float sum[2] = {0.0f, 0.0f};            // of 2^(scale (q . k - top)), this thread's columns alone

  // s = q k^T, begun
  const auto begin_scores = [&] {
    mbarrier_wait(&shared.k_full[at.stage()], at.parity());
    wgmma_fence(s);
#pragma unroll
    for (int c = 0; c < kWidth; c += kStep)
      wgmma<T, kKeys, false>(s, matrix_descriptor(shared.q + group_row * kWidth + c, 0, kGroupBytes, Swizzle::bytes128),
                             matrix_descriptor(shared.k[at.stage()] + c, 0, kGroupBytes, Swizzle::bytes128), c > 0);
    wgmma_commit();
  };
  // s = 2^(scale (s - top)); shrink: what became of the unit of earlier weights
  const auto weigh = [&](float(&shrink)[2]) {
    const int *const begin = shared.begin[at.band], *const end = shared.end[at.band];
    if (at.t < begin[group_row + 63] || at.t + kKeys > end[group_row]) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int from = begin[first_row + 8 * half] - at.t, to = end[first_row + 8 * half] - at.t;
#pragma unroll
        for (int i = 0; i < kKeys / 4; ++i) {
          const int column = i / 2 * 8 + 2 * (lane % 4) + i % 2;
          if (column < from || column >= to) s[i / 2 * 4 + 2 * half + i % 2] = -INFINITY;
        }
      }
    }
    float base[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float largest = top[half];
#pragma unroll
      for (int i = 0; i < kKeys / 4; ++i) largest = fmaxf(largest, s[i / 2 * 4 + 2 * half + i % 2]);
      largest = largest_of_row(largest);
      base[half] = largest == -INFINITY ? 0.0f : largest * scale;
      shrink[half] = exp2_approx(top[half] * scale - base[half]);
      top[half] = largest;
      sum[half] *= shrink[half];
    }
#pragma unroll
    for (int i = 0; i < kKeys / 2; ++i) {
      s[i] = exp2_approx(s[i] * scale - base[i / 2 % 2]);
      sum[i / 2 % 2] += s[i];
    }
  };
  const auto round_weights = [&] {
#pragma unroll
    for (int i = 0; i < kKeys / kStep * 4; ++i) p[i / 4][i % 4] = pack<T>(s[2 * i], s[2 * i + 1]);
  };
  // o += p v, begun
  const auto begin_values = [&](int stage, int parity) {
    mbarrier_wait(&shared.v_full[stage], parity);
    wgmma_fence(o, p);
#pragma unroll
    for (int x = 0; x < kKeys / kStep; ++x)
      wgmma<T, kWidth, true>(
          o, p[x], matrix_descriptor(shared.v[stage] + x * kStep * kWidth, 0, kGroupBytes, Swizzle::bytes128), true);
    wgmma_commit();
  };

  mbarrier_wait(&shared.q_full, 0);
  if (at.next()) {
    float shrink[2];
    begin_scores();
    wgmma_wait<0>(s);
    if (lane == 0) mbarrier_arrive(&shared.k_empty[at.stage()]);
    weigh(shrink);
    round_weights();
    int stage = at.stage(), parity = at.parity();
    while (at.next()) {
      begin_scores();
      begin_values(stage, parity);
      wgmma_wait<1>(s);
      if (lane == 0) mbarrier_arrive(&shared.k_empty[at.stage()]);
      weigh(shrink);
      compute_here(sum[0] + sum[1]);
      wgmma_wait<0>(o);
      if (lane == 0) mbarrier_arrive(&shared.v_empty[stage]);
#pragma unroll
      for (int i = 0; i < kWidth / 2; ++i) o[i] *= shrink[i / 2 % 2];
      round_weights();
      stage = at.stage(), parity = at.parity();
    }
    begin_values(stage, parity);
    wgmma_wait<0>(o);
  }

  float factor[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float total = sum_of_row(sum[half]);
    factor[half] = total == 0.0f ? 0.0f : 1.0f / total;
    const int r = first_row + 8 * half;
    if (lane % 4 == 0 && r < count)
      call.lse[(batch * call.n_heads + head.head) * call.n + row + r] =
          total == 0.0f ? -INFINITY : (top[half] * scale + log2f(total)) * kLn2;
  }
  bar_sync(1 + warp / 4, 128);  // its warps read q together
  store_rows<kWidth>(reinterpret_cast<const float(&)[kWidth / 8][4]>(o), factor, shared.q + warp * 16 * kWidth, kWidth,
                     [&](int r) {
                       r += warp * 16;
                       return r < count ? call.o.of(batch, head.head) + (row + r) * call.o.token : nullptr;
                     });
#else
  __trap();  // rather than nothing: an o that nobody has written
#endif
}

template <class T>
TensorMap map_of(const BandLaunch<T>& call, const HeadRows<const T>& x, int64_t period, int64_t width, int rows) {
  const int64_t sizes[] = {kWidth, call.n_heads, period, call.n / period, call.batch};
  const int64_t strides[] = {1, x.head, x.token, period * x.token, x.batch};
  const int box[] = {kWidth, 1, static_cast<int>(width), static_cast<int>(rows / width), 1};
  return tensor_map(x.data, sizes, strides, box, Swizzle::bytes128);
}

/// Calls fn(bands, p) for every band of the launch, until it returns false.
template <class Fn>
bool all_bands(const BandTable& table, const Fn& fn) {
  for (const HeadBands* h = table.heads; h != table.heads + table.n_heads; ++h)
    for (int p = h->begin; p < h->end; ++p)
      if (!fn(table.bands + h->first, p)) return false;
  return true;
}

/// The KeyMap of `keys` among the first `count`, or count.
int find_map(const KeyMap* maps, int count, const Strip& keys) {
  for (int m = 0; m < count; ++m)
    if (maps[m].period == keys.period && maps[m].width == keys.width) return m;
  return count;
}

}  // namespace

template <class T>
bool hopper_computes(Device device, const BandLaunch<T>& call) {
#if LACUNA_SM90A
  constexpr int64_t kFewKeys = 256;  // with fewer, skipping of 16 x 16 pairs is worth more than wgmma
  const DeviceProperties& gpu = properties(device);
  if (gpu.major != 9 || gpu.minor != 0 || call.joins || call.d_qk != kWidth || call.d_v != kWidth) return false;
  KeyMap maps[kKeyMaps];
  int n_maps = 0;
  int64_t keys_of_last = 0;
  const bool fits = all_bands(call.table, [&](const Band* bands, int p) {
    const View& view = bands[p].view;
    const Strip& keys = view.keys_of_group_0;
    const Range last = keys_of(bands, p, 0, call.n - 1);
    keys_of_last += last.end - last.begin;
    if (view.residues != 1 || bands[p].scattered_before != 0 || kKeys % keys.width != 0 || keys.period > call.n ||
        keys.first + keys.width > keys.period || last.end > call.n / keys.period * keys.width)
      return false;
    const int m = find_map(maps, n_maps, keys);
    if (m == kKeyMaps) return false;
    maps[m].period = keys.period, maps[m].width = keys.width;
    n_maps = std::max(n_maps, m + 1);
    return true;
  });
  for (const HeadBands* h = call.table.heads; h != call.table.heads + call.table.n_heads; ++h)
    if (h->end - h->begin > kWorkBands) return false;
  return fits && keys_of_last >= kFewKeys * call.table.n_heads;
#else
  return false;
#endif
}

template <class T>
void hopper_forward(Stream stream, const BandLaunch<T>& call) {
  HopperForward<T> work{.call = call, .q = map_of(call, call.q, 1, 1, kQueries), .keys = {}};
  static_assert(sizeof(work) <= 4096, "the parameters of a kernel");
  int n_maps = 0;
  all_bands(call.table, [&](const Band* bands, int p) {
    const Strip& keys = bands[p].view.keys_of_group_0;
    const int m = find_map(work.keys, n_maps, keys);
    if (m == n_maps)
      work.keys[n_maps++] = {keys.period, keys.width, map_of(call, call.k, keys.period, keys.width, kKeys),
                             map_of(call, call.v, keys.period, keys.width, kKeys)};
    return true;
  });
  const int64_t blocks = call.batch * ceil_div(call.n, kQueries) * call.table.n_heads;
  launch(stream, attention_forward_hopper<T>, dim3(grid_of(blocks, "sparse_attention")), dim3(kHopperThreads),
         sizeof(Shared<T>), work);
  ++hopper_launches;
}

template bool hopper_computes(Device, const BandLaunch<__nv_bfloat16>&);
template bool hopper_computes(Device, const BandLaunch<__half>&);
template void hopper_forward(Stream, const BandLaunch<__nv_bfloat16>&);
template void hopper_forward(Stream, const BandLaunch<__half>&);

}  // namespace lacuna::gpu
