// The passes of sets.h on CUDA. Products run in float64, which of float32 numbers are exact; dtypes are looked at while the
// kernel runs, since every vector may have its own, and are the same for all threads of a block.
//
// The decision, a small quadratic program, is one thread's, in a kernel of its own: sums of several devices or processes
// meet before it.
#include "../sets.h"

#include <cuda_runtime.h>

#include "backend.h"
#include "device.cuh"

namespace gru_fast::cuda {
namespace {

inline constexpr int kUnit = 4;  // elements that one thread moves of each vector: 16 bytes of float32

using SetTable = TableOf<SetRow>;

template <class Sums>
struct SetKernelArgs {
  const SetStats* stats;
  Slots<Sums> slots;
  int count;
};

struct WrittenSq {
  double norm_sq = 0.0;
  __device__ __forceinline__ void add(const WrittenSq& other) { norm_sq += other.norm_sq; }
};

template <int N>
__device__ __forceinline__ Floats<N> load_floats(DType dtype, const void* base, int at, bool wanted) {
  if (dtype == DType::kFloat32) {
    return unpack<DType::kFloat32, N>(load<DType::kFloat32, N, Reuse::kLater>(base, at, wanted));
  }
  if (dtype == DType::kBFloat16) {
    return unpack<DType::kBFloat16, N>(load<DType::kBFloat16, N, Reuse::kLater>(base, at, wanted));
  }
  return unpack<DType::kFloat16, N>(load<DType::kFloat16, N, Reuse::kLater>(base, at, wanted));
}

__device__ __forceinline__ bool is_unit_aligned(DType dtype, const void* base) {
  return dtype == DType::kFloat32 ? is_aligned<DType::kFloat32, kUnit>(base) : is_aligned<DType::kFloat16, kUnit>(base);
}

// How many of a chunk's elements come in units; the others one by one.
__device__ __forceinline__ int whole_units(const SetRow& row, int count, int numel) {
  bool aligned = is_unit_aligned(row.grad_dtype, row.grad);
  for (int j = 0; j < count; ++j) aligned = aligned && is_unit_aligned(row.dtype(j), row.vectors[j]);
  return aligned ? numel / kUnit * kUnit : 0;
}

// ---- sums -----------------------------------------------------------------------------------------------------------

template <int C, int N>
__device__ __forceinline__ void sum_units(const SetRow& row, int64_t begin, int count, int from, int end,
                                          SetSumsOf<C>& sums) {
  const void* grad = advance(row.grad_dtype, static_cast<const void*>(row.grad), begin);
  for (int at = from + static_cast<int>(threadIdx.x) * N; at < end; at += kThreads * N) {
    Floats<N> x[C];
    const Floats<N> g = load_floats<N>(row.grad_dtype, grad, at, grad != nullptr);
#pragma unroll
    for (int j = 0; j < C; ++j) {
      const void* vector = j < count ? advance(row.dtype(j), row.vectors[j], begin) : nullptr;
      x[j] = load_floats<N>(row.dtype(j), vector, at, j < count);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const double own = g.at[i];
      sums.grad_norm_sq += own * own;
#pragma unroll
      for (int j = 0; j < C; ++j) {
        const double value = x[j].at[i];
        sums.dots[j] += own * value;
#pragma unroll
        for (int k = 0; k <= j; ++k) sums.gram[pair_at(k, j)] += static_cast<double>(x[k].at[i]) * value;
      }
    }
  }
}

// C: the most vectors. With eight there are 45 sums, which take half of the registers of a multiprocessor's thread.
template <int C>
__global__ void __launch_bounds__(kThreads, C > 4 ? 1 : 2)
    sums_kernel(__grid_constant__ Shared<SetTable> table, const SetKernelArgs<SetSumsOf<C>> args) {
  SetSumsOf<C> sums;
  walk_chunks<Direction::kForward>(table, [&](const SetRow& row, int64_t begin, int numel) {
    const int whole = whole_units(row, args.count, numel);
    sum_units<C, kUnit>(row, begin, args.count, 0, whole, sums);
    sum_units<C, 1>(row, begin, args.count, whole, numel, sums);
  });
  leave_sum(sums, args.slots);
}

// One block.
template <int C>
__global__ void __launch_bounds__(kThreads, 1) total_kernel(SetStats* out, const Filled<SetSumsOf<C>> slots) {
  const SetSumsOf<C> sums = add_slots(slots);
  if (threadIdx.x != 0) return;
  SetStats stats{};
  stats.step.grad_norm_sq = sums.grad_norm_sq;
  for (int j = 0; j < C; ++j) stats.dots[j] = sums.dots[j];
  for (int p = 0; p < C * (C + 1) / 2; ++p) stats.gram[p] = sums.gram[p];
  *out = stats;
}

template <int C>
void launch_sums(const SetPlan& plan, const SetArgs& args, SetStats& stats, const Context& context) {
  SetKernelArgs<SetSumsOf<C>> kernel_args{&stats, slots_in<SetSumsOf<C>>(context), args.count};
  const char* doing = "launching the sums of sets";
  for_each_launch(plan, [&](const SetLaunch& launch, bool) {
    kernel_args.slots.first += run(&sums_kernel<C>, launch, kernel_args, context, doing);
  });
  start(&total_kernel<C>, 1, kThreads, context, doing, &stats, filled(kernel_args.slots));
}

// ---- the decision ---------------------------------------------------------------------------------------------------

__global__ void decide_kernel(SetStats* stats, const SetArgs args) { decide_sets(args, *stats); }

__global__ void settle_kernel(SetStats* stats, double tau) {
  stats->step = gru_fast::settle(decided(*stats), stats->step, tau);
}

// ---- the write ------------------------------------------------------------------------------------------------------

// On G's grid, as it will be stored.
template <DType G>
__device__ __forceinline__ float rounded(double x) {
  return round_nearest<G>(static_cast<float>(fmin(fmax(x, -kLargest<G>), kLargest<G>)));
}

template <DType G, int N>
__device__ __forceinline__ double store_rounded(void* grad, int at, const double* values) {
  Floats<N> out;
#pragma unroll
  for (int i = 0; i < N; ++i) out.at[i] = rounded<G>(values[i]);
  const Unit<G, N> packed = pack<G, N>(out);
  store<G, N>(grad, at, packed);
  out = unpack<G, N>(packed);
  double sum = 0.0;
#pragma unroll
  for (int i = 0; i < N; ++i) sum += static_cast<double>(out.at[i]) * static_cast<double>(out.at[i]);
  return sum;
}

template <int N>
__device__ __forceinline__ double combine_units(const SetRow& row, int64_t begin, int count, double alpha,
                                                const double* betas, int from, int end) {
  void* grad = advance(row.grad_dtype, row.grad, begin);
  double sum = 0.0;
  for (int at = from + static_cast<int>(threadIdx.x) * N; at < end; at += kThreads * N) {
    const Floats<N> g = load_floats<N>(row.grad_dtype, grad, at, true);
    double out[N];
#pragma unroll
    for (int i = 0; i < N; ++i) out[i] = alpha * static_cast<double>(g.at[i]);
    for (int j = 0; j < count; ++j) {
      const double beta = betas[j];
      if (beta == 0.0) continue;
      const Floats<N> x = load_floats<N>(row.dtype(j), advance(row.dtype(j), row.vectors[j], begin), at, true);
#pragma unroll
      for (int i = 0; i < N; ++i) out[i] = fma(beta, static_cast<double>(x.at[i]), out[i]);
    }
    if (row.grad_dtype == DType::kFloat32) {
      sum += store_rounded<DType::kFloat32, N>(grad, at, out);
    } else if (row.grad_dtype == DType::kBFloat16) {
      sum += store_rounded<DType::kBFloat16, N>(grad, at, out);
    } else {
      sum += store_rounded<DType::kFloat16, N>(grad, at, out);
    }
  }
  return sum;
}

__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    combine_kernel(__grid_constant__ Shared<SetTable> table, const SetKernelArgs<WrittenSq> args) {
  __shared__ double betas[kMaxVectors];
  __shared__ double alpha;
  __shared__ bool writes;
  if (threadIdx.x == 0) {
    alpha = args.stats->step.alpha;
    writes = decided(*args.stats).writes();
    for (int j = 0; j < kMaxVectors; ++j) betas[j] = args.stats->betas[j];
  }
  __syncthreads();
  WrittenSq written;
  if (!writes) return leave_sum(written, args.slots);
  walk_chunks<Direction::kBackward>(table, [&](const SetRow& row, int64_t begin, int numel) {
    if (row.grad == nullptr) return;
    const int whole = whole_units(row, args.count, numel);
    written.norm_sq += combine_units<kUnit>(row, begin, args.count, alpha, betas, 0, whole);
    written.norm_sq += combine_units<1>(row, begin, args.count, alpha, betas, whole, numel);
  });
  leave_sum(written, args.slots);
}

// One block.
__global__ void __launch_bounds__(kThreads, 1) written_kernel(SetStats* stats, const Filled<WrittenSq> slots) {
  const WrittenSq written = add_slots(slots);
  if (threadIdx.x == 0) stats->step.written_norm_sq = written.norm_sq;
}

template <DType G>
__device__ __forceinline__ void rescale_chunk(void* base, int64_t begin, int numel, float factor) {
  void* grad = advance<G>(base, begin);
  for (int at = static_cast<int>(threadIdx.x); at < numel; at += kThreads) {
    Floats<1> x = unpack<G, 1>(load<G, 1, Reuse::kLater>(grad, at, true));
    x.at[0] = truncate<G>(factor * x.at[0]);
    store<G, 1>(grad, at, pack<G, 1>(x));
  }
}

__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    rescale_kernel(__grid_constant__ Shared<SetTable> table, const SetStats* stats) {
  const auto factor = static_cast<float>(stats->step.rescale);
  if (factor == 1.0f) return;
  walk_chunks<Direction::kForward>(table, [&](const SetRow& row, int64_t begin, int numel) {
    if (row.grad == nullptr) return;
    if (row.grad_dtype == DType::kFloat32) {
      rescale_chunk<DType::kFloat32>(row.grad, begin, numel, factor);
    } else if (row.grad_dtype == DType::kBFloat16) {
      rescale_chunk<DType::kBFloat16>(row.grad, begin, numel, factor);
    } else {
      rescale_chunk<DType::kFloat16>(row.grad, begin, numel, factor);
    }
  });
}

}  // namespace

size_t scratch_bytes(const SetPlan& plan) { return kHeaderBytes + max_slots(plan) * sizeof(SetSums); }

PlanLimits set_limits() { return {kChunkNumel, kMaxRows<SetRow>}; }

void reduce(const SetPlan& plan, const SetArgs& args, SetStats& stats, const Context& context) {
  const DeviceGuard guard(context.device);
  if (args.count <= 2) return launch_sums<2>(plan, args, stats, context);
  if (args.count <= 4) return launch_sums<4>(plan, args, stats, context);
  launch_sums<kMaxVectors>(plan, args, stats, context);
}

void decide(const SetPlan&, const SetArgs& args, SetStats& stats, const Context& context) {
  const DeviceGuard guard(context.device);
  start(&decide_kernel, 1, 1, context, "launching the decision of sets", &stats, args);
}

void apply(const SetPlan& plan, const SetArgs& args, SetStats& stats, const Context& context) {
  const DeviceGuard guard(context.device);
  if (plan.launches.empty()) return;
  SetKernelArgs<WrittenSq> kernel_args{&stats, slots_in<WrittenSq>(context), args.count};
  const char* doing = "launching the write of sets";
  for (const SetLaunch& launch : plan.launches) {
    kernel_args.slots.first += run(&combine_kernel, launch, kernel_args, context, doing);
  }
  start(&written_kernel, 1, kThreads, context, doing, &stats, filled(kernel_args.slots));
}

void finish(const SetPlan& plan, const SetArgs& args, SetStats& stats, const Context& context) {
  const DeviceGuard guard(context.device);
  start(&settle_kernel, 1, 1, context, "settling the step of sets", &stats, args.tau);
  for (const SetLaunch& launch : plan.launches) {
    run(&rescale_kernel, launch, static_cast<const SetStats*>(&stats), context, "launching the rescale of sets",
        Grid::kSmall);
  }
}

}  // namespace gru_fast::cuda
