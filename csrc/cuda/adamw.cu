// The passes of optim.h on CUDA, and settle, which completes the statistics of a rectified step without g being written.
//
// Kernels of a step with its update rectified, in this order on the stream: measure (leaves at once unless |g'| has
// cancelled in the sums), settle, adamw (M, V and the sums of U), update_total, adamw (theta). None of what they decide
// visits the host. Compiled without contraction, as the CPU's: optim.h spells its fused
// products out.
#include <cuda_runtime.h>

#include "../optim.h"
#include "../rules.h"
#include "backend.h"
#include "device.cuh"

namespace gru_fast::cuda {
namespace {

using AdamWTable = TableOf<AdamWRow>;
static_assert(sizeof(AdamWTable) == kTableHeaderBytes + kMaxRows<AdamWRow> * sizeof(AdamWRow));

struct Math {
  __device__ __forceinline__ static float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
  __device__ __forceinline__ static float root(float x) { return sqrtf(x); }
};

struct AdamWKernelArgs {
  AdamWArgs step;
  const AdamWScalars* scalars;
  const Stats* stats;
  const UpdateStats* update;
  const double* floor;
  Slots<UpdateStats> slots;
  bool keeps;  // what a pass with sums makes of M and V is written
};

// ---- what a block knows of a chunk ----------------------------------------------------------------------------------

inline constexpr int kStreams = 4;  // M, V, theta, and what is fed back into M

struct ChunkState {
  AdamWFactors factors;
  double dot, step_sq, ema_sq, reach, change_sq, largest;  // from sums of U and the scaled e to UpdateStats
  uint64_t keys[kStreams];
};

__device__ __forceinline__ void prepare(ChunkState& state, const AdamWRow& row, int64_t begin,
                                        const AdamWKernelArgs& args, double lambda) {
  const AdamWScalars scalars = args.scalars[row.index];
  AdamWContext context{};
  context.floor = args.floor;
  state.factors = factors_of(scalars, args.step, context, gradient_factors(args.stats), lambda);
  const UpdateStats ones{1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0};
  const UpdateStats units = in_units(ones, scalars, state.factors.scale);
  state.dot = units.dot;
  state.step_sq = units.step_norm_sq;
  state.ema_sq = units.ema_norm_sq;
  state.reach = units.reach;
  state.change_sq = units.change_sq;
  state.largest = units.largest;
  const auto tile = static_cast<uint64_t>(begin / kRoundingTile);
  for (int stream = 0; stream < kStreams; ++stream) {
    state.keys[stream] =
        tile_key(step_key(args.step.seed + rounding_stream(stream), static_cast<uint64_t>(scalars.step)),
                 row.rounding_key, tile);
  }
}

// On the grid of T. `at`: the first element's place in its tile, a multiple of N.
template <DType T, int N>
__device__ __forceinline__ Floats<N> rounded(Floats<N> x, uint64_t key, uint32_t at) {
  if constexpr (T == DType::kFloat32) return x;
  static_assert(N == 1 || N == 4);
  uint64_t bits = quad_bits(static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32), at / 4);
  if constexpr (N == 1) bits >>= 16 * (at % 4);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const uint32_t random = static_cast<uint32_t>(bits >> 16 * i) & 0xffffu;
    if constexpr (T == DType::kBFloat16) {
      x.at[i] = float_of(round_bfloat16_stochastic(bits_of(x.at[i]), random));
    } else {
      x.at[i] = round_float16_stochastic(x.at[i], random);
    }
  }
  return x;
}

// ---- one pass -------------------------------------------------------------------------------------------------------

struct AdamWChunk {
  void* param;
  void* grad;
  void* exp_avg;
  void* exp_avg_sq;
  const void* ema;
};

template <DType P, DType T, DType E>
__device__ __forceinline__ AdamWChunk chunk_at(const AdamWRow& row, int64_t begin) {
  return {advance<P>(row.param, begin), advance<P>(row.grad, begin), advance<T>(row.exp_avg, begin),
          advance<T>(row.exp_avg_sq, begin), advance<E>(row.ema, begin)};
}

template <DType P, DType T, DType E, int N>
__device__ __forceinline__ bool is_aligned_for(const AdamWChunk& chunk) {
  return is_aligned<P, N>(chunk.param) && is_aligned<P, N>(chunk.grad) && is_aligned<T, N>(chunk.exp_avg) &&
         is_aligned<T, N>(chunk.exp_avg_sq) && is_aligned<E, N>(chunk.ema);
}

// What a thread has summed up; UpdateStats in fewer registers.
struct ThreadSums {
  double dot = 0.0, step_norm_sq = 0.0, ema_norm_sq = 0.0, reach = 0.0, change_sq = 0.0, denominator_sq = 0.0;
  float largest = 0.0f;  // of the scaled e
};

template <int N>
__device__ __forceinline__ void add_to_sums(ThreadSums& total, const ChunkState& state, const Floats<N>& u,
                                            const Floats<N>& e, const Floats<N>& d) {
  const AdamWFactors& c = state.factors;
  float dot = 0.0f, update = 0.0f, ema = 0.0f, reach = 0.0f, change = 0.0f, size = 0.0f;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    dot = fmaf(u.at[i], e.at[i], dot);
    update = fmaf(u.at[i], u.at[i], update);
    ema = fmaf(e.at[i], e.at[i], ema);
    const float part = c.adam ? e.at[i] / (d.at[i] + c.floor) : e.at[i];
    reach = fmaf(e.at[i], part, reach);
    change = fmaf(part, part, change);
    size = fmaf(d.at[i], d.at[i], size);
    total.largest = fmaxf(total.largest, fabsf(part));
  }
  total.dot += state.dot * dot;
  total.step_norm_sq += state.step_sq * update;
  total.ema_norm_sq += state.ema_sq * ema;
  total.reach += state.reach * reach;
  total.change_sq += state.change_sq * change;
  if (c.adam) total.denominator_sq += size;
}

// Elements [begin, end) of a chunk, a multiple of N. `tile_at`: of the chunk's first element in its tile.
template <DType P, DType T, DType E, AdamWPass kPass, int N>
__device__ __forceinline__ void pass_units(const AdamWChunk& chunk, const ChunkState& state,
                                           const AdamWKernelArgs& args, uint32_t tile_at, int begin, int end,
                                           ThreadSums& total) {
  const AdamWFactors& c = state.factors;
  for (int at = begin + static_cast<int>(threadIdx.x) * N; at < end; at += kThreads * N) {
    const uint32_t place = tile_at + static_cast<uint32_t>(at);
    const auto stored_grad =
        load<P, N, Reuse::kNever>(chunk.grad, at, kPass != AdamWPass::kUpdate && chunk.grad != nullptr);
    const auto stored_m = load<T, N, Reuse::kLater>(chunk.exp_avg, at, true);
    const auto stored_v = load<T, N, Reuse::kLater>(chunk.exp_avg_sq, at, true);
    const auto stored_e = load<E, N, Reuse::kLater>(chunk.ema, at, reads_ema(kPass, c) && chunk.ema != nullptr);
    const auto stored_p = load<P, N, Reuse::kLater>(chunk.param, at, reads_param(kPass, c));
    Floats<N> m = unpack<T, N>(stored_m), v = unpack<T, N>(stored_v), e = unpack<E, N>(stored_e), d;
    if constexpr (kPass != AdamWPass::kUpdate) {
      Floats<N> g = unpack<P, N>(stored_grad);
#pragma unroll
      for (int i = 0; i < N; ++i) {
        g.at[i] = fmaf(c.beta, e.at[i], c.alpha * g.at[i]);
        m.at[i] = first_moment<Math>(c, g.at[i], m.at[i]);
        v.at[i] = second_moment<Math>(c, g.at[i], v.at[i]);
      }
      m = rounded<T, N>(m, state.keys[0], place);
      v = rounded<T, N>(v, state.keys[1], place);
      if (args.keeps) {
        store<T, N>(chunk.exp_avg, at, pack<T, N>(m));
        store<T, N>(chunk.exp_avg_sq, at, pack<T, N>(v));
        if (args.step.write_grad && chunk.grad != nullptr) {
#pragma unroll
          for (int i = 0; i < N; ++i) g.at[i] = round_nearest<P>(g.at[i]);
          store<P, N>(chunk.grad, at, pack<P, N>(g));
        }
      }
    }
    Floats<N> theta = unpack<P, N>(stored_p);
#pragma unroll
    for (int i = 0; i < N; ++i) d.at[i] = denominator<Math>(c, v.at[i]);
    if constexpr (kPass == AdamWPass::kMoments) {
#pragma unroll
      for (int i = 0; i < N; ++i) {
        theta.at[i] = update_of<Math>(c, theta.at[i], m.at[i], d.at[i]);
        e.at[i] *= c.scale;
      }
      add_to_sums<N>(total, state, theta, e, d);
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) theta.at[i] = moved(c, theta.at[i], m.at[i], d.at[i]);
      if (c.shift != 0.0f) {
#pragma unroll
        for (int i = 0; i < N; ++i) {
          e.at[i] *= c.scale;
          if (c.adam) e.at[i] = e.at[i] / (d.at[i] + c.floor);
          theta.at[i] = fmaf(-c.shift, e.at[i], theta.at[i]);
        }
        if (c.feed != 0.0f) {
#pragma unroll
          for (int i = 0; i < N; ++i) m.at[i] = fmaf(c.feed * d.at[i], e.at[i], m.at[i]);
          store<T, N>(chunk.exp_avg, at, pack<T, N>(rounded<T, N>(m, state.keys[3], place)));
        }
      }
      store<P, N>(chunk.param, at, pack<P, N>(rounded<P, N>(theta, state.keys[2], place)));
    }
  }
}

inline constexpr int kAdamWUnit = 4;  // elements: 16 bytes of float32, 8 of 16 bits; more would not fit the registers

// Six sums in float64 take the registers of a fourth block.
template <AdamWPass kPass>
inline constexpr int kAdamWBlocksPerSm = kPass == AdamWPass::kMoments ? kBlocksPerSm - 1 : kBlocksPerSm;

template <DType P, DType T, DType E, AdamWPass kPass, TableSize S>
__global__ void __launch_bounds__(kThreads, kAdamWBlocksPerSm<kPass>)
    adamw_kernel(__grid_constant__ Shared<TableOf<AdamWRow, S>> table, const AdamWKernelArgs args) {
  constexpr bool kSums = kPass == AdamWPass::kMoments;
  __shared__ ChunkState state;
  const bool by_sums = !kSums && args.update != nullptr;
  const bool skips = gradient_factors(args.stats).skips || (by_sums && !is_finite_update(*args.update));
  ThreadSums total;
  if (!skips) {
    walk_chunks<kPass == AdamWPass::kUpdate ? Direction::kBackward : Direction::kForward>(
        table, [&](const AdamWRow& row, int64_t begin, int numel) {
          __syncthreads();  // of the chunk before
          if (threadIdx.x == 0) {
            prepare(state, row, begin, args, by_sums ? update_factor(*args.update) : 0.0);
          }
          __syncthreads();
          const AdamWChunk chunk = chunk_at<P, T, E>(row, begin);
          const auto tile_at = static_cast<uint32_t>(begin % kRoundingTile);
          const int whole = is_aligned_for<P, T, E, kAdamWUnit>(chunk) ? numel / kAdamWUnit * kAdamWUnit : 0;
          pass_units<P, T, E, kPass, kAdamWUnit>(chunk, state, args, tile_at, 0, whole, total);
          pass_units<P, T, E, kPass, 1>(chunk, state, args, tile_at, whole, numel, total);
        });
  }
  if constexpr (kSums) {
    // The scale of e is that of all rows.
    const double largest = total.largest > 0.0f ? state.largest * total.largest : 0.0;
    leave_sum(UpdateStats{total.dot, total.step_norm_sq, total.ema_norm_sq, total.reach, total.change_sq,
                          total.denominator_sq, 0.0, largest},
              args.slots);
  }
}

// One block.
__global__ void __launch_bounds__(kThreads, 1)
    update_total_kernel(UpdateStats* update, const Stats* stats, const Filled<UpdateStats> slots, const int64_t numel) {
  UpdateStats sums = add_slots(slots);
  if (threadIdx.x != 0) return;
  sums.numel = gradient_factors(stats).skips ? 0.0 : static_cast<double>(numel);
  *update = sums;
}

// ---- settle ---------------------------------------------------------------------------------------------------------

struct Norm {
  double sq = 0.0;
  __device__ __forceinline__ void add(const Norm& other) { sq += other.sq; }
};

struct MeasureArgs {
  const Stats* stats;
  double tau;
  Slots<Norm> slots;
  AdamWKind kind;
  Rule rule;
};

// |g'| is measured where it has cancelled in the sums: rare, so one kernel for all kinds. All rules in one kernel want more
// than 64 registers.
template <TableSize S>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm / 2)
    measure_kernel(__grid_constant__ Shared<TableOf<AdamWRow, S>> table, const MeasureArgs args) {
  const Decision decision = decide(args.rule, *args.stats, args.tau);
  if (!decision.measure) return;
  Norm norm;
  walk_chunks<Direction::kForward>(table, [&](const AdamWRow& row, int64_t begin, int numel) {
    const void* grad = advance(args.kind.param, static_cast<const void*>(row.grad), begin);
    const void* ema = advance(args.kind.ema, row.ema, begin);
#pragma unroll 1
    for (int at = static_cast<int>(threadIdx.x); at < numel; at += kThreads) {
      const double g = load_one(args.kind.param, grad, at), e = load_one(args.kind.ema, ema, at);
      const double out = fma(decision.beta, e, decision.alpha * g);
      norm.sq += out * out;
    }
  });
  leave_sum(norm, args.slots);
}

struct SettleArgs {
  Stats* stats;
  Filled<Norm> measured;
  double tau;
  Rule rule;
  bool rectifies;
};

__device__ __forceinline__ bool fits_float(double coefficient) {
  const double size = fabs(coefficient);
  return size == 0.0 || (size > 1e-37 && size < 1e38);
}

// Clipping alone, of a g that is not to be rectified.
__device__ __forceinline__ Stats clipped_to(Stats stats, double tau) {
  const double norm = sqrt(stats.grad_norm_sq);
  if (norm > tau && norm < kInfinity) {
    stats.alpha = tau / norm;
    stats.clipped = 1.0;
    stats.out_norm_sq = tau * tau;
  }
  return stats;
}

// One block. Coefficients beyond float32 leave a step undone, as an overflow does: on the CPU, where the host looks on, it
// is made in float64.
__global__ void __launch_bounds__(kThreads, 1) settle_kernel(const SettleArgs args) {
  if (!args.rectifies) {
    if (threadIdx.x == 0) *args.stats = clipped_to(*args.stats, args.tau);
    return;
  }
  const Stats stats = *args.stats;
  const Decision decision = decide(args.rule, stats, args.tau);
  const double norm_sq = decision.measure ? add_slots(args.measured).sq : decision.norm_sq;
  __syncthreads();  // all have read what thread 0 writes
  if (threadIdx.x != 0) return;
  Stats written = stats;
  if (decision.writes()) written.written_norm_sq = norm_sq;
  Stats out = settle(args.rule, written, args.tau);
  if (!fits_float(out.alpha * out.rescale) || !fits_float(out.beta * out.rescale)) out.vetoed = 1.0;
  if (stats.retain_nonfinite > 0.0 && needs_all_of_r(args.rule)) out.vetoed = 1.0;  // the step is given up
  *args.stats = out;
}

// ---- launchers ------------------------------------------------------------------------------------------------------

template <DType P, DType T, DType E, TableSize S>
auto kernel_of(AdamWPass pass) {
  switch (pass) {
    case AdamWPass::kStep:
      return &adamw_kernel<P, T, E, AdamWPass::kStep, S>;
    case AdamWPass::kUpdate:
      return &adamw_kernel<P, T, E, AdamWPass::kUpdate, S>;
    default:  // kSums is kMoments that keeps nothing
      return &adamw_kernel<P, T, E, AdamWPass::kMoments, S>;
  }
}

Context context_of(const AdamWContext& context) {
  return {nullptr, context.scratch, nullptr, context.num_threads, context.device, context.stream};
}

}  // namespace

size_t scratch_bytes(const AdamWPlan& plan) {
  size_t num_slots = 0;
  for_each_launch(plan,
                  [&](const AdamWLaunch& launch, bool) { num_slots += std::clamp(launch.num_chunks, 1u, kMaxBlocks); });
  return kHeaderBytes + num_slots * sizeof(UpdateStats);
}

void adamw(const AdamWPlan& plan, AdamWPass pass, const AdamWArgs& args, const AdamWContext& context) {
  const DeviceGuard guard(context.device);
  const Context where = context_of(context);
  AdamWKernelArgs kernel_args{args,
                              context.scalars,
                              context.stats,
                              context.update,
                              context.floor,
                              slots_in<UpdateStats>(where),
                              pass != AdamWPass::kSums};
  for_each_launch(plan, [&](const AdamWLaunch& launch, bool) {
    const auto kernel_of_size = [&]<TableSize S>() {
      return with_adamw_kind(launch.kind, [&]<DType P, DType T, DType E>() { return kernel_of<P, T, E, S>(pass); });
    };
    kernel_args.slots.first += run_sized(kernel_of_size, launch, kernel_args, where, "launching adamw");
  });
  if (pass != AdamWPass::kMoments && pass != AdamWPass::kSums) return;
  start(&update_total_kernel, 1, kThreads, where, "launching the sums of the update", context.update, context.stats,
        filled(kernel_args.slots), plan.numel);
}

void settle(const AdamWPlan& plan, double tau, const Rule* rule, Stats* stats, const AdamWContext& context) {
  const DeviceGuard guard(context.device);
  const Context where = context_of(context);
  MeasureArgs measure_args{stats, tau, slots_in<Norm>(where), {}, rule != nullptr ? *rule : Rule{}};
  const auto kernel_of_size = [&]<TableSize S>() { return &measure_kernel<S>; };
  for (const AdamWLaunch& launch : plan.launches) {
    if (rule == nullptr) break;  // g is only clipped
    measure_args.kind = launch.kind;
    measure_args.slots.first +=
        run_sized(kernel_of_size, launch, measure_args, where, "launching measure", Grid::kSmall);
  }
  const SettleArgs args{stats, filled(measure_args.slots), tau, measure_args.rule, rule != nullptr};
  start(&settle_kernel, 1, kThreads, where, "launching settle", args);
}

PlanLimits adamw_limits() { return {kChunkNumel, kMaxRows<AdamWRow>}; }

}  // namespace gru_fast::cuda
