// The device side that the CUDA passes share: units of elements, the walk over chunks, sums over a block and a grid.
#pragma once

#include <cstdint>

#include "../arithmetic.h"
#include "../pipeline.h"
#include "launch.cuh"

namespace gru_fast::cuda {

// ---- units ----------------------------------------------------------------------------------------------------------
// N elements that one thread moves with one instruction. Neighbouring threads take neighbouring units, so that a warp's
// access covers whole sectors. Where g and e differ in width the wider one has the 16-byte units: two 16-byte accesses
// of e beside one of g would each touch half of twice as many sectors.

template <DType T>
inline constexpr int kSize = size_of(T);

template <int kBytes>
struct UnitOf;
template <>
struct UnitOf<2> {
  using Type = uint16_t;
};
template <>
struct UnitOf<4> {
  using Type = uint32_t;
};
template <>
struct UnitOf<8> {
  using Type = uint2;
};
template <>
struct UnitOf<16> {
  using Type = uint4;
};

template <DType T, int N>
using Unit = typename UnitOf<kSize<T> * N>::Type;

inline constexpr int kUnitBytes = 16;

// Elements in a unit of a pass that reads g and e, and units in flight for each thread: 96 to 128 bytes in reduce.
template <DType G, DType E>
inline constexpr int kUnitNumel = kUnitBytes / (kSize<G> > kSize<E> ? kSize<G> : kSize<E>);
template <DType G, DType E>
inline constexpr int kNumUnits = kSize<G> == kSize<E> ? 2 : 4;
inline constexpr int kNumSingles = 4;  // units of one element: tails, and rows that are not aligned

enum class Reuse { kLater, kNever };  // kNever: first to leave the L2 cache

// The unit at element `at`; zeros if not `wanted` (then nothing is read and `base` may be anything).
template <DType T, int N, Reuse R>
__device__ __forceinline__ Unit<T, N> load(const void* base, int at, bool wanted) {
  const auto* unit = reinterpret_cast<const Unit<T, N>*>(static_cast<const char*>(base) + at * kSize<T>);
  if (!wanted) return Unit<T, N>{};
  if constexpr (R == Reuse::kNever) return __ldcs(unit);
  __builtin_assume(__isGlobal(unit));  // which the compiler cannot see of a pointer from the table
  return *unit;
}

template <DType T, int N>
__device__ __forceinline__ void store(void* base, int at, Unit<T, N> unit) {
  auto* to = reinterpret_cast<Unit<T, N>*>(static_cast<char*>(base) + at * kSize<T>);
  __builtin_assume(__isGlobal(to));
  *to = unit;
}

template <int N>
struct Words {
  uint32_t at[N];
};

template <int N>
struct Floats {
  float at[N];
};

// Two 16-bit elements; the first one is in the low half.
template <DType T>
__device__ __forceinline__ void widen(uint32_t word, float& first, float& second) {
  if constexpr (T == DType::kBFloat16) {
    first = float_of(word << 16);
    second = float_of(word & 0xffff0000u);
  } else {
#ifdef __CUDACC__
    asm("{ .reg .b16 a, b; mov.b32 {a, b}, %2; cvt.f32.f16 %0, a; cvt.f32.f16 %1, b; }"
        : "=f"(first), "=f"(second)
        : "r"(word));
#else
    first = half_to_float(static_cast<uint16_t>(word));
    second = half_to_float(static_cast<uint16_t>(word >> 16));
#endif
  }
}

// The values must lie on T's grid; float16 ones may also lie between: nearest even.
template <DType T>
__device__ __forceinline__ uint32_t narrow(float first, float second) {
  if constexpr (T == DType::kBFloat16) {
    return __byte_perm(bits_of(first), bits_of(second), 0x7632);
  } else {
#ifdef __CUDACC__
    uint32_t word;
    asm("{ .reg .b16 a, b; cvt.rn.f16.f32 a, %1; cvt.rn.f16.f32 b, %2; mov.b32 %0, {a, b}; }"
        : "=r"(word)
        : "f"(first), "f"(second));
    return word;
#else
    return float_to_half(first) | static_cast<uint32_t>(float_to_half(second)) << 16;
#endif
  }
}

template <DType T, int N>
__device__ __forceinline__ Floats<N> unpack(Unit<T, N> unit) {
  Floats<N> x;
  if constexpr (T == DType::kFloat32) {
    x = __builtin_bit_cast(Floats<N>, unit);
  } else if constexpr (N == 1) {
    float unused;
    widen<T>(unit, x.at[0], unused);
  } else {
    const auto words = __builtin_bit_cast(Words<N / 2>, unit);
#pragma unroll
    for (int i = 0; i < N / 2; ++i) widen<T>(words.at[i], x.at[2 * i], x.at[2 * i + 1]);
  }
  return x;
}

template <DType T, int N>
__device__ __forceinline__ Unit<T, N> pack(Floats<N> x) {
  if constexpr (T == DType::kFloat32) {
    return __builtin_bit_cast(Unit<T, N>, x);
  } else if constexpr (N == 1) {
    return static_cast<uint16_t>(narrow<T>(x.at[0], 0.0f));
  } else {
    Words<N / 2> words;
#pragma unroll
    for (int i = 0; i < N / 2; ++i) words.at[i] = narrow<T>(x.at[2 * i], x.at[2 * i + 1]);
    return __builtin_bit_cast(Unit<T, N>, words);
  }
}

// Whether NaN or Inf is in a unit. 16-bit elements are looked at two by two: where all exponent bits are set, one more at
// the lowest of them carries into the sign's place, which the mask has cleared.
template <DType T, int N>
__device__ __forceinline__ bool any_nonfinite_in(Unit<T, N> unit) {
  if constexpr (T == DType::kFloat32) {
    bool found = false;
    const auto x = unpack<T, N>(unit);
#pragma unroll
    for (int i = 0; i < N; ++i) found |= is_nonfinite(x.at[i]);
    return found;
  } else {
    constexpr uint32_t kExponents = T == DType::kBFloat16 ? 0x7f807f80u : 0x7c007c00u;
    constexpr uint32_t kLowest = T == DType::kBFloat16 ? 0x00800080u : 0x04000400u;
    uint32_t carries = 0;
    if constexpr (N == 1) {
      carries = (unit & kExponents) + kLowest;  // the upper half is 0 and stays below a carry
    } else {
      const auto words = __builtin_bit_cast(Words<N / 2>, unit);
#pragma unroll
      for (const uint32_t word : words.at) carries |= (word & kExponents) + kLowest;
    }
    return (carries & 0x80008000u) != 0;
  }
}

// The grid of T towards zero.
template <DType T>
__device__ __forceinline__ float truncate(float x) {
  if constexpr (T == DType::kBFloat16) return float_of(truncate_bfloat16(bits_of(x)));
  if constexpr (T == DType::kFloat16) return round_float16_stochastic(x, 0u);
  return x;
}

// G's grid, nearest even, for `pack`, which rounds float16 itself. It saturates: a finite gradient stays finite.
template <DType G>
__device__ __forceinline__ float round_nearest(float x) {
  if constexpr (G == DType::kBFloat16) return float_of(round_bfloat16(bits_of(x)));
  if constexpr (G == DType::kFloat16) return fminf(fmaxf(x, -kHalfMax), kHalfMax);
  return x;
}

// ---- chunks ---------------------------------------------------------------------------------------------------------

// Element `begin` of a tensor; null stays null.
template <DType T, class Pointer>
__device__ __forceinline__ Pointer advance(Pointer base, int64_t begin) {
  if (base == nullptr) return nullptr;
  return reinterpret_cast<Pointer>(reinterpret_cast<uintptr_t>(base) + static_cast<uintptr_t>(begin * kSize<T>));
}

template <class Pointer>
__device__ __forceinline__ Pointer advance(DType dtype, Pointer base, int64_t begin) {
  return dtype == DType::kFloat32 ? advance<DType::kFloat32>(base, begin) : advance<DType::kFloat16>(base, begin);
}

// One element of a dtype known at run time alone, for the rare float64 kernels; null counts as zeros.
__device__ __forceinline__ float load_one(DType dtype, const void* base, int at) {
  if (base == nullptr) return 0.0f;
  if (dtype == DType::kFloat32) return float_of(load<DType::kFloat32, 1, Reuse::kLater>(base, at, true));
  const uint32_t bits = load<DType::kFloat16, 1, Reuse::kLater>(base, at, true);
  float value, unused;
  dtype == DType::kBFloat16 ? widen<DType::kBFloat16>(bits, value, unused)
                            : widen<DType::kFloat16>(bits, value, unused);
  return value;
}

// The sums of a chunk in float64, for those that float32 products cannot give. Rare, so one loop for all kinds.
__device__ __forceinline__ void add_wide_sums(Kind kind, const Row& row, int64_t begin, int numel, Sums& total) {
  const void* grad = advance(kind.grad, static_cast<const void*>(row.grad), begin);
  const void* ema = advance(kind.ema, static_cast<const void*>(row.ema), begin);
#pragma unroll 4
  for (int at = static_cast<int>(threadIdx.x); at < numel; at += kThreads) {
    const double g = load_one(kind.grad, grad, at), e = load_one(kind.ema, ema, at);
    total.add({g * e, e * e, g * g, 0.0});
  }
}

// True if units of N elements can be moved at `base`: then they can at every chunk of it, and null always can.
template <DType T, int N>
__device__ __forceinline__ bool is_aligned(const void* base) {
  return reinterpret_cast<uintptr_t>(base) % sizeof(Unit<T, N>) == 0;
}

// The last row that starts at `chunk` or before it.
template <class RowT, TableSize S>
__device__ __forceinline__ uint32_t find_row(const TableOf<RowT, S>& table, uint32_t chunk) {
  uint32_t low = 0, high = table.num_rows;  // the row is in [low, high)
  while (high - low > 1) {
    const uint32_t middle = (low + high) / 2;
    (table.rows[middle].first_chunk <= chunk ? low : high) = middle;
  }
  return low;
}

// Where the range of a block begins; with that of the block after it, where it ends.
template <class RowT, TableSize S>
__device__ __forceinline__ uint32_t first_chunk_of(const TableOf<RowT, S>& table, uint32_t block) {
  return block * table.chunks_per_block + min(block, table.num_longer_blocks);
}

enum class Direction { kForward, kBackward };

// Calls visit(row, begin, numel) for every chunk of this block's range: elements [begin, begin + numel) of the row. All
// threads of the block see the same chunks. Rows are never empty: the next chunk lies in this row or in the next one.
template <Direction D, class RowT, TableSize S, class Visit>
__device__ __forceinline__ void walk_chunks(const TableOf<RowT, S>& table, Visit&& visit) {
  const uint32_t first = first_chunk_of(table, blockIdx.x);
  const uint32_t count = first_chunk_of(table, blockIdx.x + 1) - first;
  if (count == 0) return;
  uint32_t chunk = D == Direction::kForward ? first : first + count - 1;
  uint32_t row_idx = find_row(table, chunk);
  for (uint32_t i = 0; i < count; ++i) {
    if constexpr (D == Direction::kForward) {
      if (row_idx + 1 < table.num_rows && table.rows[row_idx + 1].first_chunk <= chunk) ++row_idx;
    } else {
      if (table.rows[row_idx].first_chunk > chunk) --row_idx;
    }
    const RowT& row = table.rows[row_idx];
    const int64_t begin = static_cast<int64_t>(chunk - row.first_chunk) * table.chunk_numel;
    const int64_t rest = row.numel - begin;
    visit(row, begin, rest < table.chunk_numel ? static_cast<int>(rest) : table.chunk_numel);
    chunk += D == Direction::kForward ? 1u : ~0u;
  }
}

// ---- sums -----------------------------------------------------------------------------------------------------------
// T is a struct of doubles with add(T).

template <class T>
__device__ __forceinline__ T from_lane_below(T value, int distance) {
  struct Doubles {
    double at[sizeof(T) / sizeof(double)];
  };
  auto doubles = __builtin_bit_cast(Doubles, value);
#pragma unroll
  for (double& x : doubles.at) x = __shfl_down_sync(0xffffffffu, x, distance);
  return __builtin_bit_cast(T, doubles);
}

// The sum over the threads of the block, in a fixed order; in thread 0. Between two calls lies a __syncthreads().
template <class T>
__device__ __forceinline__ T sum_block(T value) {
  constexpr int kWarps = kThreads / 32;
  __shared__ double shared[kWarps * sizeof(T) / sizeof(double)];
  T* warps = reinterpret_cast<T*>(shared);
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value.add(from_lane_below(value, distance));
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 1; i < kWarps; ++i) value.add(warps[i]);
  }
  return value;
}

template <class T>
__device__ __forceinline__ T load_slot(const T* slot) {
  T value;
  const auto* from = reinterpret_cast<const double*>(slot);
  auto* to = reinterpret_cast<double*>(&value);
#pragma unroll
  for (size_t i = 0; i < sizeof(T) / sizeof(double); ++i) to[i] = __ldcg(from + i);  // written by other multiprocessors
  return value;
}

// Leaves the block's sum in its slot, for the kernel that comes next to add up.
template <class T>
__device__ __forceinline__ void leave_sum(T value, const Slots<T>& slots) {
  value = sum_block(value);
  if (threadIdx.x == 0) slots.values[slots.first + blockIdx.x] = value;
}

// The sum of the slots in a fixed order, the same in every block that asks; in thread 0. Before another sum of the same
// type lies a __syncthreads().
template <class T>
__device__ __forceinline__ T add_slots(const T* slots, uint32_t count) {
  T value{};
  for (uint32_t i = threadIdx.x; i < count; i += kThreads) value.add(load_slot(slots + i));
  return sum_block(value);
}
template <class T>
__device__ __forceinline__ T add_slots(const Filled<T>& slots) {
  return add_slots(slots.values, slots.count);
}

// Where no kernel comes next: leaves the block's sum in its slot, and the block of the last launch that comes last adds
// the slots of all launches: true in its thread 0, with the total in `value`; false everywhere else. `ticket`: a counter
// that is 0 when the last launch starts, null in those before.
//
// Whatever a thread read before this call was read before the last block gets its `true`: the barrier in sum_block
// orders it before the ticket of its own block, and the tickets order the blocks.
template <class T>
__device__ __forceinline__ bool sum_grid(T& value, const Slots<T>& slots, uint32_t* ticket) {
  __shared__ bool is_last_block;
  leave_sum(value, slots);
  if (threadIdx.x == 0) {
    is_last_block = false;
    if (ticket != nullptr) {
      __threadfence();  // the slot is visible before the ticket
      is_last_block = atomicAdd(ticket, 1u) == gridDim.x - 1;
      __threadfence();  // the other slots are read after the ticket
    }
  }
  __syncthreads();
  if (!is_last_block) return false;
  value = add_slots(slots.values, slots.first + gridDim.x);
  return threadIdx.x == 0;
}

// A T in shared memory, where nothing may have a constructor.
template <class T>
struct Place {
  alignas(T) unsigned char bytes[sizeof(T)];
  __device__ __forceinline__ T& value() { return *reinterpret_cast<T*>(bytes); }
};

// What thread 0 has, in all threads of the block. Before another call with the same type lies a __syncthreads().
template <class T>
__device__ __forceinline__ T from_thread_0(const T& value) {
  __shared__ Place<T> place;
  if (threadIdx.x == 0) place.value() = value;
  __syncthreads();
  return place.value();
}

// ---- sums of rows ---------------------------------------------------------------------------------------------------
// A block leaves the sums of each row of which it has chunks. Row r and block b share slot b + r: from one chunk to the
// next r, b or both go on by one, so no two pairs that meet have the same slot. Null slots: nobody wants them.

// Ends row `row`: what the threads have summed up since the last call goes into its slot and, in thread 0, to `of_block`.
template <class T>
__device__ __forceinline__ void leave_row(T& value, T* slots, uint32_t row, T& of_block) {
  const T sum = sum_block(value);
  value = T{};
  if (threadIdx.x == 0) {
    slots[blockIdx.x + row] = sum;
    of_block.add(sum);
  }
  __syncthreads();
}

// At the start of every chunk: ends the row before if this is the first chunk of `row`. Where that row was another
// block's, its slot is of no pair.
template <class T>
__device__ __forceinline__ void leave_row_before(T& value, T* slots, uint32_t row, int64_t begin, T& of_block) {
  if (slots != nullptr && begin == 0 && blockIdx.x + row > 0) leave_row(value, slots, row - 1, of_block);
}

// After the last chunk: ends its row; `value` becomes the sum of all rows, in thread 0 alone.
template <class T, class RowT, TableSize S>
__device__ __forceinline__ void leave_last_row(T& value, T* slots, const TableOf<RowT, S>& table, T& of_block) {
  if (slots == nullptr || table.num_rows == 0) return;
  leave_row(value, slots, find_row(table, first_chunk_of(table, blockIdx.x + 1) - 1), of_block);
  if (threadIdx.x == 0) value = of_block;
}

}  // namespace gru_fast::cuda
