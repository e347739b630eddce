// The passes of optim.h on the CPU, over one span. Compiled without contraction: theta * decay + step has two roundings,
// as in torch, and every fused product is spelled out.

#include "kernels.h"
#include "vector.h"

namespace gru_fast::cpu::GRU_FAST_LEVEL {
namespace {

struct Math {
  GRU_FAST_INLINE static VecF multiply_add(VecF a, VecF b, VecF c) { return GRU_FAST_LEVEL::multiply_add(a, b, c); }
  GRU_FAST_INLINE static VecF root(VecF x) {
#if defined(__AVX512F__)
    return (VecF)_mm512_maskz_sqrt_ps(0xffff, (__m512)x);  // GCC 12 warns of the plain form
#elif defined(__AVX2__)
    return (VecF)_mm256_sqrt_ps((__m256)x);
#else
    for (int i = 0; i < kLanes; ++i) x[i] = __builtin_sqrtf(x[i]);
    return x;
#endif
  }
};

GRU_FAST_INLINE VecF magnitude(VecF x) { return float_of(bits_of(x) & 0x7fffffffu); }
GRU_FAST_INLINE VecF larger(VecF a, VecF b) { return a > b ? a : b; }

// The running sums of one span, of U and the scaled e: float32 within a run, float64 between runs.
struct Accumulator {
  VecF dot{}, update{}, ema{}, reach{}, change{}, size{};
  WideSum wide_dot, wide_update, wide_ema, wide_reach, wide_change, wide_size;
  VecF largest{};
  bool adam;

  GRU_FAST_INLINE void add(VecF u, VecF e, VecF d, float floor) {
    dot = multiply_add(u, e, dot);
    update = multiply_add(u, u, update);
    ema = multiply_add(e, e, ema);
    if (adam) {
      const VecF part = e / (d + floor);
      reach = multiply_add(e, part, reach);
      change = multiply_add(part, part, change);
      size = multiply_add(d, d, size);
      largest = larger(largest, magnitude(part));
    } else {
      largest = larger(largest, magnitude(e));
    }
  }
  GRU_FAST_INLINE void end_run() {
    wide_dot.add(dot);
    wide_update.add(update);
    wide_ema.add(ema);
    if (adam) {
      wide_reach.add(reach);
      wide_change.add(change);
      wide_size.add(size);
    }
    dot = update = ema = reach = change = size = VecF{};
  }
  GRU_FAST_INLINE UpdateStats total() const {
    UpdateStats out;
    out.dot = wide_dot.total();
    out.step_norm_sq = wide_update.total();
    out.ema_norm_sq = wide_ema.total();
    out.reach = adam ? wide_reach.total() : out.ema_norm_sq;
    out.change_sq = adam ? wide_change.total() : out.ema_norm_sq;
    out.denominator_sq = adam ? wide_size.total() : 0.0;
    for (int i = 0; i < kLanes; ++i) out.largest = out.largest > largest[i] ? out.largest : largest[i];
    return out;
  }
};

// What a span has: pointers at its first element.
struct Bases {
  char* param;
  char* grad;  // null: zeros
  char* exp_avg;
  char* exp_avg_sq;
  const char* ema;  // null: not read
};

template <DType T>
GRU_FAST_INLINE Block rounded(Block x, RoundingBits::Two random) {
  if constexpr (T == DType::kFloat32) return x;
  return {round_stochastic<T>(x.a, random.a), round_stochastic<T>(x.b, random.b)};
}

template <DType T, Order O>
GRU_FAST_INLINE Block load_ahead(const char* from) {
  prefetch_ahead<Access::kRead, kBlock * size_of(T)>(from);
  return load_block<T, O>(from);
}

template <DType P, DType T, DType E, AdamWPass kPass>
struct AdamWBlock {
  static constexpr bool kSums = kPass == AdamWPass::kMoments || kPass == AdamWPass::kSums;
  static constexpr bool kWritesMoments = kPass == AdamWPass::kStep || kPass == AdamWPass::kMoments;
  static constexpr bool kMoves = kPass == AdamWPass::kStep || kPass == AdamWPass::kUpdate;
  static constexpr Order O = order_of<P, T> == Order::kEvenOdd && E == P ? Order::kEvenOdd : Order::kHalves;

  AdamWFactors c;
  bool write_grad;
  RoundingBits first, second, param, feed;
  Accumulator sums;

  GRU_FAST_INLINE Block gradient(const Bases& at, Block e) const {
    Block g = at.grad != nullptr ? load_ahead<P, O>(at.grad) : Block{};
    if (c.alpha != 1.0f) g = {c.alpha * g.a, c.alpha * g.b};
    if (c.beta != 0.0f) g = {multiply_add(VecF{} + c.beta, e.a, g.a), multiply_add(VecF{} + c.beta, e.b, g.b)};
    return g;
  }

  GRU_FAST_INLINE void take_gradient(const Bases& at, Block g, Block& m, Block& v) {
    m = {first_moment<Math>(c, g.a, m.a), first_moment<Math>(c, g.b, m.b)};
    v = {second_moment<Math>(c, g.a, v.a), second_moment<Math>(c, g.b, v.b)};
    if constexpr (T != DType::kFloat32) {
      m = rounded<T>(m, first.template next<O>());
      v = rounded<T>(v, second.template next<O>());
    }
    if constexpr (kWritesMoments) {
      store_block<T, O>(at.exp_avg, m);
      store_block<T, O>(at.exp_avg_sq, v);
      if (write_grad && at.grad != nullptr) {
        store_block<P, O>(at.grad, Block{round_nearest<P>(g.a), round_nearest<P>(g.b)});
      }
    }
  }

  // theta - lr Z.
  GRU_FAST_INLINE void move(const Bases& at, Block theta, Block e, Block m, Block d) {
    theta = {moved(c, theta.a, m.a, d.a), moved(c, theta.b, m.b, d.b)};
    if (c.shift != 0.0f) {
      if (c.adam) e = {e.a / (d.a + c.floor), e.b / (d.b + c.floor)};
      const VecF shift = VecF{} - c.shift;
      theta = {multiply_add(shift, e.a, theta.a), multiply_add(shift, e.b, theta.b)};
    }
    if (c.feed != 0.0f) {
      const VecF part = VecF{} + c.feed;
      m = {multiply_add(part * d.a, e.a, m.a), multiply_add(part * d.b, e.b, m.b)};
      RoundingBits::Two random{};
      if constexpr (T != DType::kFloat32) random = feed.template next<O>();
      store_block<T, O>(at.exp_avg, rounded<T>(m, random));
    }
    RoundingBits::Two random{};
    if constexpr (P != DType::kFloat32) random = param.template next<O>();
    store_block<P, O>(at.param, rounded<P>(theta, random));
  }

  // `live`: of a block that is not full, 1 where there is an element; else null.
  GRU_FAST_INLINE void operator()(const Bases& at, const Block* live = nullptr) {
    const Block theta = kMoves || c.weight_decay != 0.0f ? load_ahead<P, O>(at.param) : Block{};
    Block m = load_ahead<T, O>(at.exp_avg), v = load_ahead<T, O>(at.exp_avg_sq);
    Block e = at.ema != nullptr ? load_ahead<E, O>(at.ema) : Block{};
    if constexpr (kPass != AdamWPass::kUpdate) take_gradient(at, gradient(at, e), m, v);
    const Block d = {denominator<Math>(c, v.a), denominator<Math>(c, v.b)};
    e = {c.scale * e.a, c.scale * e.b};
    if constexpr (kSums) {
      const Block u = {update_of<Math>(c, theta.a, m.a, d.a), update_of<Math>(c, theta.b, m.b, d.b)};
      if (live == nullptr) {
        sums.add(u.a, e.a, d.a, c.floor);
        sums.add(u.b, e.b, d.b, c.floor);
      } else {
        const auto only = [](VecF is_live, VecF x) { return is_live > 0.5f ? x : VecF{}; };
        sums.add(only(live->a, u.a), e.a, only(live->a, d.a), c.floor);
        sums.add(only(live->b, u.b), e.b, only(live->b, d.b), c.floor);
      }
    }
    if constexpr (kMoves) move(at, theta, e, m, d);
  }
};

template <DType P, DType T, DType E>
Bases bases_at(const AdamWSpan& span, int64_t i) {
  const auto at = [](auto* base, int64_t bytes) { return base == nullptr ? nullptr : base + bytes; };
  return {static_cast<char*>(span.param) + i * size_of(P), at(static_cast<char*>(span.grad), i * size_of(P)),
          static_cast<char*>(span.exp_avg) + i * size_of(T), static_cast<char*>(span.exp_avg_sq) + i * size_of(T),
          at(static_cast<const char*>(span.ema), i * size_of(E))};
}

// The last elements of a span, fewer than a block.
template <DType P, DType T, DType E, AdamWPass kPass>
void last_block(AdamWBlock<P, T, E, kPass>& block, const Bases& from, int64_t numel) {
  const auto count = static_cast<size_t>(numel);
  char p[kBlock * size_of(P)] = {}, g[kBlock * size_of(P)] = {}, e[kBlock * size_of(E)] = {};
  char m[kBlock * size_of(T)] = {}, v[kBlock * size_of(T)] = {}, marks[kBlock * size_of(P)] = {};
  for (int64_t i = 0; i < numel; ++i) store_one<P>(marks, i, 1.0f);
  std::memcpy(p, from.param, count * size_of(P));
  if (from.grad != nullptr) std::memcpy(g, from.grad, count * size_of(P));
  std::memcpy(m, from.exp_avg, count * size_of(T));
  std::memcpy(v, from.exp_avg_sq, count * size_of(T));
  if (from.ema != nullptr) std::memcpy(e, from.ema, count * size_of(E));
  const Block live = load_block<P, AdamWBlock<P, T, E, kPass>::O>(marks);
  block({p, from.grad != nullptr ? g : nullptr, m, v, from.ema != nullptr ? e : nullptr}, &live);
  std::memcpy(from.param, p, count * size_of(P));
  if (from.grad != nullptr && block.write_grad) std::memcpy(from.grad, g, count * size_of(P));
  std::memcpy(from.exp_avg, m, count * size_of(T));
  std::memcpy(from.exp_avg_sq, v, count * size_of(T));
}

template <DType P, DType T, DType E, AdamWPass kPass>
UpdateStats adamw_span(const AdamWSpan& span, const AdamWFactors& factors, bool write_grad) {
  const auto bits = [&](int stream) { return RoundingBits(span.rounding_keys[stream], span.tile_offset); };
  AdamWBlock<P, T, E, kPass> block{factors, write_grad, bits(0), bits(1), bits(2), bits(3), {}};
  block.sums.adam = factors.adam;
  int64_t i = 0;
  for (; i + kRunLength * kBlock <= span.numel; i += kRunLength * kBlock) {
    for (int k = 0; k < kRunLength / 2; ++k) block(bases_at<P, T, E>(span, i + k * kBlock));
    block.sums.end_run();
    for (int k = kRunLength / 2; k < kRunLength; ++k) block(bases_at<P, T, E>(span, i + k * kBlock));
    block.sums.end_run();
  }
  for (; i + kBlock <= span.numel; i += kBlock) {
    block(bases_at<P, T, E>(span, i));
    block.sums.end_run();
  }
  if (i < span.numel) {
    last_block(block, bases_at<P, T, E>(span, i), span.numel - i);
    block.sums.end_run();
  }
  return block.sums.total();
}

}  // namespace

UpdateStats adamw(AdamWKind kind, AdamWPass pass, const AdamWSpan& span, const AdamWFactors& factors, bool write_grad) {
  return with_adamw_kind(kind, [&]<DType P, DType T, DType E>() {
    switch (pass) {
      case AdamWPass::kMoments:
        return adamw_span<P, T, E, AdamWPass::kMoments>(span, factors, write_grad);
      case AdamWPass::kUpdate:
        return adamw_span<P, T, E, AdamWPass::kUpdate>(span, factors, write_grad);
      case AdamWPass::kSums:
        return adamw_span<P, T, E, AdamWPass::kSums>(span, factors, write_grad);
      default:
        return adamw_span<P, T, E, AdamWPass::kStep>(span, factors, write_grad);
    }
  });
}

}  // namespace gru_fast::cpu::GRU_FAST_LEVEL
