// Pass 1 on the CPU: e <- keep * e + gain * r, and the sums <g, e>, |e|^2, |g|^2 with the e that was stored.
// Reads g, r, e once and writes e once. float32 products run in chains of kRunLength, then join float64 sums.

#include "kernels.h"
#include "vector.h"

namespace gru_fast::cpu::GRU_FAST_LEVEL {
namespace {

enum class Ema { kUpdate, kDecay, kCurrent };

// The running sums of one span: float32 within a run, float64 between runs.
struct Accumulator {
  VecF dot_a{}, dot_b{}, ema_a{}, ema_b{}, grad_a{}, grad_b{};
  WideSum dot, ema, grad;
  bool refused = false;

  GRU_FAST_INLINE void add(Block g, Block e) {
    dot_a = multiply_add(g.a, e.a, dot_a);
    dot_b = multiply_add(g.b, e.b, dot_b);
    grad_a = multiply_add(g.a, g.a, grad_a);
    grad_b = multiply_add(g.b, g.b, grad_b);
    add_ema(e);
  }
  GRU_FAST_INLINE void add_ema(Block e) {
    ema_a = multiply_add(e.a, e.a, ema_a);
    ema_b = multiply_add(e.b, e.b, ema_b);
  }
  GRU_FAST_INLINE void end_run() {
    dot.add(dot_a + dot_b);
    ema.add(ema_a + ema_b);
    grad.add(grad_a + grad_b);
    dot_a = dot_b = ema_a = ema_b = grad_a = grad_b = VecF{};
  }
  GRU_FAST_INLINE Sums total() const { return {dot.total(), ema.total(), grad.total(), refused ? 1.0 : 0.0}; }
};

// The new EMA of a block, on E's grid. Elements that would not be finite keep their old value: `refused` says so.
template <DType E>
GRU_FAST_INLINE Block update_ema(Block e, Block r, VecF keep, VecF gain, RoundingBits::Two random, bool& refused) {
  const Block exact = {multiply_add(gain, r.a, keep * e.a), multiply_add(gain, r.b, keep * e.b)};
  Block updated = exact;
  if constexpr (E != DType::kFloat32) {
    updated = {round_stochastic<E>(exact.a, random.a), round_stochastic<E>(exact.b, random.b)};
  }
  // One test a block. float16 saturates, so there the value before rounding tells; a bfloat16 may have been rounded up
  // to infinity, and its NaNs (whose low half is zero) survive the random bits.
  if (any_nonfinite(E == DType::kFloat16 ? exact : updated)) [[unlikely]] {
    refused = true;
    const VecI bad_a = is_nonfinite(exact.a) | is_nonfinite(updated.a);
    const VecI bad_b = is_nonfinite(exact.b) | is_nonfinite(updated.b);
    updated = {bad_a ? e.a : updated.a, bad_b ? e.b : updated.b};
  }
  return updated;
}

template <DType G, DType E, bool kHasGrad, Ema M>
struct ReduceBlock {
  static constexpr Order O = order_of<G, E>;
  VecF keep, gain;
  RoundingBits rounding;
  Accumulator sums;

  GRU_FAST_INLINE void operator()(const char* grad, const char* retain, char* ema) {
    prefetch_ahead<M == Ema::kCurrent ? Access::kRead : Access::kWrite, kBlock * size_of(E)>(ema);
    if constexpr (kHasGrad) prefetch_ahead<Access::kRead, kBlock * size_of(G)>(grad);
    if constexpr (M == Ema::kUpdate) prefetch_ahead<Access::kRead, kBlock * size_of(G)>(retain);
    Block e = load_block<E, O>(ema);
    if constexpr (M != Ema::kCurrent) {
      const Block r = M == Ema::kUpdate ? load_block<G, O>(retain) : Block{};
      RoundingBits::Two random{};
      if constexpr (E != DType::kFloat32) random = rounding.template next<O>();
      e = update_ema<E>(e, r, keep, gain, random, sums.refused);
      store_block<E, O>(ema, e);
    }
    if constexpr (kHasGrad) {
      sums.add(load_block<G, O>(grad), e);
    } else {
      sums.add_ema(e);
    }
  }
};

template <DType G, DType E, bool kHasGrad, Ema M>
Sums reduce_span(const Span& span, float keep, float gain) {
  constexpr int64_t kG = size_of(G), kE = size_of(E);
  const char* grad = static_cast<const char*>(span.grad);
  const char* retain = static_cast<const char*>(span.retain);
  char* ema = static_cast<char*>(span.ema);
  ReduceBlock<G, E, kHasGrad, M> block{VecF{} + keep, VecF{} + gain, RoundingBits(span.rounding_key, span.tile_offset),
                                       Accumulator{}};

  int64_t i = 0;
  for (; i + kRunLength * kBlock <= span.numel; i += kRunLength * kBlock) {
#pragma GCC unroll 8
    for (int k = 0; k < kRunLength; ++k) {
      const int64_t at = i + k * kBlock;
      block(grad + at * kG, retain + at * kG, ema + at * kE);
    }
    block.sums.end_run();
  }
  for (; i + kBlock <= span.numel; i += kBlock) block(grad + i * kG, retain + i * kG, ema + i * kE);
  block.sums.end_run();
  if (i < span.numel) {  // the last few elements, padded with zeros to a block of their own
    const auto rest = static_cast<size_t>(span.numel - i);
    char g[kBlock * kG] = {}, r[kBlock * kG] = {}, e[kBlock * kE] = {};
    if constexpr (kHasGrad) std::memcpy(g, grad + i * kG, rest * kG);
    if constexpr (M == Ema::kUpdate) std::memcpy(r, retain + i * kG, rest * kG);
    std::memcpy(e, ema + i * kE, rest * kE);
    block(g, r, e);
    block.sums.end_run();
    if constexpr (M != Ema::kCurrent) std::memcpy(ema + i * kE, e, rest * kE);
  }
  return block.sums.total();
}

template <DType G, DType E, Ema M>
GRU_FAST_INLINE Sums reduce_mode(const Span& span, float keep, float gain) {
  return span.grad != nullptr ? reduce_span<G, E, true, M>(span, keep, gain)
                              : reduce_span<G, E, false, M>(span, keep, gain);
}

}  // namespace

Sums reduce(Kind kind, const Span& span, float keep, float gain) {
  return with_kind(kind, [&]<DType G, DType E>() {
    if (span.ema_is_current) return reduce_mode<G, E, Ema::kCurrent>(span, keep, gain);
    if (span.retain == nullptr) return reduce_mode<G, E, Ema::kDecay>(span, keep, gain);
    return reduce_mode<G, E, Ema::kUpdate>(span, keep, gain);
  });
}

Sums wide_sums(Kind kind, const Span& span) {
  return with_kind(kind, [&]<DType G, DType E>() {
    Sums sums;
    for (int64_t i = 0; i < span.numel; ++i) {
      const double e = load_one<E>(span.ema, i);
      const double g = span.grad != nullptr ? load_one<G>(span.grad, i) : 0.0f;
      sums.dot += g * e;
      sums.ema_norm_sq += e * e;
      sums.grad_norm_sq += g * g;
    }
    return sums;
  });
}

bool any_nonfinite(Kind kind, const Span& span) {
  return with_kind(kind, [&]<DType G, DType E>() {
    bool found = false;
    for (const void* values : {static_cast<const void*>(span.grad), span.retain}) {
      if (values == nullptr) continue;
      int64_t i = 0;
      VecI bad{};
      for (; i + kBlock <= span.numel; i += kBlock) {
        const Block x = load_block<G, Order::kHalves>(static_cast<const char*>(values) + i * size_of(G));
        bad |= is_nonfinite(x.a) | is_nonfinite(x.b);
      }
      for (int k = 0; k < kLanes; ++k) found |= bad[k] != 0;
      for (; i < span.numel; ++i) found |= is_nonfinite(load_one<G>(values, i));
    }
    return found;
  });
}

}  // namespace gru_fast::cpu::GRU_FAST_LEVEL
