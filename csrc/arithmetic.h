// One element of each pass. Host and device code alike: the functions are templates over "a 32-bit lane or a vector of
// them", so that the CPU's SIMD kernels, its scalar tests and the CUDA kernels run the same expressions.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "pipeline.h"

#ifdef __CUDACC__
#define GRU_FAST_HD __host__ __device__ __forceinline__
#else
#define GRU_FAST_HD inline __attribute__((always_inline))
#endif

namespace gru_fast {

// Named here because nvcc lets no function of the host be called in device code, not even a constexpr one.
inline constexpr double kFloatMax = std::numeric_limits<float>::max();
inline constexpr double kInfinity = std::numeric_limits<double>::infinity();
inline constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// ---- lanes ----------------------------------------------------------------------------------------------------------
// What the templates below need to know of a lane type; cpu/vector.h specialises it for vectors.

template <class T>
struct Lanes;

template <>
struct Lanes<float> {
  using Uint = uint32_t;
  GRU_FAST_HD static uint32_t to_uint(float x) { return static_cast<uint32_t>(x); }
};

template <>
struct Lanes<uint32_t> {
  using Float = float;
  GRU_FAST_HD static float to_float(uint32_t x) { return static_cast<float>(x); }
};

template <class F>
GRU_FAST_HD typename Lanes<F>::Uint bits_of(F x) {
  return __builtin_bit_cast(typename Lanes<F>::Uint, x);
}

template <class U>
GRU_FAST_HD typename Lanes<U>::Float float_of(U x) {
  return __builtin_bit_cast(typename Lanes<U>::Float, x);
}

// ---- rounding bits --------------------------------------------------------------------------------------------------

GRU_FAST_HD uint64_t mix64(uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9ull;
  x ^= x >> 27;
  x *= 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// What all keys of a step have in common.
GRU_FAST_HD uint64_t step_key(uint64_t seed, uint64_t step) {
  const uint64_t key = mix64(seed + 0x9e3779b97f4a7c15ull);
  return mix64(key ^ (step + 0x632be59bd9b4e019ull));
}

// The key of one tile of kRoundingTile elements.
GRU_FAST_HD uint64_t tile_key(uint64_t step_key, uint32_t rounding_key, uint64_t tile) {
  const uint64_t key = mix64(step_key ^ ((static_cast<uint64_t>(rounding_key) << 32) + 0xd1b54a32d192ed03ull));
  return mix64(key + tile * 0x9e3779b97f4a7c15ull);
}

// What mix_quad needs to know of a 64-bit lane; cpu/vector.h specialises it for vectors.
template <class Q>
struct Quads;

template <>
struct Quads<uint64_t> {
  // Of the low half.
  GRU_FAST_HD static uint64_t product(uint64_t x, uint32_t factor) {
    return static_cast<uint64_t>(static_cast<uint32_t>(x)) * factor;
  }
};

// 64 bits for elements 4k .. 4k+3 of a tile, 16 for each, those of the first one lowest. A Weyl walk (kWeylStep * k + the
// key's low half) through three products of 32 by 32 bits, one instruction each on GPUs and for a vector of them (the first
// two factors are those of Philox); the halves of each cross over into the next, and the key's high half changes the
// second. The highest bits of a product are not uniform and its lowest ones see little of what went in, so each quarter of
// the last one meets another quarter of the one before. Of the walk the low half counts: kernels that go through the tile
// in order step it by addition.
inline constexpr uint32_t kWeylStep = 0x9e3779b9u;

template <class Q>
GRU_FAST_HD Q mix_quad(Q walk, uint32_t key_hi) {
  const Q first = Quads<Q>::product(walk, 0xd2511f53u);
  const Q second = Quads<Q>::product((first >> 32) ^ first ^ key_hi, 0xcd9e8d57u);
  const Q third = Quads<Q>::product((second >> 32) ^ second ^ first, 0xb5ad4ecfu);
  return third ^ (second >> 16 | second << 48);
}

GRU_FAST_HD uint64_t quad_bits(uint32_t key_lo, uint32_t key_hi, uint32_t quad) {
  return mix_quad<uint64_t>(quad * kWeylStep + key_lo, key_hi);
}

// ---- 16-bit floats, held in 32-bit lanes ----------------------------------------------------------------------------

inline constexpr uint32_t kExponentMask = 0x7f800000u;

// True where x is NaN or infinite.
template <class F>
GRU_FAST_HD auto is_nonfinite(F x) {
  return (bits_of(x) & 0x7fffffffu) >= kExponentMask;
}

// bfloat16 is the upper half of a float32. Nearest even; x finite.
template <class U>
GRU_FAST_HD U round_bfloat16(U x) {
  return (x + 0x7fffu + ((x >> 16) & 1u)) & 0xffff0000u;
}

// Up with a probability equal to the part that is cut off: adds 16 random bits below the cut. `random` < 2^16.
template <class U>
GRU_FAST_HD U round_bfloat16_stochastic(U x, U random) {
  return (x + random) & 0xffff0000u;
}

template <class U>
GRU_FAST_HD U truncate_bfloat16(U x) {
  return x & 0xffff0000u;
}

// float16 values are kept as the float32 that equals them; conversion to 16 bits is then exact. The grid is 2^-24 below
// 2^-14 and 13 bits shorter than float32's above; beyond 65504 the value is the largest finite one (65504).
inline constexpr float kHalfMax = 65504.0f;
inline constexpr float kHalfMinNormal = 6.103515625e-05f;       // 2^-14
inline constexpr float kHalfQuantum = 5.9604644775390625e-08f;  // 2^-24

// `random` < 2^16; zero truncates towards zero.
template <class F, class U>
GRU_FAST_HD F round_float16_stochastic(F x, U random) {
  const U sign = bits_of(x) & 0x80000000u;
  const U magnitude = bits_of(x) & 0x7fffffffu;
  const U normal = (magnitude + (random >> 3)) & 0xffffe000u;
  const F steps = float_of(magnitude) * (1.0f / kHalfQuantum) + Lanes<U>::to_float(random >> 3) * (1.0f / 8192.0f);
  const auto is_small = float_of(magnitude) < kHalfMinNormal;
  const F subnormal = Lanes<U>::to_float(Lanes<F>::to_uint(is_small ? steps : F{})) * kHalfQuantum;
  const F rounded = is_small ? subnormal : float_of(normal);
  const F bounded = rounded > kHalfMax ? kHalfMax + F{} : rounded;
  return float_of(bits_of(bounded) | sign);
}

// IEEE float16 <-> float32, for machines without an instruction for it. `to_half_bits` rounds to nearest even.
GRU_FAST_HD float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t rest = h & 0x7fffu;
  if (rest >= 0x7c00u) return float_of(sign | kExponentMask | ((rest & 0x3ffu) << 13));
  if (rest >= 0x0400u) return float_of(sign | ((rest << 13) + (112u << 23)));
  const float magnitude = static_cast<float>(rest) * kHalfQuantum;
  return float_of(sign | bits_of(magnitude));
}

GRU_FAST_HD uint16_t float_to_half(float x) {
  const uint32_t sign = (bits_of(x) >> 16) & 0x8000u;
  const uint32_t magnitude = bits_of(x) & 0x7fffffffu;
  if (magnitude > kExponentMask) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and above
  if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 lets the adder round to the grid of 2^-24
    return static_cast<uint16_t>(sign | (bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0x0fffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - (112u << 23)) >> 13));
}

// ---- sums -----------------------------------------------------------------------------------------------------------

// float32 products are added in runs of at most kRunLength before they join a float64 sum: each run adds a relative
// error below kRunLength * 2^-24, so that every sum is good to 1e-6 whatever its length.
inline constexpr int kRunLength = 8;

struct Sums {
  double dot = 0.0;
  double ema_norm_sq = 0.0;
  double grad_norm_sq = 0.0;
  double retain_nonfinite = 0.0;

  GRU_FAST_HD void add(const Sums& other) {
    dot += other.dot;
    ema_norm_sq += other.ema_norm_sq;
    grad_norm_sq += other.grad_norm_sq;
    retain_nonfinite += other.retain_nonfinite;
  }
};

// float32 products overflow above 2^64 and lose bits below 2^-63. Where that could show in the sums they are taken once
// more, in float64 throughout; NaN and Inf that are still there then really are in the tensors. A sum of 0 says nothing
// of the elements: squares of those below 2^-75 are 0.
GRU_FAST_HD bool needs_wide_sums(const Sums& sums, int64_t numel) {
  const double smallest = static_cast<double>(numel) * 7.888609052210118e-31;  // 2^-100 each
  return !(sums.grad_norm_sq >= smallest && sums.ema_norm_sq >= smallest && sums.grad_norm_sq <= kFloatMax &&
           sums.ema_norm_sq <= kFloatMax && fabs(sums.dot) <= kFloatMax);
}

}  // namespace gru_fast
