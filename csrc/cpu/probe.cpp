// Bench only: the memory traffic of the two passes and as little else as possible, over the same spans. What a pass
// takes longer than its probe is not memory. Values are read and written back; the empty asm keeps the compiler from
// seeing that they do not change.

#include "kernels.h"
#include "vector.h"

namespace gru_fast::cpu::GRU_FAST_LEVEL {
namespace {

GRU_FAST_INLINE void keep_alive(VecU& x) {
#if defined(__AVX512F__)
  asm volatile("" : "+v"(x));
#elif defined(__x86_64__)
  asm volatile("" : "+x"(x));
#else
  asm volatile("" : "+w"(x));
#endif
}

// Reads bytes [begin, end) of `values`, whole vectors only (spans are long; the rest does not matter to a probe).
GRU_FAST_INLINE void read(const void* values, int64_t at) {
  prefetch_ahead<Access::kRead, kVectorBytes>(static_cast<const char*>(values) + at);
  VecU x = load<VecU>(static_cast<const char*>(values) + at);
  keep_alive(x);
}

GRU_FAST_INLINE void read_write(void* values, int64_t at) {
  prefetch_ahead<Access::kWrite, kVectorBytes>(static_cast<const char*>(values) + at);
  VecU x = load<VecU>(static_cast<const char*>(values) + at);
  keep_alive(x);
  store(static_cast<char*>(values) + at, x);
}

// `kRatio` vectors of e go with one of g and r: 2 where e is float32 and g is 16-bit.
template <int kRatio, class Step>
GRU_FAST_INLINE void walk(const Span& span, int64_t grad_size, Step&& step) {
  const int64_t bytes = span.numel * grad_size;
  for (int64_t at = 0; at + kVectorBytes <= bytes; at += kVectorBytes) step(at, at * kRatio);
}

template <int kRatio>
void reduce_traffic(const Span& span, int64_t grad_size) {
  walk<kRatio>(span, grad_size, [&](int64_t at, int64_t ema_at) __attribute__((always_inline)) {
    if (span.grad != nullptr) read(span.grad, at);
    if (span.retain != nullptr) read(span.retain, at);
    for (int k = 0; k < kRatio; ++k) read_write(span.ema, ema_at + k * kVectorBytes);
  });
}

template <int kRatio>
void apply_traffic(const Span& span, int64_t grad_size) {
  walk<kRatio>(span, grad_size, [&](int64_t at, int64_t ema_at) __attribute__((always_inline)) {
    for (int k = 0; k < kRatio; ++k) read(span.ema, ema_at + k * kVectorBytes);
    read_write(span.grad, at);
  });
}

}  // namespace

void probe_reduce(Kind kind, const Span& span) {
  const int64_t size = size_of(kind.grad);
  size_of(kind.ema) == size ? reduce_traffic<1>(span, size) : reduce_traffic<2>(span, size);
}

void probe_apply(Kind kind, const Span& span) {
  if (span.grad == nullptr) return;
  const int64_t size = size_of(kind.grad);
  size_of(kind.ema) == size ? apply_traffic<1>(span, size) : apply_traffic<2>(span, size);
}

}  // namespace gru_fast::cpu::GRU_FAST_LEVEL
