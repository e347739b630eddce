// The element-wise pass on CUDA: see gate.h. Its sums run in float32 as those of the other passes; they cannot be taken
// once more, so |g| beyond what float32 squares can hold counts as not finite.
#include "../gate.h"

#include <cuda_runtime.h>

#include "backend.h"
#include "device.cuh"

namespace gru_fast::cuda {
namespace {

struct GateArgs {
  const Stats* stats;
  Slots<GateSums> slots;
  Rule rule;
  bool is_first;  // no reduce came before
};

// Whether a reduce before has met what lets nothing be written.
__device__ __forceinline__ bool is_shut_for(const Rule& rule, const Stats* stats, bool is_first) {
  return !is_first && is_shut(rule, *stats);
}

// Units in flight for each thread: two of eight elements, beside the twelve float64 registers of the sums, would not fit
// the 64 that it has.
template <int N>
inline constexpr int kNumGateUnits = N > 4 ? 1 : 2;

// Elements [begin, end) of a chunk, a multiple of N.
template <DType G, DType E, int N, int K>
__device__ __forceinline__ void gate_units(void* grad, const void* ema, const Gate& gate, int begin, int end,
                                           GateSums& sums) {
  const bool has_grad = grad != nullptr;
  for (int first = begin + static_cast<int>(threadIdx.x) * N; first < end; first += K * kThreads * N) {
    Unit<G, N> g[K];
    Unit<E, N> e[K];
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int at = first + k * kThreads * N;
      g[k] = load<G, N, Reuse::kLater>(grad, at, has_grad && at < end);
      e[k] = load<E, N, Reuse::kNever>(ema, at, at < end);
    }
#pragma unroll
    for (int k = 0; k < K; ++k) {
      const int at = first + k * kThreads * N;
      const Floats<N> gs = unpack<G, N>(g[k]), es = unpack<E, N>(e[k]);
      float dot = 0.0f, ema_sq = 0.0f, grad_sq = 0.0f, written = 0.0f, along = 0.0f, opposed = 0.0f;
      Floats<N> out;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const float x = es.at[i], was = gs.at[i];
        const bool differ = are_opposed(was, x);
        const float kept = fmaf(gate.adds ? gate.w_r : 0.0f, x, gate.w_f * was);
        const bool bad = is_nonfinite(was) || is_nonfinite(x);
        out.at[i] = bad ? float_of(kPlainNan) : round_nearest<G>(differ ? gate.w_r * x : kept);
        opposed += differ ? 1.0f : 0.0f;
        dot = fmaf(was, x, dot);
        ema_sq = fmaf(x, x, ema_sq);
        grad_sq = fmaf(was, was, grad_sq);
      }
      const Unit<G, N> packed = pack<G, N>(out);
      if (has_grad && at < end) store<G, N>(grad, at, packed);
      out = unpack<G, N>(packed);  // the sums are of what the optimizer will read
#pragma unroll
      for (int i = 0; i < N; ++i) {
        written = fmaf(out.at[i], out.at[i], written);
        along = fmaf(out.at[i], es.at[i], along);
      }
      sums.add({dot, ema_sq, grad_sq, has_grad ? written : 0.0f, has_grad ? along : 0.0f, opposed});
    }
  }
}

template <DType G, DType E, TableSize S>
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    gate_kernel(__grid_constant__ Shared<TableOf<Row, S>> table, const GateArgs args) {
  constexpr int N = kUnitNumel<G, E>;
  static_assert(N <= kRunLength);
  if (is_shut_for(args.rule, args.stats, args.is_first)) return;
  const Gate gate = gate_of(args.rule);
  GateSums sums;
  walk_chunks<Direction::kBackward>(table, [&](const Row& row, int64_t begin, int numel) {
    if (row.ema == nullptr) return;  // then there is no g either
    void* grad = advance<G>(row.grad, begin);
    const void* ema = advance<E>(static_cast<const void*>(row.ema), begin);
    const int whole = is_aligned<G, N>(grad) && is_aligned<E, N>(ema) ? numel / N * N : 0;
    gate_units<G, E, N, kNumGateUnits<N>>(grad, ema, gate, 0, whole, sums);
    gate_units<G, E, 1, kNumGateUnits<1>>(grad, ema, gate, whole, numel, sums);
  });
  leave_sum(sums, args.slots);
}

struct TellArgs {
  Stats* stats;
  Filled<GateSums> sums;
  Rule rule;
  bool is_first;
};

// One block.
__global__ void __launch_bounds__(kThreads, 1) tell_kernel(const TellArgs args) {
  if (is_shut_for(args.rule, args.stats, args.is_first)) return;
  const GateSums sums = add_slots(args.sums);
  if (threadIdx.x == 0) tell(sums, args.is_first, *args.stats);
}

}  // namespace

void gate(const Plan& plan, const StepArgs& args, bool is_first, const Context& context) {
  const DeviceGuard guard(context.device);
  GateArgs kernel_args{context.stats, slots_in<GateSums>(context), args.rule, is_first};
  for_each_launch(plan, [&](const Launch& launch, bool) {
    const auto kernel_of = [&]<TableSize S>() {
      return with_kind(launch.kind, [&]<DType G, DType E>() { return &gate_kernel<G, E, S>; });
    };
    kernel_args.slots.first += run_sized(kernel_of, launch, kernel_args, context, "launching gate");
  });
  const TellArgs tell_args{context.stats, filled(kernel_args.slots), args.rule, is_first};
  start(&tell_kernel, 1, kThreads, context, "launching the sums of gate", tell_args);
}

}  // namespace gru_fast::cuda
