// The two passes of sets.h on the CPU. Sums: a few hundred elements of every vector become float64 in the L1 cache, and
// all dot products are taken there, so that memory is read once. Combine: reads g and the vectors that have a coefficient,
// writes g; in float64, so that no coefficient is too large or small.

#include <algorithm>

#include "kernels.h"
#include "vector.h"

namespace gru_fast::cpu::GRU_FAST_LEVEL {
namespace {

constexpr int kDoubles = kLanes / 2;       // in a VecD
constexpr int64_t kTileNumel = 256;        // of each vector, as float64: 18 KB at most
constexpr int kMaxRows = kMaxVectors + 1;  // g, and the vectors

static_assert(kTileNumel % kBlock == 0);

struct alignas(64) Tile {
  double at[kMaxRows][kTileNumel];
};

template <class F>
GRU_FAST_INLINE auto with_dtype(DType dtype, F&& f) {
  if (dtype == DType::kFloat32) return f.template operator()<DType::kFloat32>();
  if (dtype == DType::kBFloat16) return f.template operator()<DType::kBFloat16>();
  return f.template operator()<DType::kFloat16>();
}

GRU_FAST_INLINE void store_wide(double* to, VecF x) {
  store(to, __builtin_convertvector(lower<HalfF>(x), VecD));
  store(to + kDoubles, __builtin_convertvector(upper<HalfF>(x), VecD));
}

// Elements [begin, begin + numel) of a tensor, and zeros up to a whole block.
template <DType T>
GRU_FAST_INLINE void widen_tile(const void* base, int64_t begin, int64_t numel, double* to) {
  constexpr int64_t kT = size_of(T);
  const char* from = static_cast<const char*>(base) + begin * kT;
  int64_t i = 0;
  const auto visit = [&](const char* block) __attribute__((always_inline)) {
    const Block x = load_block<T, Order::kHalves>(block);
    store_wide(to + i, x.a);
    store_wide(to + i + kLanes, x.b);
  };
  for (; i + kBlock <= numel; i += kBlock) {
    prefetch_ahead<Access::kRead, kBlock * kT>(from + i * kT);
    visit(from + i * kT);
  }
  if (i < numel) {
    char rest[kBlock * kT] = {};
    std::memcpy(rest, from + i * kT, static_cast<size_t>((numel - i) * kT));
    visit(rest);
  }
}

// Where rows i <= j of a tile have their sum.
constexpr int sum_at(int i, int j) { return j * (j + 1) / 2 + i; }
constexpr int kMaxSums = kMaxRows * (kMaxRows + 1) / 2;

// All dot products of kRows rows with each other, each row loaded once.
template <int kRows>
GRU_FAST_INLINE void multiply_all(const Tile& tile, int first, int64_t numel, VecD* sums) {
  VecD total[kRows * (kRows + 1) / 2] = {};
  for (int64_t i = 0; i < numel; i += kDoubles) {
    VecD x[kRows];
#pragma GCC unroll 8
    for (int b = 0; b < kRows; ++b) {
      x[b] = load<VecD>(&tile.at[first + b][i]);
#pragma GCC unroll 8
      for (int a = 0; a <= b; ++a) total[sum_at(a, b)] += x[a] * x[b];
    }
  }
  for (int b = 0; b < kRows; ++b) {
    for (int a = 0; a <= b; ++a) sums[sum_at(first + a, first + b)] += total[sum_at(a, b)];
  }
}

// Those of kLeft rows with the kRight rows after them.
template <int kLeft, int kRight>
GRU_FAST_INLINE void multiply_across(const Tile& tile, int first, int64_t numel, VecD* sums) {
  VecD total[kLeft][kRight] = {};
  for (int64_t i = 0; i < numel; i += kDoubles) {
    VecD x[kLeft];
#pragma GCC unroll 8
    for (int a = 0; a < kLeft; ++a) x[a] = load<VecD>(&tile.at[first + a][i]);
#pragma GCC unroll 8
    for (int b = 0; b < kRight; ++b) {
      const VecD y = load<VecD>(&tile.at[first + kLeft + b][i]);
#pragma GCC unroll 8
      for (int a = 0; a < kLeft; ++a) total[a][b] += x[a] * y;
    }
  }
  for (int b = 0; b < kRight; ++b) {
    for (int a = 0; a < kLeft; ++a) sums[sum_at(first + a, first + kLeft + b)] += total[a][b];
  }
}

template <int kLeft, int kRight>
GRU_FAST_INLINE void multiply_halves(const Tile& tile, int first, int64_t numel, VecD* sums) {
  multiply_all<kLeft>(tile, first, numel, sums);
  multiply_all<kRight>(tile, first + kLeft, numel, sums);
  multiply_across<kLeft, kRight>(tile, first, numel, sums);
}

// All dot products of the `rows` rows from `first` on. Up to six have room in the registers of AVX-512.
void multiply(const Tile& tile, int first, int rows, int64_t numel, VecD* sums) {
  switch (rows) {
    case 1:
      return multiply_all<1>(tile, first, numel, sums);
    case 2:
      return multiply_all<2>(tile, first, numel, sums);
    case 3:
      return multiply_all<3>(tile, first, numel, sums);
    case 4:
      return multiply_all<4>(tile, first, numel, sums);
    case 5:
      return multiply_all<5>(tile, first, numel, sums);
    case 6:
      return multiply_all<6>(tile, first, numel, sums);
    case 7:
      return multiply_halves<4, 3>(tile, first, numel, sums);
    case 8:
      return multiply_halves<4, 4>(tile, first, numel, sums);
    default:
      return multiply_halves<5, 4>(tile, first, numel, sums);
  }
}

GRU_FAST_INLINE double total_of(VecD sum) {
  double total = 0.0;
  for (int i = 0; i < kDoubles; ++i) total += sum[i];
  return total;
}

// On G's grid.
template <DType G>
GRU_FAST_INLINE VecF rounded(VecD low, VecD high) {
  constexpr double kMost = kLargest<G>;
  const auto bounded = [](VecD x) __attribute__((always_inline)) {
    const VecD above = x < -kMost ? VecD{} - kMost : x;
    return __builtin_convertvector(above > kMost ? VecD{} + kMost : above, HalfF);
  };
  const HalfF first = bounded(low), second = bounded(high);
  VecF out;
  std::memcpy(&out, &first, sizeof(first));
  std::memcpy(reinterpret_cast<char*>(&out) + sizeof(first), &second, sizeof(second));
  return round_nearest<G>(out);
}

template <DType G>
double combine_span(const SetSpan& span, double alpha, const double* betas, int count) {
  constexpr int64_t kG = size_of(G);
  int active[kMaxVectors], num_active = 0;
  for (int j = 0; j < count; ++j) {
    if (betas[j] != 0.0) active[num_active++] = j;
  }
  char* grad = static_cast<char*>(span.grad);
  alignas(64) double out[kTileNumel], x[kTileNumel];
  VecD written{};
  for (int64_t begin = 0; begin < span.numel; begin += kTileNumel) {
    const int64_t numel = std::min(kTileNumel, span.numel - begin);
    const int64_t padded = (numel + kBlock - 1) / kBlock * kBlock;
    widen_tile<G>(grad, begin, numel, out);
    for (int64_t i = 0; i < padded; i += kDoubles) store(out + i, load<VecD>(out + i) * alpha);
    for (int a = 0; a < num_active; ++a) {
      const int j = active[a];
      with_dtype(span.dtypes[j], [&]<DType T>() { widen_tile<T>(span.vectors[j], begin, numel, x); });
      for (int64_t i = 0; i < padded; i += kDoubles) {
        store(out + i, load<VecD>(out + i) + load<VecD>(x + i) * betas[j]);
      }
    }
    const auto block = [&](char* to, int64_t i) __attribute__((always_inline)) {
      const VecF a = rounded<G>(load<VecD>(out + i), load<VecD>(out + i + kDoubles));
      const VecF b = rounded<G>(load<VecD>(out + i + kLanes), load<VecD>(out + i + kLanes + kDoubles));
      store_block<G, Order::kHalves>(to, Block{a, b});
      for (const VecF x : {a, b}) {
        const VecD low = __builtin_convertvector(lower<HalfF>(x), VecD);
        const VecD high = __builtin_convertvector(upper<HalfF>(x), VecD);
        written += low * low;
        written += high * high;
      }
    };
    int64_t i = 0;
    for (; i + kBlock <= numel; i += kBlock) block(grad + (begin + i) * kG, i);
    if (i < numel) {
      char rest[kBlock * kG];
      block(rest, i);  // zeros beyond the end, which add nothing
      std::memcpy(grad + (begin + i) * kG, rest, static_cast<size_t>((numel - i) * kG));
    }
  }
  return total_of(written);
}

}  // namespace

SetSums set_sums(const SetSpan& span, int count) {
  Tile tile;
  VecD sums[kMaxSums] = {};
  const int first = span.grad != nullptr ? 0 : 1;
  for (int64_t begin = 0; begin < span.numel; begin += kTileNumel) {
    const int64_t numel = std::min(kTileNumel, span.numel - begin);
    const int64_t padded = (numel + kBlock - 1) / kBlock * kBlock;
    if (first == 0) {
      with_dtype(span.grad_dtype, [&]<DType T>() { widen_tile<T>(span.grad, begin, numel, tile.at[0]); });
    }
    for (int j = 0; j < count; ++j) {
      with_dtype(span.dtypes[j], [&]<DType T>() { widen_tile<T>(span.vectors[j], begin, numel, tile.at[j + 1]); });
    }
    multiply(tile, first, count + 1 - first, padded, sums);
  }
  SetSums out;
  out.grad_norm_sq = total_of(sums[0]);
  for (int j = 0; j < count; ++j) {
    out.dots[j] = total_of(sums[sum_at(0, j + 1)]);  // g is row 0
    for (int i = 0; i <= j; ++i) out.gram[pair_at(i, j)] = total_of(sums[sum_at(i + 1, j + 1)]);
  }
  return out;
}

double set_combine(const SetSpan& span, double alpha, const double* betas, int count) {
  return with_dtype(span.grad_dtype, [&]<DType G>() { return combine_span<G>(span, alpha, betas, count); });
}

}  // namespace gru_fast::cpu::GRU_FAST_LEVEL
