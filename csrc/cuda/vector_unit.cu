// The passes of task_vector.h on CUDA. Reduce: reads learned, origin, total, own. Add: reads them again (the gradients
// only after a projection) and mean; writes mean, and origin over learned. T and r live in registers alone.
//
// Kernels, in this order on the stream: vector_sums, vector_total (adds up what their blocks have left, and takes the sums
// once more where float32 products cannot give them), measure and measured (leave at once unless |T~| has cancelled in the
// sums), vector_add, settle. The coefficients never visit the host.
#include <cuda_runtime.h>

#include "backend.h"
#include "device.cuh"

namespace gru_fast::cuda {
namespace {

// A chunk; pointers at its first element. Gradients that are null count as zeros.
struct VectorChunk {
  void* learned;
  const void* origin;
  const void* total;
  const void* own;
  float* mean;
};

template <DType P, DType A, DType B>
__device__ __forceinline__ VectorChunk chunk_at(const VectorRow& row, int64_t begin) {
  return {advance<P>(row.learned, begin), advance<P>(row.origin, begin), advance<A>(row.total, begin),
          advance<B>(row.own, begin), advance<DType::kFloat32>(row.mean, begin)};
}

// Elements in a unit: 16 bytes of the widest of the tensors.
template <DType... T>
inline constexpr int kVectorUnitNumel = kUnitBytes / (((kSize<T> == 4) || ...) ? 4 : 2);
inline constexpr int kVectorUnits = 2;  // units in flight for each thread: up to 128 bytes in reduce, 160 in add

template <DType P, DType A, DType B, int N>
__device__ __forceinline__ bool is_aligned_for(const VectorChunk& chunk) {
  return is_aligned<P, N>(chunk.learned) && is_aligned<P, N>(chunk.origin) && is_aligned<A, N>(chunk.total) &&
         is_aligned<B, N>(chunk.own);
}

template <int N>
__device__ __forceinline__ Floats<N> minus(const Floats<N>& left, const Floats<N>& right) {
  Floats<N> out;
#pragma unroll
  for (int i = 0; i < N; ++i) out.at[i] = left.at[i] - right.at[i];
  return out;
}

// ---- reduce ---------------------------------------------------------------------------------------------------------

struct VectorSumsArgs {
  Slots<Sums> slots;
  Header* header;  // cleared, for the kernel that comes next
};

// Elements [begin, end) of a chunk, a multiple of N.
template <DType P, DType A, DType B, int N, int K>
__device__ __forceinline__ void sum_units(const VectorChunk& chunk, int begin, int end, Sums& total) {
  for (int first = begin + static_cast<int>(threadIdx.x) * N; first < end; first += K * kThreads * N) {
    Unit<P, N> learned[K], origin[K];
    Unit<A, N> all[K];
    Unit<B, N> own[K];
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int at = first + k * kThreads * N;
      learned[k] = load<P, N, Reuse::kLater>(chunk.learned, at, at < end);
      origin[k] = load<P, N, Reuse::kLater>(chunk.origin, at, at < end);
      all[k] = load<A, N, Reuse::kLater>(chunk.total, at, chunk.total != nullptr && at < end);
      own[k] = load<B, N, Reuse::kLater>(chunk.own, at, chunk.own != nullptr && at < end);
    }
    float dot = 0.0f, rest_sq = 0.0f, task_sq = 0.0f;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const Floats<N> task = minus(unpack<P, N>(learned[k]), unpack<P, N>(origin[k]));
      const Floats<N> rest = minus(unpack<A, N>(all[k]), unpack<B, N>(own[k]));
#pragma unroll
      for (int i = 0; i < N; ++i) {
        dot = fmaf(task.at[i], rest.at[i], dot);
        rest_sq = fmaf(rest.at[i], rest.at[i], rest_sq);
        task_sq = fmaf(task.at[i], task.at[i], task_sq);
      }
      if ((k + 1) * N % kRunLength == 0 || k + 1 == K) {
        total.add({dot, rest_sq, task_sq, 0.0});
        dot = rest_sq = task_sq = 0.0f;
      }
    }
  }
}

template <DType P, DType A, DType B>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    vector_sums_kernel(__grid_constant__ Shared<VectorTable> table, const VectorSumsArgs args) {
  constexpr int N = kVectorUnitNumel<P, A, B>;
  static_assert(N <= kRunLength);
  if (threadIdx.x == 0 && blockIdx.x == 0) *args.header = Header{};
  Sums total;
  walk_chunks<Direction::kForward>(table, [&](const VectorRow& row, int64_t begin, int numel) {
    const VectorChunk chunk = chunk_at<P, A, B>(row, begin);
    const int whole = is_aligned_for<P, A, B, N>(chunk) ? numel / N * N : 0;
    sum_units<P, A, B, N, kVectorUnits>(chunk, 0, whole, total);
    sum_units<P, A, B, 1, kNumSingles>(chunk, whole, numel, total);
  });
  leave_sum(total, args.slots);
}

// ---- sums in float64 ------------------------------------------------------------------------------------------------
// Rare, so one loop for all kinds, and for both uses: the sums again, and |T~|^2 of T + r_weight * r.

__device__ __forceinline__ Sums wide_sums_of(const VectorTable& table, const VectorKind& kind, double r_weight) {
  Sums total;
  walk_chunks<Direction::kBackward>(table, [&](const VectorRow& row, int64_t begin, int numel) {
    const void* learned = advance(kind.param, static_cast<const void*>(row.learned), begin);
    const void* origin = advance(kind.param, row.origin, begin);
    const void* all = advance(kind.total, row.total, begin);
    const void* own = advance(kind.own, row.own, begin);
#pragma unroll 1
    for (int at = static_cast<int>(threadIdx.x); at < numel; at += kThreads) {
      const double rest = load_one(kind.total, all, at) - load_one(kind.own, own, at);
      const double plain = load_one(kind.param, learned, at) - load_one(kind.param, origin, at);
      const double task = fma(r_weight, rest, plain);
      total.add({task * rest, rest * rest, task * task, 0.0});
    }
  });
  return total;
}

struct VectorTotalArgs {
  Stats* stats;
  Filled<Sums> sums;
  Slots<Sums> wide_slots;
  uint32_t* wide_ticket;  // null except in the last launch, which writes `stats`
  int64_t plan_numel;
  VectorKind kind;
  bool has_rest;
};

__device__ __forceinline__ void write_sums(Stats* to, const Sums& sums, bool are_wide) {
  Stats stats{};
  stats.dot = sums.dot;
  stats.ema_norm_sq = sums.ema_norm_sq;
  stats.grad_norm_sq = sums.grad_norm_sq;
  stats.wide_sums = are_wide ? 1.0 : 0.0;
  *to = stats;
}

// Every block adds up the slots, and so decides alike.
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    vector_total_kernel(__grid_constant__ Shared<VectorTable> table, const VectorTotalArgs args) {
  const Sums sums = from_thread_0(add_slots(args.sums));
  if (!needs_wide_vector_sums(sums, args.plan_numel, args.has_rest)) {
    if (threadIdx.x == 0 && blockIdx.x == 0 && args.wide_ticket != nullptr) write_sums(args.stats, sums, false);
    return;
  }
  Sums wide = wide_sums_of(table, args.kind, 0.0);
  if (sum_grid(wide, args.wide_slots, args.wide_ticket)) write_sums(args.stats, wide, true);
}

struct MeasureArgs {
  const Stats* stats;
  Slots<Sums> slots;
  VectorArgs unit;
  VectorKind kind;
};

__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    measure_kernel(__grid_constant__ Shared<VectorTable> table, const MeasureArgs args) {
  const VectorDecision decision = decide_vector(*args.stats, args.unit);
  if (!decision.measure) return;
  leave_sum(wide_sums_of(table, args.kind, decision.r_weight), args.slots);
}

// One block.
__global__ void __launch_bounds__(kThreads, 1)
    measured_kernel(Stats* stats, const VectorArgs unit, const Filled<Sums> slots) {
  if (!decide_vector(*stats, unit).measure) return;
  const Sums total = add_slots(slots);
  if (threadIdx.x == 0) stats->written_norm_sq = total.grad_norm_sq;
}

// ---- add ------------------------------------------------------------------------------------------------------------

struct VectorAddArgs {
  const Stats* stats;
  VectorArgs unit;
};

struct AddCoefficients {
  double scale, shift;
  bool adds, wide, restore;
};

// What the sums say, the same for all threads of the block.
__device__ __forceinline__ AddCoefficients block_coefficients(const VectorAddArgs& args) {
  __shared__ AddCoefficients shared;
  if (threadIdx.x == 0) {
    const VectorDecision decision = decide_vector(*args.stats, args.unit);
    shared = {decision.scale, decision.shift, decision.adds(), needs_wide_add(decision), args.unit.restore};
  }
  __syncthreads();
  return shared;
}

// Elements [begin, end) of a chunk, a multiple of N.
template <DType P, DType A, DType B, int N, int K>
__device__ __forceinline__ void add_units(const VectorChunk& chunk, float scale, float shift, bool restore, int begin,
                                          int end) {
  const bool has_total = shift != 0.0f && chunk.total != nullptr, has_own = shift != 0.0f && chunk.own != nullptr;
  for (int first = begin + static_cast<int>(threadIdx.x) * N; first < end; first += K * kThreads * N) {
    Unit<P, N> learned[K], origin[K];
    Unit<A, N> all[K];
    Unit<B, N> own[K];
    Unit<DType::kFloat32, N> mean[K];
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int at = first + k * kThreads * N;
      learned[k] = load<P, N, Reuse::kLater>(chunk.learned, at, at < end);
      origin[k] = load<P, N, Reuse::kNever>(chunk.origin, at, at < end);
      all[k] = load<A, N, Reuse::kNever>(chunk.total, at, has_total && at < end);
      own[k] = load<B, N, Reuse::kNever>(chunk.own, at, has_own && at < end);
      mean[k] = load<DType::kFloat32, N, Reuse::kLater>(chunk.mean, at, at < end);
    }
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int at = first + k * kThreads * N;
      const Floats<N> task = minus(unpack<P, N>(learned[k]), unpack<P, N>(origin[k]));
      const Floats<N> rest = minus(unpack<A, N>(all[k]), unpack<B, N>(own[k]));
      Floats<N> sum = unpack<DType::kFloat32, N>(mean[k]);
#pragma unroll
      for (int i = 0; i < N; ++i) sum.at[i] = fmaf(shift, rest.at[i], fmaf(scale, task.at[i], sum.at[i]));
      if (at < end) {
        store<DType::kFloat32, N>(chunk.mean, at, pack<DType::kFloat32, N>(sum));
        if (restore) store<P, N>(chunk.learned, at, origin[k]);
      }
    }
  }
}

// One element at a time, in float64 where something is added at all: rare, and small so that it costs the ordinary path
// no registers.
template <DType P, DType A, DType B>
__device__ __forceinline__ void add_slowly(const VectorChunk& chunk, const AddCoefficients& c, int numel) {
#pragma unroll 1
  for (int at = static_cast<int>(threadIdx.x); at < numel; at += kThreads) {
    const Unit<P, 1> origin = load<P, 1, Reuse::kNever>(chunk.origin, at, true);
    if (c.adds) {
      const float task =
          unpack<P, 1>(load<P, 1, Reuse::kLater>(chunk.learned, at, true)).at[0] - unpack<P, 1>(origin).at[0];
      const bool wanted = c.shift != 0.0;
      const float rest =
          unpack<A, 1>(load<A, 1, Reuse::kNever>(chunk.total, at, wanted && chunk.total != nullptr)).at[0] -
          unpack<B, 1>(load<B, 1, Reuse::kNever>(chunk.own, at, wanted && chunk.own != nullptr)).at[0];
      const double added = fma(c.scale, static_cast<double>(task), c.shift * static_cast<double>(rest));
      chunk.mean[at] = static_cast<float>(static_cast<double>(chunk.mean[at]) + added);
    }
    if (c.restore) store<P, 1>(chunk.learned, at, origin);
  }
}

template <DType P, DType A, DType B>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    vector_add_kernel(__grid_constant__ Shared<VectorTable> table, const VectorAddArgs args) {
  constexpr int N = kVectorUnitNumel<DType::kFloat32>;  // that of the mean
  const AddCoefficients c = block_coefficients(args);
  if (!c.adds && !c.restore) return;
  walk_chunks<Direction::kBackward>(table, [&](const VectorRow& row, int64_t begin, int numel) {
    const VectorChunk chunk = chunk_at<P, A, B>(row, begin);
    if (!c.adds || c.wide) return add_slowly<P, A, B>(chunk, c, numel);
    const auto scale = static_cast<float>(c.scale), shift = static_cast<float>(c.shift);
    const bool aligned = is_aligned_for<P, A, B, N>(chunk) && is_aligned<DType::kFloat32, N>(chunk.mean);
    const int whole = aligned ? numel / N * N : 0;
    add_units<P, A, B, N, kVectorUnits>(chunk, scale, shift, c.restore, 0, whole);
    add_units<P, A, B, 1, kNumSingles>(chunk, scale, shift, c.restore, whole, numel);
  });
}

__global__ void settle_kernel(Stats* stats, const VectorArgs unit) { *stats = settle_vector(*stats, unit); }

// ---- launchers ------------------------------------------------------------------------------------------------------

}  // namespace

size_t scratch_bytes(const VectorPlan& plan) { return kHeaderBytes + max_slots(plan) * 2 * sizeof(Sums); }

void reduce(const VectorPlan& plan, const VectorArgs&, const Context& context) {
  const DeviceGuard guard(context.device);
  Header* header = header_in(context);
  VectorSumsArgs kernel_args{slots_in<Sums>(context), header};
  for_each_launch(plan, [&](const VectorLaunch& launch, bool) {
    const auto kernel =
        with_kind(launch.kind, [&]<DType P, DType A, DType B>() { return &vector_sums_kernel<P, A, B>; });
    kernel_args.slots.first += run(kernel, launch, kernel_args, context, "launching vector_sums");
  });
  VectorTotalArgs total_args{context.stats,
                             filled(kernel_args.slots),
                             slots_in<Sums>(context, max_slots(plan) * sizeof(Sums)),
                             nullptr,
                             plan.numel,
                             {},
                             has_rest(plan)};
  for_each_launch(plan, [&](const VectorLaunch& launch, bool is_last) {
    total_args.kind = launch.kind;
    total_args.wide_ticket = is_last ? &header->wide_ticket : nullptr;
    total_args.wide_slots.first +=
        run(&vector_total_kernel, launch, total_args, context, "launching vector_total", Grid::kSmall);
  });
}

void measure(const VectorPlan& plan, const VectorArgs& args, const Context& context) {
  const DeviceGuard guard(context.device);
  if (plan.numel == 0) return;
  MeasureArgs kernel_args{context.stats, slots_in<Sums>(context), args, {}};
  for (const VectorLaunch& launch : plan.launches) {
    kernel_args.kind = launch.kind;
    kernel_args.slots.first += run(&measure_kernel, launch, kernel_args, context, "launching measure", Grid::kSmall);
  }
  start(&measured_kernel, 1, kThreads, context, "launching measured", context.stats, args, filled(kernel_args.slots));
}

void add(const VectorPlan& plan, const VectorArgs& args, const Context& context) {
  const DeviceGuard guard(context.device);
  for (auto launch = plan.launches.rbegin(); launch != plan.launches.rend(); ++launch) {
    const auto kernel =
        with_kind(launch->kind, [&]<DType P, DType A, DType B>() { return &vector_add_kernel<P, A, B>; });
    run(kernel, *launch, VectorAddArgs{context.stats, args}, context, "launching vector_add");
  }
  start(&settle_kernel, 1, 1, context, "launching settle", context.stats, args);
}

PlanLimits vector_limits() { return {kChunkNumel, kMaxRows<VectorRow>}; }

}  // namespace gru_fast::cuda
