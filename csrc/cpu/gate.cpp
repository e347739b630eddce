// The element-wise pass on the CPU: see gate.h. Its sums are taken in float64, since g cannot be read again.

#include "../gate.h"
#include "kernels.h"
#include "vector.h"

namespace gru_fast::cpu::GRU_FAST_LEVEL {
namespace {

// A float64 sum of products of float32 numbers, exact but for its own additions.
struct ProductSum {
  VecD low{}, high{};

  GRU_FAST_INLINE void add(VecF x, VecF y) {
    low += __builtin_convertvector(lower<HalfF>(x), VecD) * __builtin_convertvector(lower<HalfF>(y), VecD);
    high += __builtin_convertvector(upper<HalfF>(x), VecD) * __builtin_convertvector(upper<HalfF>(y), VecD);
  }
  GRU_FAST_INLINE void add(Block x, Block y) {
    add(x.a, y.a);
    add(x.b, y.b);
  }
  GRU_FAST_INLINE double total() const {
    WideSum sum;
    sum.low = low;
    sum.high = high;
    return sum.total();
  }
};

template <DType G, DType E, bool kAdds>
struct GateBlock {
  static constexpr Order O = order_of<G, E>;
  VecF w_f, w_r;
  ProductSum dot, ema, grad, written, along;
  VecI opposed{};

  GRU_FAST_INLINE VecF gated(VecF g, VecF x) {
    const VecI differ = are_opposed(g, x);
    opposed -= differ;  // a lane that holds is -1
    const VecF kept = kAdds ? multiply_add(w_r, x, w_f * g) : w_f * g;
    const VecI bad = is_nonfinite(g) | is_nonfinite(x);
    return round_nearest<G>(bad ? float_of(VecU{} + kPlainNan) : differ ? w_r * x : kept);
  }

  GRU_FAST_INLINE void operator()(char* grad_at, const char* ema_at) {
    prefetch_ahead<Access::kWrite, kBlock * size_of(G)>(grad_at);
    prefetch_ahead<Access::kRead, kBlock * size_of(E)>(ema_at);
    const Block g = load_block<G, O>(grad_at), x = load_block<E, O>(ema_at);
    const Block out = {gated(g.a, x.a), gated(g.b, x.b)};
    store_block<G, O>(grad_at, out);
    dot.add(g, x);
    ema.add(x, x);
    grad.add(g, g);
    written.add(out, out);
    along.add(out, x);
  }

  GRU_FAST_INLINE GateSums total() const {
    double count = 0.0;
    for (int i = 0; i < kLanes; ++i) count += opposed[i];
    return {dot.total(), ema.total(), grad.total(), written.total(), along.total(), count};
  }
};

template <DType G, DType E, bool kAdds>
GateSums gate_span(const Span& span, const Gate& gate) {
  constexpr int64_t kG = size_of(G), kE = size_of(E);
  char* grad = static_cast<char*>(span.grad);
  const char* ema = static_cast<const char*>(span.ema);
  GateBlock<G, E, kAdds> block{};
  block.w_f = VecF{} + gate.w_f;
  block.w_r = VecF{} + gate.w_r;
  int64_t i = 0;
  for (; i + kBlock <= span.numel; i += kBlock) block(grad + i * kG, ema + i * kE);
  if (i < span.numel) {  // the last few elements, padded with zeros to a block of their own
    const auto rest = static_cast<size_t>(span.numel - i);
    char g[kBlock * kG] = {}, e[kBlock * kE] = {};
    std::memcpy(g, grad + i * kG, rest * kG);
    std::memcpy(e, ema + i * kE, rest * kE);
    block(g, e);
    std::memcpy(grad + i * kG, g, rest * kG);
  }
  return block.total();
}

// Without a g: x alone counts.
template <DType E>
GateSums ema_span(const Span& span) {
  double sum = 0.0;
  for (int64_t i = 0; i < span.numel; ++i) {
    const double e = load_one<E>(span.ema, i);
    sum += e * e;
  }
  GateSums out;
  out.ema_norm_sq = sum;
  return out;
}

}  // namespace

GateSums gate(Kind kind, const Span& span, const Gate& gate) {
  return with_kind(kind, [&]<DType G, DType E>() {
    if (span.grad == nullptr) return ema_span<E>(span);
    return gate.adds ? gate_span<G, E, true>(span, gate) : gate_span<G, E, false>(span, gate);
  });
}

}  // namespace gru_fast::cpu::GRU_FAST_LEVEL
