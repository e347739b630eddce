// out <- x_weight * x + y_weight * y on CUDA: a model minus a vector, a model between two. Reads x (and y if its weight
// is not 0) once and writes out once, rounded to nearest.
#include <cuda_runtime.h>

#include "backend.h"
#include "device.cuh"

namespace gru_fast::cuda {
namespace {

// Elements [begin, end) of a chunk, a multiple of N.
template <DType G, DType E, int N, int K>
__device__ __forceinline__ void blend_units(void* out, const void* x, const void* y, const BlendArgs& args, int begin,
                                            int end) {
  const bool has_y = args.y_weight != 0.0f;
  for (int first = begin + static_cast<int>(threadIdx.x) * N; first < end; first += K * kThreads * N) {
    Unit<G, N> xs[K];
    Unit<E, N> ys[K];
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int at = first + k * kThreads * N;
      xs[k] = load<G, N, Reuse::kNever>(x, at, at < end);
      ys[k] = load<E, N, Reuse::kNever>(y, at, has_y && at < end);
    }
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int at = first + k * kThreads * N;
      Floats<N> sum = unpack<G, N>(xs[k]);
      const Floats<N> other = unpack<E, N>(ys[k]);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        sum.at[i] = round_nearest<G>(fmaf(args.y_weight, other.at[i], args.x_weight * sum.at[i]));
      }
      if (at < end) store<G, N>(out, at, pack<G, N>(sum));
    }
  }
}

template <DType G, DType E>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    blend_kernel(__grid_constant__ Shared<Table> table, const BlendArgs args) {
  constexpr int N = kUnitNumel<G, E>;
  walk_chunks<Direction::kForward>(table, [&](const Row& row, int64_t begin, int numel) {
    void* out = advance<G>(row.grad, begin);
    const void* x = advance<G>(row.retain, begin);
    const void* y = advance<E>(static_cast<const void*>(row.ema), begin);
    const bool aligned = is_aligned<G, N>(out) && is_aligned<G, N>(x) && is_aligned<E, N>(y);
    const int whole = aligned ? numel / N * N : 0;
    blend_units<G, E, N, kNumUnits<G, E>>(out, x, y, args, 0, whole);
    blend_units<G, E, 1, kNumSingles>(out, x, y, args, whole, numel);
  });
}

}  // namespace

void blend(const Plan& plan, const BlendArgs& args, const Context& context) {
  const DeviceGuard guard(context.device);
  for (const Launch& launch : plan.launches) {
    const auto kernel = with_kind(launch.kind, [&]<DType G, DType E>() { return &blend_kernel<G, E>; });
    run(kernel, launch, args, context, "launching blend");
  }
}

}  // namespace gru_fast::cuda
