// out <- x_weight * x + y_weight * y on the CPU: a model minus a vector, a model between two. Reads x (and y if its
// weight is not 0) once and writes out once, rounded to nearest.

#include "kernels.h"
#include "vector.h"

namespace gru_fast::cpu::GRU_FAST_LEVEL {
namespace {

template <DType G, DType E, bool kHasY>
struct BlendBlock {
  static constexpr Order O = order_of<G, E>;
  VecF x_weight, y_weight;

  GRU_FAST_INLINE void operator()(char* out, const char* x, const char* y) const {
    prefetch_ahead<Access::kWrite, kBlock * size_of(G)>(out);
    prefetch_ahead<Access::kRead, kBlock * size_of(G)>(x);
    Block sum = load_block<G, O>(x);
    sum = {x_weight * sum.a, x_weight * sum.b};
    if constexpr (kHasY) {
      prefetch_ahead<Access::kRead, kBlock * size_of(E)>(y);
      const Block other = load_block<E, O>(y);
      sum = {multiply_add(y_weight, other.a, sum.a), multiply_add(y_weight, other.b, sum.b)};
    }
    store_block<G, O>(out, Block{round_nearest<G>(sum.a), round_nearest<G>(sum.b)});
  }
};

template <DType G, DType E, bool kHasY>
void blend_span(const Span& span, float x_weight, float y_weight) {
  constexpr int64_t kG = size_of(G), kE = size_of(E);
  char* out = static_cast<char*>(span.grad);
  const char* x = static_cast<const char*>(span.retain);
  const char* y = static_cast<const char*>(span.ema);
  const BlendBlock<G, E, kHasY> block{VecF{} + x_weight, VecF{} + y_weight};
  int64_t i = 0;
  for (; i + kBlock <= span.numel; i += kBlock) block(out + i * kG, x + i * kG, y + i * kE);
  if (i < span.numel) {  // the last few elements, padded with zeros to a block of their own
    const auto rest = static_cast<size_t>(span.numel - i);
    char written[kBlock * kG], padded_x[kBlock * kG] = {}, padded_y[kBlock * kE] = {};
    std::memcpy(padded_x, x + i * kG, rest * kG);
    if constexpr (kHasY) std::memcpy(padded_y, y + i * kE, rest * kE);
    block(written, padded_x, padded_y);
    std::memcpy(out + i * kG, written, rest * kG);
  }
}

}  // namespace

void blend(Kind kind, const Span& span, float x_weight, float y_weight) {
  with_kind(kind, [&]<DType G, DType E>() {
    y_weight != 0.0f ? blend_span<G, E, true>(span, x_weight, y_weight)
                     : blend_span<G, E, false>(span, x_weight, y_weight);
    return 0;
  });
}

}  // namespace gru_fast::cpu::GRU_FAST_LEVEL
