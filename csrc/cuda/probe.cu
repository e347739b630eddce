// Bench only: the memory traffic of the two passes and as little else as possible, over the same chunks with the same
// accesses. What a pass takes longer than its probe is not memory. Values do not change: everything that is read joins
// what is written through a mask that is zero, which the compiler does not know.
#include <cuda_runtime.h>

#include "backend.h"
#include "device.cuh"

namespace gru_fast::cuda {
namespace {

struct ProbeArgs {
  uint32_t zero;
};

// All bits of a unit in one word.
template <class U>
__device__ __forceinline__ uint32_t mix(U unit) {
  if constexpr (sizeof(U) < 4) {
    return unit;
  } else {
    const auto words = __builtin_bit_cast(Words<sizeof(U) / 4>, unit);
    uint32_t all = 0;
#pragma unroll
    for (const uint32_t word : words.at) all ^= word;
    return all;
  }
}

// The unit with every word xored with `bits`.
template <class U>
__device__ __forceinline__ U join(U unit, uint32_t bits) {
  if constexpr (sizeof(U) < 4) {
    return static_cast<U>(unit ^ bits);
  } else {
    auto words = __builtin_bit_cast(Words<sizeof(U) / 4>, unit);
#pragma unroll
    for (uint32_t& word : words.at) word ^= bits;
    return __builtin_bit_cast(U, words);
  }
}

struct ReduceTraffic {
  static constexpr Direction kDirection = Direction::kForward;

  template <DType G, DType E, int N, int K>
  static __device__ __forceinline__ void run(const void* grad, const void* retain, void* ema, uint32_t zero, int begin,
                                             int end) {
    for (int first = begin + static_cast<int>(threadIdx.x) * N; first < end; first += K * kThreads * N) {
      Unit<G, N> g[K], r[K];
      Unit<E, N> e[K];
#pragma unroll
      for (int k = 0; k < K; ++k) {
        const int at = first + k * kThreads * N;
        e[k] = load<E, N, Reuse::kLater>(ema, at, at < end);
        r[k] = load<G, N, Reuse::kNever>(retain, at, retain != nullptr && at < end);
        g[k] = load<G, N, Reuse::kLater>(grad, at, grad != nullptr && at < end);
      }
#pragma unroll
      for (int k = 0; k < K; ++k) {
        const int at = first + k * kThreads * N;
        if (at < end) store<E, N>(ema, at, join(e[k], (mix(g[k]) ^ mix(r[k])) & zero));
      }
    }
  }
};

struct ApplyTraffic {
  static constexpr Direction kDirection = Direction::kBackward;

  template <DType G, DType E, int N, int K>
  static __device__ __forceinline__ void run(void* grad, const void*, const void* ema, uint32_t zero, int begin,
                                             int end) {
    if (grad == nullptr) return;
    for (int first = begin + static_cast<int>(threadIdx.x) * N; first < end; first += K * kThreads * N) {
      Unit<G, N> g[K];
      Unit<E, N> e[K];
#pragma unroll
      for (int k = 0; k < K; ++k) {
        const int at = first + k * kThreads * N;
        g[k] = load<G, N, Reuse::kLater>(grad, at, at < end);
        e[k] = load<E, N, Reuse::kNever>(ema, at, at < end);
      }
#pragma unroll
      for (int k = 0; k < K; ++k) {
        const int at = first + k * kThreads * N;
        if (at < end) store<G, N>(grad, at, join(g[k], mix(e[k]) & zero));
      }
    }
  }
};

template <class Traffic, DType G, DType E>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    probe_kernel(__grid_constant__ Shared<Table> table, const ProbeArgs args) {
  constexpr int N = kUnitNumel<G, E>;
  walk_chunks<Traffic::kDirection>(table, [&](const Row& row, int64_t begin, int numel) {
    if (row.ema == nullptr) return;
    void* grad = advance<G>(row.grad, begin);
    const void* retain = advance<G>(row.retain, begin);
    void* ema = advance<E>(row.ema, begin);
    const bool aligned = is_aligned<G, N>(grad) && is_aligned<G, N>(retain) && is_aligned<E, N>(ema);
    const int whole = aligned ? numel / N * N : 0;
    Traffic::template run<G, E, N, kNumUnits<G, E>>(grad, retain, ema, args.zero, 0, whole);
    Traffic::template run<G, E, 1, kNumSingles>(grad, retain, ema, args.zero, whole, numel);
  });
}

// Bits are moved, not numbers: float16 takes the kernels of bfloat16.
template <class Traffic>
void launch_traffic(const Launch& launch, const Context& context) {
  const auto bits_only = [](DType dtype) { return dtype == DType::kFloat16 ? DType::kBFloat16 : dtype; };
  using enum DType;
  auto kernel = &probe_kernel<Traffic, kFloat32, kFloat32>;
  if (bits_only(launch.kind.ema) == kBFloat16) {
    kernel = &probe_kernel<Traffic, kBFloat16, kBFloat16>;
  } else if (bits_only(launch.kind.grad) == kBFloat16) {
    kernel = &probe_kernel<Traffic, kBFloat16, kFloat32>;
  }
  run(kernel, launch, ProbeArgs{0}, context, "launching probe");
}

}  // namespace

void probe(const Plan& plan, bool full, const Context& context) {
  const DeviceGuard guard(context.device);
  for (const Launch& launch : plan.launches) launch_traffic<ReduceTraffic>(launch, context);
  if (!full) return;
  for (auto launch = plan.launches.rbegin(); launch != plan.launches.rend(); ++launch) {
    launch_traffic<ApplyTraffic>(*launch, context);
  }
}

}  // namespace gru_fast::cuda
