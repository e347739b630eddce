// Vectors of one level (AVX-512, AVX2 or the baseline of the target), by the compiler's own vector types: operators
// work lane by lane, so the templates of arithmetic.h take them as they are. Every file that includes this is compiled
// once per level, in the namespace of that level: nothing here may be shared between levels by the linker.
#pragma once

#include <cstring>
#include <utility>

#include "../arithmetic.h"
#include "../kinds.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define GRU_FAST_INLINE inline __attribute__((always_inline))

#if defined(__AVX512F__)
#define GRU_FAST_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define GRU_FAST_VECTOR_BYTES 32
#else
#define GRU_FAST_VECTOR_BYTES 16
#endif

namespace gru_fast::cpu::GRU_FAST_LEVEL {

inline constexpr int kVectorBytes = GRU_FAST_VECTOR_BYTES;
inline constexpr int kLanes = kVectorBytes / 4;
inline constexpr int kBlock = 2 * kLanes;  // elements a step of the inner loop takes: two vectors

using VecF = float __attribute__((vector_size(kVectorBytes)));
using VecU = uint32_t __attribute__((vector_size(kVectorBytes)));
using VecI = int32_t __attribute__((vector_size(kVectorBytes)));
using VecQ = uint64_t __attribute__((vector_size(kVectorBytes)));  // kBlock 16-bit numbers, as four to a lane
using VecD = double __attribute__((vector_size(kVectorBytes)));
using HalfF = float __attribute__((vector_size(kVectorBytes / 2)));
using HalfU = uint32_t __attribute__((vector_size(kVectorBytes / 2)));
using Vec16 = uint16_t __attribute__((vector_size(kVectorBytes / 2)));  // kLanes 16-bit numbers
using Wide16 = uint16_t __attribute__((vector_size(kVectorBytes)));     // kBlock 16-bit numbers

}  // namespace gru_fast::cpu::GRU_FAST_LEVEL

namespace gru_fast {

// Signed conversions: the values are far below 2^31, and AVX2 has no unsigned ones.
template <>
struct Lanes<cpu::GRU_FAST_LEVEL::VecF> {
  using Uint = cpu::GRU_FAST_LEVEL::VecU;
  GRU_FAST_INLINE static Uint to_uint(cpu::GRU_FAST_LEVEL::VecF x) {
    return (Uint) __builtin_convertvector(x, cpu::GRU_FAST_LEVEL::VecI);
  }
};

template <>
struct Lanes<cpu::GRU_FAST_LEVEL::VecU> {
  using Float = cpu::GRU_FAST_LEVEL::VecF;
  GRU_FAST_INLINE static Float to_float(cpu::GRU_FAST_LEVEL::VecU x) {
    return __builtin_convertvector((cpu::GRU_FAST_LEVEL::VecI)x, Float);
  }
};

template <>
struct Quads<cpu::GRU_FAST_LEVEL::VecQ> {
  using VecQ = cpu::GRU_FAST_LEVEL::VecQ;

  GRU_FAST_INLINE static VecQ product(VecQ x, uint32_t factor) {
    const VecQ factors = VecQ{} + factor;
#if defined(__AVX512F__)
    return (VecQ)_mm512_maskz_mul_epu32(0xff, (__m512i)x, (__m512i)factors);
#elif defined(__AVX2__)
    return (VecQ)_mm256_mul_epu32((__m256i)x, (__m256i)factors);
#elif defined(__SSE2__)
    return (VecQ)_mm_mul_epu32((__m128i)x, (__m128i)factors);
#else
    return (x & 0xffffffffu) * factors;
#endif
  }
};

}  // namespace gru_fast

namespace gru_fast::cpu::GRU_FAST_LEVEL {

// a * b + c in one rounding where the level has it. Spelled out: left to itself the compiler may fuse a product inside c
// instead, and then the CPU would differ from CUDA by an ulp.
GRU_FAST_INLINE VecF multiply_add(VecF a, VecF b, VecF c) {
#if defined(__AVX512F__)
  return (VecF)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (VecF)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

template <class Vector>
GRU_FAST_INLINE Vector load(const void* from) {
  Vector out;
  std::memcpy(&out, from, sizeof(out));
  return out;
}

template <class Vector>
GRU_FAST_INLINE void store(void* to, Vector value) {
  std::memcpy(to, &value, sizeof(value));
}

template <size_t kOffset, class Out, class In, size_t... I>
GRU_FAST_INLINE Out pick_from(In v, std::index_sequence<I...>) {
  return __builtin_shufflevector(v, v, (I + kOffset)...);
}
template <class Out, class In>
GRU_FAST_INLINE Out lower(In v) {
  return pick_from<0, Out>(v, std::make_index_sequence<sizeof(In) / sizeof(v[0]) / 2>());
}
template <class Out, class In>
GRU_FAST_INLINE Out upper(In v) {
  constexpr size_t kHalf = sizeof(In) / sizeof(v[0]) / 2;
  return pick_from<kHalf, Out>(v, std::make_index_sequence<kHalf>());
}

// Asks for what the kernel reads thirty-one cache lines from now. The hardware's own prefetcher stops at page borders and lags
// behind when a kernel also has arithmetic to do: without this the bfloat16 passes take 10% longer. Not a page: a load
// whose address ends in the same 12 bits as a store still in flight waits for it.
inline constexpr int64_t kPrefetchBytes = 1984;

enum class Access { kRead, kWrite };

template <Access A, int64_t kBytes>
GRU_FAST_INLINE void prefetch_ahead(const void* block) {
  const uintptr_t ahead =
      reinterpret_cast<uintptr_t>(block) + kPrefetchBytes;  // may lie beyond the tensor: a hint only
  for (int64_t line = 0; line < kBytes; line += 64) {
    __builtin_prefetch(reinterpret_cast<const void*>(ahead + line), A == Access::kWrite ? 1 : 0);
  }
}

// ---- blocks: kBlock elements of any dtype as two vectors of float32 -------------------------------------------------

struct Block {
  VecF a, b;
};

// Which elements a and b hold. Halves: the first and the second kLanes. EvenOdd: elements 0, 2, 4.. and 1, 3, 5..; a
// bfloat16 block then unpacks with one shift and one mask and packs with one shift and one or, no shuffles. Both sides
// of an operation must agree, so EvenOdd serves only where g and e are bfloat16.
enum class Order { kHalves, kEvenOdd };

template <DType G, DType E>
inline constexpr Order order_of = G == DType::kBFloat16 && E == DType::kBFloat16 ? Order::kEvenOdd : Order::kHalves;

GRU_FAST_INLINE VecF widen_half(Vec16 h) {
#if defined(__AVX512F__)
  return (VecF)_mm512_maskz_cvtph_ps(0xffff, (__m256i)h);
#elif defined(__F16C__)
  return (VecF)_mm256_cvtph_ps((__m128i)h);
#else
  VecF out;
  for (int i = 0; i < kLanes; ++i) out[i] = half_to_float(h[i]);
  return out;
#endif
}

GRU_FAST_INLINE Vec16 narrow_half(VecF x) {
#if defined(__AVX512F__)
  return (Vec16)_mm512_maskz_cvtps_ph(0xffff, (__m512)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__F16C__)
  return (Vec16)_mm256_cvtps_ph((__m256)x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  Vec16 out;
  for (int i = 0; i < kLanes; ++i) out[i] = float_to_half(x[i]);
  return out;
#endif
}

template <DType T, Order O>
GRU_FAST_INLINE Block load_block(const void* from) {
  const char* bytes = static_cast<const char*>(from);
  if constexpr (T == DType::kFloat32) {
    return {load<VecF>(bytes), load<VecF>(bytes + kVectorBytes)};
  } else if constexpr (T == DType::kFloat16) {
    return {widen_half(load<Vec16>(bytes)), widen_half(load<Vec16>(bytes + kVectorBytes / 2))};
  } else if constexpr (O == Order::kEvenOdd) {
    const VecU words = load<VecU>(bytes);
    return {float_of(words << 16), float_of(words & 0xffff0000u)};
  } else {
    const VecU first = __builtin_convertvector(load<Vec16>(bytes), VecU);
    const VecU second = __builtin_convertvector(load<Vec16>(bytes + kVectorBytes / 2), VecU);
    return {float_of(first << 16), float_of(second << 16)};
  }
}

// The values must lie on T's grid (round_to).
template <DType T, Order O>
GRU_FAST_INLINE void store_block(void* to, Block x) {
  char* bytes = static_cast<char*>(to);
  if constexpr (T == DType::kFloat32) {
    store(bytes, x.a);
    store(bytes + kVectorBytes, x.b);
  } else if constexpr (T == DType::kFloat16) {
    store(bytes, narrow_half(x.a));
    store(bytes + kVectorBytes / 2, narrow_half(x.b));
  } else if constexpr (O == Order::kEvenOdd) {
    store(bytes, (bits_of(x.a) >> 16) | bits_of(x.b));
  } else {
    store(bytes, __builtin_convertvector(bits_of(x.a) >> 16, Vec16));
    store(bytes + kVectorBytes / 2, __builtin_convertvector(bits_of(x.b) >> 16, Vec16));
  }
}

// True if any element of the block is NaN or infinite.
GRU_FAST_INLINE bool any_nonfinite(Block x) {
#if defined(__AVX512F__)
  constexpr int kNanOrInfinity = 0x99;
  return _mm512_fpclass_ps_mask((__m512)x.a, kNanOrInfinity) | _mm512_fpclass_ps_mask((__m512)x.b, kNanOrInfinity);
#else
  const VecI bad = is_nonfinite(x.a) | is_nonfinite(x.b);
#if defined(__AVX2__)
  return _mm256_movemask_ps((__m256)bad) != 0;
#elif defined(__SSE2__)
  return _mm_movemask_ps((__m128)bad) != 0;
#else
  int32_t any = 0;
  for (int i = 0; i < kLanes; ++i) any |= bad[i];
  return any != 0;
#endif
#endif
}

// ---- rounding to a dtype's grid -------------------------------------------------------------------------------------

template <DType T>
GRU_FAST_INLINE VecF round_nearest(VecF x) {
  if constexpr (T == DType::kBFloat16) {
    return float_of(round_bfloat16(bits_of(x)));
  } else if constexpr (T == DType::kFloat16) {
    const VecF low = x < -kHalfMax ? VecF{} - kHalfMax : x;  // saturates: a finite gradient stays finite
    return widen_half(narrow_half(low > kHalfMax ? VecF{} + kHalfMax : low));
  } else {
    return x;
  }
}

template <DType T>
GRU_FAST_INLINE VecF round_stochastic(VecF x, VecU random) {
  if constexpr (T == DType::kBFloat16) {
    return float_of(round_bfloat16_stochastic(bits_of(x), random));
  } else {
    return round_float16_stochastic(x, random);
  }
}

template <DType T>
GRU_FAST_INLINE VecF round_towards_zero(VecF x) {
  if constexpr (T == DType::kBFloat16) {
    return float_of(truncate_bfloat16(bits_of(x)));
  } else if constexpr (T == DType::kFloat16) {
    return round_float16_stochastic(x, VecU{});
  } else {
    return x;
  }
}

// The rounding bits of a tile, block after block.
struct RoundingBits {
  static constexpr int kQuads = kBlock / 4;
  VecQ walk;
  uint32_t key_hi;

  GRU_FAST_INLINE RoundingBits(uint64_t key, int64_t tile_offset) : key_hi(static_cast<uint32_t>(key >> 32)) {
    const auto first = static_cast<uint32_t>(key) + static_cast<uint32_t>(tile_offset / 4) * kWeylStep;
    for (int i = 0; i < kQuads; ++i) walk[i] = first + static_cast<uint32_t>(i) * kWeylStep;
  }

  struct Two {
    VecU a, b;
  };

  template <Order O>
  GRU_FAST_INLINE Two next() {
    const VecQ random = mix_quad(walk, key_hi);
    walk += kQuads * kWeylStep;
    if constexpr (O == Order::kEvenOdd) {
      const VecU pairs = (VecU)random;
      return {pairs & 0xffffu, pairs >> 16};
    } else {
      const Wide16 numbers = (Wide16)random;
      return {__builtin_convertvector(lower<Vec16>(numbers), VecU),
              __builtin_convertvector(upper<Vec16>(numbers), VecU)};
    }
  }
};

// ---- sums -----------------------------------------------------------------------------------------------------------

// A float64 sum fed by short float32 runs.
struct WideSum {
  VecD low{}, high{};

  GRU_FAST_INLINE void add(VecF run) {
    low += __builtin_convertvector(lower<HalfF>(run), VecD);
    high += __builtin_convertvector(upper<HalfF>(run), VecD);
  }

  GRU_FAST_INLINE double total() const {
    const VecD both = low + high;
    double lanes[kLanes / 2];
    store(lanes, both);
    for (int half = kLanes / 4; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    }
    return lanes[0];
  }
};

// ---- one element, for the rare float64 paths ------------------------------------------------------------------------

template <DType T>
GRU_FAST_INLINE float load_one(const void* from, int64_t i) {
  if constexpr (T == DType::kFloat32) {
    return static_cast<const float*>(from)[i];
  } else {
    const uint16_t bits = static_cast<const uint16_t*>(from)[i];
    if constexpr (T == DType::kFloat16) return half_to_float(bits);
    return float_of(static_cast<uint32_t>(bits) << 16);
  }
}

template <DType T>
GRU_FAST_INLINE float store_one(void* to, int64_t i, float x) {
  if constexpr (T == DType::kFloat32) {
    static_cast<float*>(to)[i] = x;
  } else if constexpr (T == DType::kFloat16) {
    static_cast<uint16_t*>(to)[i] = float_to_half(x);
  } else {
    static_cast<uint16_t*>(to)[i] = static_cast<uint16_t>(round_bfloat16(bits_of(x)) >> 16);
  }
  return load_one<T>(to, i);
}

}  // namespace gru_fast::cpu::GRU_FAST_LEVEL
