// Pass 1 on CUDA: e <- keep * e + gain * r, and the sums <g, e>, |e|^2, |g|^2 with the e that was stored.
// Reads g, r, e once and writes e once. float32 products run in chains of kRunLength, then join float64 sums.
//
// Kernels, in this order on the stream: check (all-or-nothing steps only), reduce, total, which adds up what the blocks of
// the others have left, and takes the sums once more where float32 products cannot give them.
#include <cuda_runtime.h>

#include "backend.h"
#include "device.cuh"
#include "groups.cuh"

namespace gru_fast::cuda {
namespace {

// ---- NaN and Inf ----------------------------------------------------------------------------------------------------

// Threads that have met NaN or Inf.
struct Found {
  double threads = 0.0;
  __device__ __forceinline__ void add(const Found& other) { threads += other.threads; }
};

struct CheckArgs {
  Slots<Found> slots;
};

template <DType T, int N, int K>
__device__ __forceinline__ bool any_nonfinite(const void* values, int begin, int end) {
  bool found = false;
  for (int first = begin + static_cast<int>(threadIdx.x) * N; first < end; first += K * kThreads * N) {
    Unit<T, N> units[K];
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int at = first + k * kThreads * N;
      units[k] = load<T, N, Reuse::kLater>(values, at, at < end);
    }
#pragma unroll
    for (int k = 0; k < K; ++k) found |= any_nonfinite_in<T, N>(units[k]);
  }
  return found;
}

template <DType G, TableSize S>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    check_kernel(__grid_constant__ Shared<TableOf<Row, S>> table, const CheckArgs args) {
  constexpr int N = kUnitNumel<G, G>;
  bool found = false;
  walk_chunks<Direction::kForward>(table, [&](const Row& row, int64_t begin, int numel) {
    const auto check = [&](const void* base) {
      if (base == nullptr) return;
      const void* values = advance<G>(base, begin);
      const int whole = is_aligned<G, N>(values) ? numel / N * N : 0;
      found |= any_nonfinite<G, N, 4>(values, 0, whole);
      found |= any_nonfinite<G, 1, kNumSingles>(values, whole, numel);
    };
    check(row.grad);
    check(row.retain);
  });
  leave_sum(Found{found ? 1.0 : 0.0}, args.slots);
}

// Whether anybody has: the same in every block. No slots: nobody has looked.
__device__ __forceinline__ bool is_vetoed(const Filled<Found>& found) {
  return found.count > 0 && from_thread_0(add_slots(found)).threads > 0.0;
}

// ---- EMA and sums ---------------------------------------------------------------------------------------------------

struct ReduceArgs {
  Slots<Sums> slots;
  Filled<Found> found;
  Header* header;  // cleared, for the kernels that come next
  const int64_t* rounding_step;
  Sums* row_slots;  // see leave_row
  uint64_t seed;
  float keep, gain;
};

// A chunk; pointers at its first element, null for zeros.
struct ReduceChunk {
  const void* grad;
  const void* retain;
  void* ema;
  bool ema_is_current;
  int tile_offset;          // position of the first element in its rounding tile
  uint32_t key_lo, key_hi;  // tile_key of that tile
  float keep, gain;
};

struct ThreadSums {
  Sums total;
  bool refused = false;  // an r was not finite
};

// The 16 rounding bits of element i of the unit at chunk element `at`. Units of several elements start at a multiple of
// four: written so that the compiler sees it and mixes the bits of four once.
template <int N>
__device__ __forceinline__ uint32_t random_at(const ReduceChunk& chunk, int at, int i) {
  static_assert(N == 1 || N % 4 == 0);
  const auto position = static_cast<uint32_t>(chunk.tile_offset + at), place = static_cast<uint32_t>(i);
  const uint64_t bits = quad_bits(chunk.key_lo, chunk.key_hi, position / 4 + place / 4);
  return static_cast<uint32_t>(bits >> 16 * (N == 1 ? position % 4 : place % 4)) & 0xffffu;
}

template <DType E>
__device__ __forceinline__ float round_stochastic(float x, uint32_t random) {
  if constexpr (E == DType::kBFloat16) return float_of(round_bfloat16_stochastic(bits_of(x), random));
  return round_float16_stochastic(x, random);
}

template <int N>
__device__ __forceinline__ float add_squares(float sum, const Floats<N>& x) {
#pragma unroll
  for (int i = 0; i < N; ++i) sum = fmaf(x.at[i], x.at[i], sum);
  return sum;
}

// The new EMA of a unit, on E's grid, and |e|^2 with it added. Elements that would not be finite keep their old value:
// `refused` says so. NaN and Inf stay in a sum of squares, which is wanted anyway: one test a unit. Squares that overflow
// only make it look closer.
template <DType E, int N>
__device__ __forceinline__ Floats<N> update_ema(const ReduceChunk& chunk, Floats<N> e, Floats<N> r, int at,
                                                float& ema_sq, bool& refused) {
  Floats<N> updated;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const float exact = fmaf(chunk.gain, r.at[i], chunk.keep * e.at[i]);
    float& x = updated.at[i];
    x = exact;
    if constexpr (E != DType::kFloat32) {
      // Rounding may lose NaN and Inf (float16 saturates), and bfloat16 may reach Inf by it; it keeps signs, so adding
      // a zero with the sign of `exact` changes nothing else.
      x = fmaf(exact, 0.0f, round_stochastic<E>(exact, random_at<N>(chunk, at, i)));
    }
  }
  const float before = ema_sq;
  ema_sq = add_squares(before, updated);
  if (!(ema_sq <= static_cast<float>(kFloatMax))) [[unlikely]] {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (!is_nonfinite(updated.at[i])) continue;
      refused = true;
      updated.at[i] = e.at[i];
    }
    ema_sq = add_squares(before, updated);
  }
  return updated;
}

// Elements [begin, end) of a chunk, a multiple of N. What holds for the whole chunk is decided outside of the loop.
// kCurrent: e already holds this step's value. kFull: g and r are there, and every thread has all of its K units.
template <DType G, DType E, int N, int K, bool kCurrent, bool kFull>
__device__ __forceinline__ void reduce_loop(const ReduceChunk& chunk, int begin, int end, ThreadSums& sums) {
  const bool has_grad = kFull || chunk.grad != nullptr;
  const bool has_retain = !kCurrent && (kFull || chunk.retain != nullptr);
#pragma unroll 1
  for (int first = begin + static_cast<int>(threadIdx.x) * N; first < end; first += K * kThreads * N) {
    Unit<G, N> g[K], r[K];
    Unit<E, N> e[K];
#pragma unroll
    for (int k = 0; k < K; ++k) {  // all loads first; apply wants g and e again, nobody r
      const int at = first + k * kThreads * N;
      e[k] = load<E, N, Reuse::kLater>(chunk.ema, at, kFull || at < end);
      r[k] = load<G, N, Reuse::kNever>(chunk.retain, at, has_retain && (kFull || at < end));
      g[k] = load<G, N, Reuse::kLater>(chunk.grad, at, has_grad && (kFull || at < end));
    }
    float dot = 0.0f, ema_sq = 0.0f, grad_sq = 0.0f;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int at = first + k * kThreads * N;
      const Floats<N> gs = unpack<G, N>(g[k]);
      Floats<N> es = unpack<E, N>(e[k]);
      if constexpr (!kCurrent) {
        es = update_ema<E, N>(chunk, es, unpack<G, N>(r[k]), at, ema_sq, sums.refused);
        if (kFull || at < end) store<E, N>(chunk.ema, at, pack<E, N>(es));
      } else {
        ema_sq = add_squares(ema_sq, es);
      }
#pragma unroll
      for (int i = 0; i < N; ++i) dot = fmaf(gs.at[i], es.at[i], dot);
      grad_sq = add_squares(grad_sq, gs);
      if ((k + 1) * N % kRunLength == 0 || k + 1 == K) {
        sums.total.add({dot, ema_sq, grad_sq, 0.0});
        dot = ema_sq = grad_sq = 0.0f;
      }
    }
  }
}

template <DType G, DType E, int N, int K>
__device__ __forceinline__ void reduce_units(const ReduceChunk& chunk, int begin, int end, ThreadSums& sums) {
  if (chunk.ema_is_current) return reduce_loop<G, E, N, K, true, false>(chunk, begin, end, sums);
  if (N > 1 && chunk.grad != nullptr && chunk.retain != nullptr) {
    constexpr int kStep = K * kThreads * N;
    const int whole = begin + (end - begin) / kStep * kStep;
    reduce_loop<G, E, N, K, false, true>(chunk, begin, whole, sums);
    begin = whole;
  }
  reduce_loop<G, E, N, K, false, false>(chunk, begin, end, sums);
}

template <DType G, DType E, TableSize S>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    reduce_kernel(__grid_constant__ Shared<TableOf<Row, S>> table, const ReduceArgs args) {
  constexpr int N = kUnitNumel<G, E>;
  static_assert(N <= kRunLength);
  __shared__ Place<Sums> of_rows;  // which are done
  if (threadIdx.x == 0) of_rows.value() = Sums{};
  if (threadIdx.x == 0 && blockIdx.x == 0) *args.header = Header{};
  ThreadSums sums;
  if (!is_vetoed(args.found)) {
    walk_chunks<Direction::kForward>(table, [&](const Row& row, int64_t begin, int numel) {
      const auto row_idx = static_cast<uint32_t>(&row - table.rows);
      leave_row_before(sums.total, args.row_slots, row_idx, begin, of_rows.value());
      if (row.ema == nullptr) return;  // then there is no g either
      ReduceChunk chunk{advance<G>(static_cast<const void*>(row.grad), begin),
                        advance<G>(row.retain, begin),
                        advance<E>(row.ema, begin),
                        row.ema_is_current != 0,
                        static_cast<int>(begin % kRoundingTile),
                        0,
                        0,
                        args.keep,
                        args.gain};
      if constexpr (E != DType::kFloat32) {
        // Once a chunk: kept through the loop, it would take two registers that float16 does not have.
        const uint64_t step = args.rounding_step == nullptr ? 0 : static_cast<uint64_t>(*args.rounding_step);
        const uint64_t key =
            tile_key(step_key(args.seed, step), row.rounding_key, static_cast<uint64_t>(begin / kRoundingTile));
        chunk.key_lo = static_cast<uint32_t>(key);
        chunk.key_hi = static_cast<uint32_t>(key >> 32);
      }
      const bool aligned =
          is_aligned<G, N>(chunk.grad) && is_aligned<G, N>(chunk.retain) && is_aligned<E, N>(chunk.ema);
      const int whole = aligned ? numel / N * N : 0;
      reduce_units<G, E, N, kNumUnits<G, E>>(chunk, 0, whole, sums);
      reduce_units<G, E, 1, kNumSingles>(chunk, whole, numel, sums);
    });
    leave_last_row(sums.total, args.row_slots, table, of_rows.value());
  }
  Sums total = sums.total;
  total.retain_nonfinite = sums.refused ? 1.0 : 0.0;
  leave_sum(total, args.slots);
}

// ---- the total, in float64 where float32 products cannot give it ----------------------------------------------------

struct TotalArgs {
  Stats* stats;
  Filled<Sums> sums;
  Filled<Found> found;
  Slots<Sums> wide_slots;
  uint32_t* wide_ticket;  // null except in the last launch, which writes `stats`
  int64_t* rounding_step;
  int64_t plan_numel;
  Kind kind;
  bool may_be_wide;
};

__device__ __forceinline__ void write_sums(Stats* to, const Sums& sums, bool vetoed, bool are_wide) {
  Stats stats{};
  stats.dot = sums.dot;
  stats.ema_norm_sq = sums.ema_norm_sq;
  stats.grad_norm_sq = sums.grad_norm_sq;
  stats.retain_nonfinite = sums.retain_nonfinite;
  stats.vetoed = vetoed ? 1.0 : 0.0;
  stats.wide_sums = are_wide ? 1.0 : 0.0;
  *to = stats;
}

// Every block adds up the slots, which are few and in the L2 cache, and so decides alike. Wide sums are rare, so one
// kernel for all kinds.
template <TableSize S>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    total_kernel(__grid_constant__ Shared<TableOf<Row, S>> table, const TotalArgs args) {
  const bool vetoed = is_vetoed(args.found);
  Sums sums = from_thread_0(add_slots(args.sums));
  const bool writes = threadIdx.x == 0 && args.wide_ticket != nullptr;
  if (writes && blockIdx.x == 0 && args.rounding_step != nullptr && !vetoed) ++*args.rounding_step;
  if (vetoed || !args.may_be_wide || !needs_wide_sums(sums, args.plan_numel)) {
    if (writes && blockIdx.x == 0) write_sums(args.stats, sums, vetoed, false);
    return;
  }
  Sums wide;
  walk_chunks<Direction::kBackward>(
      table, [&](const Row& row, int64_t begin, int numel) { add_wide_sums(args.kind, row, begin, numel, wide); });
  if (!sum_grid(wide, args.wide_slots, args.wide_ticket)) return;
  wide.retain_nonfinite = sums.retain_nonfinite;
  write_sums(args.stats, wide, false, true);
}

// ---- launchers ------------------------------------------------------------------------------------------------------

Slots<Sums> wide_slots_in(const Plan& plan, const Context& context) {
  return slots_in<Sums>(context, max_slots(plan) * sizeof(GateSums));
}
Slots<Found> found_slots_in(const Plan& plan, const Context& context) {
  return slots_in<Found>(context, max_slots(plan) * (sizeof(GateSums) + sizeof(Sums)));
}

Filled<Found> launch_check(const Plan& plan, const Context& context) {
  CheckArgs kernel_args{found_slots_in(plan, context)};
  for (const Launch& launch : plan.launches) {
    const auto kernel_of = [&]<TableSize S>() {
      return with_kind(launch.kind, [&]<DType G, DType E>() { return &check_kernel<G, S>; });
    };
    kernel_args.slots.first += run_sized(kernel_of, launch, kernel_args, context, "launching check");
  }
  return filled(kernel_args.slots);
}

template <TableSize S>
auto kernel_of_reduce(Kind kind) {
  return with_kind(kind, [&]<DType G, DType E>() { return &reduce_kernel<G, E, S>; });
}

// What its blocks have left.
Filled<Sums> launch_reduce(const Plan& plan, const StepArgs& args, const Filled<Found>& found, const Context& context) {
  ReduceArgs kernel_args{slots_in<Sums>(context),
                         found,
                         header_in(context),
                         context.rounding_step,
                         nullptr,
                         args.seed,
                         args.keep,
                         args.gain};
  if (args.by_row) kernel_args.row_slots = row_slots_in(plan, context);
  for_each_launch(plan, [&](const Launch& launch, bool) {
    const auto kernel_of = [&]<TableSize S>() { return kernel_of_reduce<S>(launch.kind); };
    const uint32_t blocks = run_sized(kernel_of, launch, kernel_args, context, "launching reduce");
    kernel_args.slots.first += blocks;
    if (args.by_row) kernel_args.row_slots += num_row_slots(launch, blocks);
  });
  return filled(kernel_args.slots);
}

void launch_total(const Plan& plan, TotalArgs args, const Context& context) {
  const auto kernel_of = [&]<TableSize S>() { return &total_kernel<S>; };
  const char* doing = "launching the total";
  if (!args.may_be_wide) {  // then no block has to look at the tensors
    args.wide_ticket = &header_in(context)->wide_ticket;
    run_sized(kernel_of, Launch{}, args, context, doing);
    return;
  }
  for_each_launch(plan, [&](const Launch& launch, bool is_last) {
    args.kind = launch.kind;
    args.wide_ticket = is_last ? &header_in(context)->wide_ticket : nullptr;
    args.wide_slots.first += run_sized(kernel_of, launch, args, context, doing, Grid::kSmall);
  });
}

}  // namespace

// The largest sums of a pass, and what reduce leaves besides.
size_t scratch_bytes_of_sums(const Plan& plan) {
  return kHeaderBytes + max_slots(plan) * (sizeof(GateSums) + sizeof(Sums) + sizeof(Found));
}

size_t scratch_bytes(const Plan& plan) {
  size_t bytes = scratch_bytes_of_sums(plan) + max_slots(plan) * sizeof(Sums);
  for (const Launch& launch : plan.launches) bytes += launch.rows.size() * sizeof(Sums);
  return bytes;
}

uint32_t blocks_of_reduce(const Launch& launch, int device) {
  return blocks_of([&]<TableSize S>() { return kernel_of_reduce<S>(launch.kind); }, launch, device);
}

void reduce(const Plan& plan, const StepArgs& args, const Context& context) {
  const DeviceGuard guard(context.device);
  const Filled<Found> found = args.all_or_nothing ? launch_check(plan, context) : Filled<Found>{};
  const Filled<Sums> sums = launch_reduce(plan, args, found, context);
  launch_total(plan,
               {context.stats,
                sums,
                found,
                wide_slots_in(plan, context),
                nullptr,
                context.rounding_step,
                plan.numel,
                {},
                args.sums_wanted},
               context);
}

PlanLimits limits() { return {kChunkNumel, kMaxRows<Row>}; }

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

std::string problem() {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess && count > 0) return "";
  cudaGetLastError();
  if (status != cudaErrorInsufficientDriver) {
    return status == cudaSuccess ? "it finds no device" : cudaGetErrorString(status);
  }
  int driver = 0;
  cudaDriverGetVersion(&driver);
  const auto readable = [](int version) {
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
  };
  return driver == 0
             ? "there is no driver"
             : "the driver knows CUDA up to " + readable(driver) + ", the kernels are of " + readable(CUDART_VERSION);
}

}  // namespace gru_fast::cuda
