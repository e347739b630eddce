// Pass 2 on the CPU: g <- alpha * g + beta * e, and |g|^2 of what was written; and the rare extra scaling of g.
// Reads g (and e if beta is not 0) once and writes g once.

#include "kernels.h"
#include "vector.h"

namespace gru_fast::cpu::GRU_FAST_LEVEL {
namespace {

// Runs `block(grad, ema)` over a span block by block, the rest in a zero-padded block; calls `end_run` after every
// kRunLength blocks.
template <DType G, DType E, bool kHasEma, class BlockFn, class EndRun>
GRU_FAST_INLINE void for_blocks(const Span& span, BlockFn&& block, EndRun&& end_run) {
  constexpr int64_t kG = size_of(G), kE = size_of(E);
  char* grad = static_cast<char*>(span.grad);
  const char* ema = static_cast<const char*>(span.ema);
  int64_t i = 0;
  for (; i + kRunLength * kBlock <= span.numel; i += kRunLength * kBlock) {
#pragma GCC unroll 8
    for (int k = 0; k < kRunLength; ++k) {
      const int64_t at = i + k * kBlock;
      block(grad + at * kG, ema + at * kE);
    }
    end_run();
  }
  for (; i + kBlock <= span.numel; i += kBlock) block(grad + i * kG, ema + i * kE);
  end_run();
  if (i < span.numel) {
    const auto rest = static_cast<size_t>(span.numel - i);
    char g[kBlock * kG] = {}, e[kBlock * kE] = {};
    std::memcpy(g, grad + i * kG, rest * kG);
    if constexpr (kHasEma) std::memcpy(e, ema + i * kE, rest * kE);
    block(g, e);
    end_run();
    std::memcpy(grad + i * kG, g, rest * kG);
  }
}

template <DType G, DType E, bool kHasEma>
double apply_span(const Span& span, float alpha, float beta) {
  constexpr Order O = order_of<G, E>;
  const VecF scale = VecF{} + alpha, shift = VecF{} + beta;
  VecF run_a{}, run_b{};
  WideSum norm_sq;
  for_blocks<G, E, kHasEma>(
      span,
      [&](char* grad, const char* ema) __attribute__((always_inline)) {
        prefetch_ahead<Access::kWrite, kBlock * size_of(G)>(grad);
        if constexpr (kHasEma) prefetch_ahead<Access::kRead, kBlock * size_of(E)>(ema);
        Block g = load_block<G, O>(grad);
        if constexpr (kHasEma) {
          const Block e = load_block<E, O>(ema);
          g = {multiply_add(shift, e.a, scale * g.a), multiply_add(shift, e.b, scale * g.b)};
        } else {
          g = {scale * g.a, scale * g.b};
        }
        g = {round_nearest<G>(g.a), round_nearest<G>(g.b)};
        store_block<G, O>(grad, g);
        run_a = multiply_add(g.a, g.a, run_a);
        run_b = multiply_add(g.b, g.b, run_b);
      },
      [&]() __attribute__((always_inline)) {
        norm_sq.add(run_a + run_b);
        run_a = run_b = VecF{};
      });
  return norm_sq.total();
}

}  // namespace

double apply(Kind kind, const Span& span, double alpha, double beta) {
  const auto a = static_cast<float>(alpha), b = static_cast<float>(beta);
  return with_kind(kind, [&]<DType G, DType E>() {
    return beta != 0.0 ? apply_span<G, E, true>(span, a, b) : apply_span<G, E, false>(span, a, b);
  });
}

double wide_apply(Kind kind, const Span& span, double alpha, double beta) {
  return with_kind(kind, [&]<DType G, DType E>() {
    double norm_sq = 0.0;
    for (int64_t i = 0; i < span.numel; ++i) {
      const double e = beta != 0.0 ? load_one<E>(span.ema, i) : 0.0f;
      const double g = load_one<G>(span.grad, i);
      const double exact = __builtin_fma(beta, e, alpha * g);
      // Saturates: a finite gradient stays finite.
      const double bounded = exact > kLargest<G> ? kLargest<G> : exact < -kLargest<G> ? -kLargest<G> : exact;
      const double written = store_one<G>(span.grad, i, static_cast<float>(bounded));
      norm_sq += written * written;
    }
    return norm_sq;
  });
}

void rescale(Kind kind, const Span& span, double factor) {
  with_kind(kind, [&]<DType G, DType E>() {
    const VecF scale = VecF{} + static_cast<float>(factor);
    for_blocks<G, E, false>(
        span,
        [&](char* grad, const char*) __attribute__((always_inline)) {
          const Block g = load_block<G, Order::kHalves>(grad);
          store_block<G, Order::kHalves>(grad,
                                         Block{round_towards_zero<G>(scale * g.a), round_towards_zero<G>(scale * g.b)});
        },
        []() {});
    return 0;
  });
}

}  // namespace gru_fast::cpu::GRU_FAST_LEVEL
