// Pass 2 on CUDA: g <- alpha * g + beta * e, and |g|^2 of what was written; then the rare extra scaling of g.
// Reads g (and e if beta is not 0) once and writes g once; nothing at all where alpha = 1 and beta = 0. The kernel that
// comes next adds up |g|^2: finish, or where the sums of several devices meet before it written, of one block.
//
// The coefficients never visit the host: each block derives them from the sums in Stats, and all blocks alike.
#include <cuda_runtime.h>

#include "../groups.h"
#include "../rules.h"
#include "backend.h"
#include "device.cuh"
#include "groups.cuh"

namespace gru_fast::cuda {
namespace {

// ---- apply ----------------------------------------------------------------------------------------------------------

struct Written {
  double norm_sq = 0.0;
  __device__ __forceinline__ void add(const Written& other) { norm_sq += other.norm_sq; }
};

struct ApplyArgs {
  const Stats* stats;
  Slots<Written> slots;
  int64_t plan_numel;
  double tau;
  Rule rule;
  const GroupStats* groups;  // rows have the group in the place of their rounding key; null: one decision for all
};

struct Coefficients {
  double alpha, beta;
  bool writes;
  bool wide;  // float32 is too narrow for them
};

// What the sums say, the same for all threads of the block.
__device__ __forceinline__ Coefficients block_coefficients(const ApplyArgs& args) {
  __shared__ Coefficients shared;
  if (threadIdx.x == 0) {
    const Decision decision = decide(args.rule, *args.stats, args.tau);
    shared = {decision.alpha, decision.beta, decision.writes(),
              needs_wide_apply(decision, args.stats->grad_norm_sq, args.plan_numel)};
  }
  __syncthreads();
  return shared;
}

__device__ __forceinline__ Coefficients coefficients_of(const GroupStats& group) {
  return {group.alpha, group.beta, !group.is_left(), group.wide > 0.0};
}

// Elements [begin, end) of a chunk, a multiple of N.
template <DType G, DType E, int N, int K>
__device__ __forceinline__ void apply_units(void* grad, const void* ema, float alpha, float beta, int begin, int end,
                                            Written& written) {
  const bool has_ema = beta != 0.0f;
  for (int first = begin + static_cast<int>(threadIdx.x) * N; first < end; first += K * kThreads * N) {
    Unit<G, N> g[K];
    Unit<E, N> e[K];
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int at = first + k * kThreads * N;
      g[k] = load<G, N, Reuse::kLater>(grad, at, at < end);
      e[k] = load<E, N, Reuse::kNever>(ema, at, has_ema && at < end);
    }
    float run = 0.0f;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int at = first + k * kThreads * N;
      Floats<N> x = unpack<G, N>(g[k]);
      const Floats<N> es = unpack<E, N>(e[k]);
#pragma unroll
      for (int i = 0; i < N; ++i) x.at[i] = round_nearest<G>(fmaf(beta, es.at[i], alpha * x.at[i]));
      const Unit<G, N> packed = pack<G, N>(x);
      if (at < end) store<G, N>(grad, at, packed);
      x = unpack<G, N>(packed);  // the sum is of what the optimizer will read
#pragma unroll
      for (int i = 0; i < N; ++i) run = fmaf(x.at[i], x.at[i], run);
      if ((k + 1) * N % kRunLength == 0 || k + 1 == K) {
        written.add({run});
        run = 0.0f;
      }
    }
  }
}

// The same in float64, one element at a time: rare, and kept small so that it costs the ordinary path no registers.
template <DType G, DType E>
__device__ __forceinline__ void wide_apply(void* grad, const void* ema, double alpha, double beta, int numel,
                                           Written& written) {
#pragma unroll 1
  for (int at = static_cast<int>(threadIdx.x); at < numel; at += kThreads) {
    const double g = unpack<G, 1>(load<G, 1, Reuse::kLater>(grad, at, true)).at[0];
    const double e = unpack<E, 1>(load<E, 1, Reuse::kNever>(ema, at, beta != 0.0)).at[0];
    // Saturates: a finite gradient stays finite.
    const double bounded = fmin(fmax(fma(beta, e, alpha * g), -kLargest<G>), kLargest<G>);
    const Unit<G, 1> packed = pack<G, 1>({round_nearest<G>(static_cast<float>(bounded))});
    store<G, 1>(grad, at, packed);
    const double x = unpack<G, 1>(packed).at[0];
    written.add({x * x});
  }
}

template <DType G, DType E, TableSize S>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    apply_kernel(__grid_constant__ Shared<TableOf<Row, S>> table, const ApplyArgs args) {
  constexpr int N = kUnitNumel<G, E>;
  static_assert(N <= kRunLength);
  const bool by_group = args.groups != nullptr;
  const Coefficients all =
      by_group ? Coefficients{1.0, 0.0, args.stats->alpha != 1.0, false} : block_coefficients(args);
  Written written;
  if (!all.writes) return leave_sum(written, args.slots);
  walk_chunks<Direction::kBackward>(table, [&](const Row& row, int64_t begin, int numel) {
    const Coefficients c = by_group ? coefficients_of(args.groups[row.rounding_key]) : all;
    if (row.grad == nullptr || !c.writes) return;
    void* grad = advance<G>(row.grad, begin);
    const void* ema = advance<E>(static_cast<const void*>(row.ema), begin);
    if (c.wide) return wide_apply<G, E>(grad, ema, c.alpha, c.beta, numel, written);
    const auto alpha = static_cast<float>(c.alpha), beta = static_cast<float>(c.beta);
    const int whole = is_aligned<G, N>(grad) && is_aligned<E, N>(ema) ? numel / N * N : 0;
    apply_units<G, E, N, kNumUnits<G, E>>(grad, ema, alpha, beta, 0, whole, written);
    apply_units<G, E, 1, kNumSingles>(grad, ema, alpha, beta, whole, numel, written);
  });
  leave_sum(written, args.slots);
}

// ---- what apply has written -----------------------------------------------------------------------------------------

// One block. Of a decision for each group: beside what decide_groups has left untouched.
__global__ void __launch_bounds__(kThreads, 1)
    written_kernel(Stats* stats, const Filled<Written> slots, const bool by_group) {
  const Written written = add_slots(slots);
  if (threadIdx.x == 0) stats->written_norm_sq = written.norm_sq + (by_group ? stats->written_norm_sq : 0.0);
}

// ---- finish ---------------------------------------------------------------------------------------------------------

struct FinishArgs {
  Stats* stats;
  Filled<Written> written;  // where apply has left its sums; none: they are in `stats`
  double tau;
  Rule rule;
  bool completes_stats;  // the last launch
  bool is_settled;       // the statistics are complete
};

// Only the fields that `settle` does not read: other blocks may be reading the rest. None reads written_norm_sq where apply
// has left its sums.
__device__ __forceinline__ void write_outcome(Stats* stats, const Stats& settled) {
  stats->alpha = settled.alpha;
  stats->beta = settled.beta;
  stats->rescale = settled.rescale;
  stats->out_norm_sq = settled.out_norm_sq;
  stats->conflict = settled.conflict;
  stats->clipped = settled.clipped;
  stats->degenerate = settled.degenerate;
  stats->grad_nonfinite = settled.grad_nonfinite;
}

// Elements [begin, end) of a chunk, a multiple of N. 16-bit results go towards zero, so that |g| cannot pass tau again.
template <DType G, int N, int K>
__device__ __forceinline__ void rescale_units(void* grad, float factor, int begin, int end) {
  for (int first = begin + static_cast<int>(threadIdx.x) * N; first < end; first += K * kThreads * N) {
    Unit<G, N> g[K];
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int at = first + k * kThreads * N;
      g[k] = load<G, N, Reuse::kLater>(grad, at, at < end);
    }
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int at = first + k * kThreads * N;
      Floats<N> x = unpack<G, N>(g[k]);
#pragma unroll
      for (int i = 0; i < N; ++i) x.at[i] = truncate<G>(factor * x.at[i]);
      if (at < end) store<G, N>(grad, at, pack<G, N>(x));
    }
  }
}

template <DType G, TableSize S>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    finish_kernel(__grid_constant__ Shared<TableOf<Row, S>> table, const FinishArgs args) {
  constexpr int N = kUnitNumel<G, G>;
  __shared__ float shared_factor;
  Written written;
  if (args.written.count > 0) written = add_slots(args.written);  // all blocks alike
  if (threadIdx.x == 0) {
    Stats stats = *args.stats;
    if (args.written.count > 0) stats.written_norm_sq = written.norm_sq;
    const Stats settled = args.is_settled ? stats : settle(args.rule, stats, args.tau);
    if (args.completes_stats && blockIdx.x == 0) {
      write_outcome(args.stats, settled);
      if (args.written.count > 0) args.stats->written_norm_sq = written.norm_sq;
    }
    shared_factor = static_cast<float>(settled.rescale);
  }
  __syncthreads();
  const float factor = shared_factor;
  if (factor == 1.0f) return;
  walk_chunks<Direction::kForward>(table, [&](const Row& row, int64_t begin, int numel) {
    if (row.grad == nullptr) return;
    void* grad = advance<G>(row.grad, begin);
    const int whole = is_aligned<G, N>(grad) ? numel / N * N : 0;
    rescale_units<G, N, 2>(grad, factor, 0, whole);
    rescale_units<G, 1, kNumSingles>(grad, factor, whole, numel);
  });
}

// ---- the decision of groups -----------------------------------------------------------------------------------------

struct DecideArgs {
  Stats* stats;
  GroupStats* groups;
  size_t count;
  double tau;
  Rule rule;
  bool settles;  // after apply; before it, alpha says whether anything is written
};

// One block: a thread for each group. Before apply and after it, when the sums are still the same.
__global__ void __launch_bounds__(kThreads, 1) decide_groups_kernel(const DecideArgs args) {
  __shared__ Place<Decision> shared;
  const Stats stats = *args.stats;
  Proposals proposals;
  for (size_t i = threadIdx.x; i < args.count; i += kThreads) {
    proposals.add(propose(args.rule, stats, args.groups[i]));
  }
  proposals = sum_block(proposals);
  if (threadIdx.x == 0) shared.value() = decide_all(args.rule, stats, args.tau, proposals);
  __syncthreads();
  const Decision all = shared.value();
  Conclusions conclusions;
  for (size_t i = threadIdx.x; i < args.count; i += kThreads) {
    conclusions.add(conclude(all, args.tau, args.groups[i]));
  }
  conclusions = sum_block(conclusions);
  if (threadIdx.x != 0) return;
  const Decision decision = decided(all, args.tau, conclusions);
  if (args.settles) return write_outcome(args.stats, settle(decision, stats, args.tau));
  args.stats->alpha = decision.alpha;
  args.stats->written_norm_sq = decision.writes() ? conclusions.left_sq : 0.0;
}

// ---- launchers ------------------------------------------------------------------------------------------------------

template <TableSize S>
auto kernel_of_apply(Kind kind) {
  return with_kind(kind, [&]<DType G, DType E>() { return &apply_kernel<G, E, S>; });
}

// Returns what its blocks have left.
Filled<Written> launch_apply(const Plan& plan, const StepArgs& args, const Groups* groups, const Context& context) {
  ApplyArgs kernel_args{context.stats, slots_in<Written>(context), plan.numel, args.tau, args.rule, nullptr};
  if (groups != nullptr) kernel_args.groups = groups->stats;
  // From the last launch back to the first: reduce touched them in the other order.
  for (auto launch = plan.launches.rbegin(); launch != plan.launches.rend(); ++launch) {
    const auto kernel_of = [&]<TableSize S>() { return kernel_of_apply<S>(launch->kind); };
    const Launch& rows = groups == nullptr ? *launch : keyed_by_group(*launch, *groups);
    kernel_args.slots.first += run_sized(kernel_of, rows, kernel_args, context, "launching apply");
  }
  return filled(kernel_args.slots);
}

void launch_written(const Filled<Written>& written, bool by_group, const Context& context) {
  if (written.count == 0) return;
  start(&written_kernel, 1, kThreads, context, "launching the sum of what was written", context.stats, written,
        by_group);
}

void launch_finish(const Plan& plan, const StepArgs& args, const Filled<Written>& written, bool is_settled,
                   const Context& context) {
  for_each_launch(plan, [&](const Launch& launch, bool is_last) {
    const auto kernel_of = [&]<TableSize S>() {
      return with_kind(launch.kind, [&]<DType G, DType E>() { return &finish_kernel<G, S>; });
    };
    const FinishArgs kernel_args{context.stats, written, args.tau, args.rule, is_last && !is_settled, is_settled};
    run_sized(kernel_of, launch, kernel_args, context, "launching finish", Grid::kSmall);
  });
}

void launch_decide(const StepArgs& args, const Groups& groups, bool settles, const Context& context) {
  const DecideArgs kernel_args{context.stats, groups.stats, groups.count, args.tau, args.rule, settles};
  start(&decide_groups_kernel, 1, kThreads, context, "launching the decision of groups", kernel_args);
}

}  // namespace

void apply(const Plan& plan, const StepArgs& args, const Context& context) {
  const DeviceGuard guard(context.device);
  launch_written(launch_apply(plan, args, nullptr, context), false, context);
}

void finish(const Plan& plan, const StepArgs& args, const Context& context) {
  const DeviceGuard guard(context.device);
  launch_finish(plan, args, {}, false, context);
}

void step(const Plan& plan, const StepArgs& args, const Context& context) {
  const DeviceGuard guard(context.device);
  reduce(plan, args, context);
  launch_finish(plan, args, launch_apply(plan, args, nullptr, context), false, context);
}

void apply_groups(const Plan& plan, const StepArgs& args, const Groups& groups, const Context& context) {
  const DeviceGuard guard(context.device);
  launch_decide(args, groups, false, context);
  launch_written(launch_apply(plan, args, &groups, context), true, context);
}

void finish_groups(const Plan& plan, const StepArgs& args, const Groups& groups, const Context& context) {
  const DeviceGuard guard(context.device);
  launch_decide(args, groups, true, context);
  launch_finish(plan, args, {}, true, context);
}

}  // namespace gru_fast::cuda
