// The two passes of task_vector.h on the CPU. Sums: reads learned, origin, total, own. Add: reads them again (the
// gradients only after a projection) and mean; writes mean, and origin over learned. T and r live in registers alone.

#include "kernels.h"
#include "vector.h"

namespace gru_fast::cpu::GRU_FAST_LEVEL {
namespace {

// Which of r's terms there are.
enum class Rest { kNone, kTotal, kBoth };

GRU_FAST_INLINE Block minus(Block left, Block right) { return {left.a - right.a, left.b - right.b}; }

template <DType T, Order O>
GRU_FAST_INLINE Block load_ahead(const char* from) {
  prefetch_ahead<Access::kRead, kBlock * size_of(T)>(from);
  return load_block<T, O>(from);
}

template <DType A, DType B, Rest R, Order O>
GRU_FAST_INLINE Block load_rest(const char* total, const char* own) {
  if constexpr (R == Rest::kNone) return Block{};
  const Block all = load_ahead<A, O>(total);
  if constexpr (R == Rest::kTotal) return all;
  return minus(all, load_ahead<B, O>(own));
}

// The last elements of a tensor, fewer than a block, in front of zeros.
template <DType T>
struct Padded {
  char bytes[kBlock * size_of(T)] = {};

  GRU_FAST_INLINE Padded(const char* from, int64_t numel) {
    if (from != nullptr) std::memcpy(bytes, from, static_cast<size_t>(numel) * size_of(T));
  }
};

struct Bases {
  char* learned;
  const char* origin;
  const char* total;
  const char* own;
  char* mean;

  explicit Bases(const VectorSpan& span)
      : learned(static_cast<char*>(span.learned)),
        origin(static_cast<const char*>(span.origin)),
        total(static_cast<const char*>(span.total)),
        own(static_cast<const char*>(span.own)),
        mean(reinterpret_cast<char*>(span.mean)) {}
};

// ---- sums -----------------------------------------------------------------------------------------------------------

// Both vectors of the differences of bfloat16 tensors unpack without a shuffle; other dtypes need the order of memory.
template <DType P, DType A, DType B>
inline constexpr Order order_of_sums = order_of<P, A> == Order::kEvenOdd && B == P ? Order::kEvenOdd : Order::kHalves;

template <DType P, DType A, DType B, Rest R>
struct SumsBlock {
  static constexpr Order O = order_of_sums<P, A, B>;
  VecF dot_a{}, dot_b{}, rest_a{}, rest_b{}, task_a{}, task_b{};
  WideSum dot, rest, task;

  GRU_FAST_INLINE void operator()(const char* learned, const char* origin, const char* total, const char* own) {
    const Block t = minus(load_ahead<P, O>(learned), load_ahead<P, O>(origin));
    task_a = multiply_add(t.a, t.a, task_a);
    task_b = multiply_add(t.b, t.b, task_b);
    if constexpr (R != Rest::kNone) {
      const Block r = load_rest<A, B, R, O>(total, own);
      dot_a = multiply_add(t.a, r.a, dot_a);
      dot_b = multiply_add(t.b, r.b, dot_b);
      rest_a = multiply_add(r.a, r.a, rest_a);
      rest_b = multiply_add(r.b, r.b, rest_b);
    }
  }
  GRU_FAST_INLINE void end_run() {
    dot.add(dot_a + dot_b);
    rest.add(rest_a + rest_b);
    task.add(task_a + task_b);
    dot_a = dot_b = rest_a = rest_b = task_a = task_b = VecF{};
  }
  GRU_FAST_INLINE Sums total_sums() const { return {dot.total(), rest.total(), task.total(), 0.0}; }
};

template <DType P, DType A, DType B, Rest R>
Sums sums_of(const VectorSpan& span) {
  constexpr int64_t kP = size_of(P), kA = size_of(A), kB = size_of(B);
  const Bases base(span);
  SumsBlock<P, A, B, R> block;
  int64_t i = 0;
  const auto visit = [&](int64_t at) __attribute__((always_inline)) {
    block(base.learned + at * kP, base.origin + at * kP, base.total + at * kA, base.own + at * kB);
  };
  for (; i + kRunLength * kBlock <= span.numel; i += kRunLength * kBlock) {
#pragma GCC unroll 8
    for (int k = 0; k < kRunLength; ++k) visit(i + k * kBlock);
    block.end_run();
  }
  for (; i + kBlock <= span.numel; i += kBlock) visit(i);
  block.end_run();
  if (i < span.numel) {
    const int64_t rest = span.numel - i;
    const Padded<P> learned(base.learned + i * kP, rest), origin(base.origin + i * kP, rest);
    const Padded<A> total(R == Rest::kNone ? nullptr : base.total + i * kA, rest);
    const Padded<B> own(R == Rest::kBoth ? base.own + i * kB : nullptr, rest);
    block(learned.bytes, origin.bytes, total.bytes, own.bytes);
    block.end_run();
  }
  return block.total_sums();
}

// ---- add ------------------------------------------------------------------------------------------------------------

template <DType P, DType A, DType B, Rest R>
struct AddBlock {
  static constexpr Order O = Order::kHalves;  // that of the float32 mean
  VecF scale, shift;
  bool restore;

  GRU_FAST_INLINE void operator()(char* learned, const char* origin, const char* total, const char* own,
                                  char* mean) const {
    prefetch_ahead<Access::kWrite, kBlock * size_of(P)>(learned);
    prefetch_ahead<Access::kWrite, kBlock * size_of(DType::kFloat32)>(mean);
    const Block start = load_ahead<P, O>(origin);
    const Block t = minus(load_block<P, O>(learned), start);
    Block m = load_block<DType::kFloat32, O>(mean);
    m = {multiply_add(scale, t.a, m.a), multiply_add(scale, t.b, m.b)};
    if constexpr (R != Rest::kNone) {
      const Block r = load_rest<A, B, R, O>(total, own);
      m = {multiply_add(shift, r.a, m.a), multiply_add(shift, r.b, m.b)};
    }
    store_block<DType::kFloat32, O>(mean, m);
    if (restore) store_block<P, O>(learned, start);
  }
};

template <DType P, DType A, DType B, Rest R>
void add_to_mean(const VectorSpan& span, float scale, float shift, bool restore) {
  constexpr int64_t kP = size_of(P), kA = size_of(A), kB = size_of(B), kMean = size_of(DType::kFloat32);
  const Bases base(span);
  const AddBlock<P, A, B, R> block{VecF{} + scale, VecF{} + shift, restore};
  int64_t i = 0;
  for (; i + kBlock <= span.numel; i += kBlock) {
    block(base.learned + i * kP, base.origin + i * kP, base.total + i * kA, base.own + i * kB, base.mean + i * kMean);
  }
  if (i < span.numel) {
    const int64_t rest = span.numel - i;
    Padded<P> learned(base.learned + i * kP, rest);
    const Padded<P> origin(base.origin + i * kP, rest);
    const Padded<A> total(R == Rest::kNone ? nullptr : base.total + i * kA, rest);
    const Padded<B> own(R == Rest::kBoth ? base.own + i * kB : nullptr, rest);
    Padded<DType::kFloat32> mean(base.mean + i * kMean, rest);
    block(learned.bytes, origin.bytes, total.bytes, own.bytes, mean.bytes);
    std::memcpy(base.learned + i * kP, learned.bytes, static_cast<size_t>(rest * kP));
    std::memcpy(base.mean + i * kMean, mean.bytes, static_cast<size_t>(rest * kMean));
  }
}

// Picks the template for the terms of r that a span has; `own` without `total` takes the slow road in the callers.
template <DType P, DType A, DType B, class F>
GRU_FAST_INLINE auto with_rest(const VectorSpan& span, bool wanted, F&& f) {
  if (!wanted || span.total == nullptr) return f.template operator()<P, A, B, Rest::kNone>();
  if (span.own == nullptr) return f.template operator()<P, A, B, Rest::kTotal>();
  return f.template operator()<P, A, B, Rest::kBoth>();
}

bool has_own_alone(const VectorSpan& span) { return span.total == nullptr && span.own != nullptr; }

// One element of T and of r, as the fast kernels see them.
struct Element {
  double task, rest;
};

template <DType P, DType A, DType B>
GRU_FAST_INLINE Element element_of(const VectorSpan& span, int64_t i) {
  const float total = span.total != nullptr ? load_one<A>(span.total, i) : 0.0f;
  const float own = span.own != nullptr ? load_one<B>(span.own, i) : 0.0f;
  return {load_one<P>(span.learned, i) - load_one<P>(span.origin, i), total - own};
}

}  // namespace

Sums wide_vector_sums(VectorKind kind, const VectorSpan& span, double r_weight) {
  return with_kind(kind, [&]<DType P, DType A, DType B>() {
    Sums sums;
    for (int64_t i = 0; i < span.numel; ++i) {
      const Element at = element_of<P, A, B>(span, i);
      const double task = __builtin_fma(r_weight, at.rest, at.task);
      sums.dot += task * at.rest;
      sums.ema_norm_sq += at.rest * at.rest;
      sums.grad_norm_sq += task * task;
    }
    return sums;
  });
}

Sums vector_sums(VectorKind kind, const VectorSpan& span) {
  if (has_own_alone(span)) return wide_vector_sums(kind, span, 0.0);
  return with_kind(kind, [&]<DType P, DType A, DType B>() {
    return with_rest<P, A, B>(span, true, [&]<DType, DType, DType, Rest R>() { return sums_of<P, A, B, R>(span); });
  });
}

void wide_vector_add(VectorKind kind, const VectorSpan& span, double scale, double shift, bool restore) {
  with_kind(kind, [&]<DType P, DType A, DType B>() {
    for (int64_t i = 0; i < span.numel; ++i) {
      const Element at = element_of<P, A, B>(span, i);
      const double rest = shift != 0.0 ? shift * at.rest : 0.0;
      span.mean[i] = static_cast<float>(span.mean[i] + __builtin_fma(scale, at.task, rest));
    }
    if (restore) std::memcpy(span.learned, span.origin, static_cast<size_t>(span.numel * size_of(P)));
    return 0;
  });
}

void vector_add(VectorKind kind, const VectorSpan& span, double scale, double shift, bool restore) {
  if (has_own_alone(span)) return wide_vector_add(kind, span, scale, shift, restore);
  const auto a = static_cast<float>(scale), b = static_cast<float>(shift);
  with_kind(kind, [&]<DType P, DType A, DType B>() {
    with_rest<P, A, B>(span, shift != 0.0, [&]<DType, DType, DType, Rest R>() {
      add_to_mean<P, A, B, R>(span, a, b, restore);
      return 0;
    });
    return 0;
  });
}

}  // namespace gru_fast::cpu::GRU_FAST_LEVEL
