// The walk of the CPU's passes over the chunks of a plan, and the fold of what the chunks left.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "../arithmetic.h"
#include "../chunk_plan.h"
#include "parallel.h"

namespace gru_fast::cpu {

inline constexpr int64_t kMinNumelPerThread = 16384;  // below this a thread costs more than it brings

enum class Direction { kForward, kBackward };

// Calls visit(kind, row, span, slot) for every chunk of the plan, over threads; slots number the chunks over all
// launches. Backward order lets a pass start on what the one before it touched last and the cache still holds.
template <class LaunchT, class Visit>
void for_each_place(const PlanOf<LaunchT>& plan, int num_threads, Direction direction, Visit&& visit) {
  int64_t first_slot = 0;
  for (const LaunchT& launch : plan.launches) {
    const int64_t count = launch.num_chunks;
    const int64_t useful_threads = std::max<int64_t>(launch.numel / kMinNumelPerThread, 1);
    const auto threads = static_cast<int>(std::clamp<int64_t>(num_threads, 1, useful_threads));
    const int64_t grain = std::clamp<int64_t>(count / (threads * 64), 1, 64);
    parallel_for(count, grain, threads, [&](int64_t begin, int64_t end) {
      size_t row_idx = 0;
      for (int64_t i = begin; i < end; ++i) {
        const int64_t chunk = direction == Direction::kForward ? i : count - 1 - i;
        const ChunkSpan where = locate_chunk(launch, static_cast<uint32_t>(chunk), plan.chunk_numel, row_idx);
        row_idx = where.row;
        visit(launch.kind, launch.rows[row_idx], where, first_slot + chunk);
      }
    });
    first_slot += count;
  }
}

// `bytes` after a pointer that may be null: null stays null.
template <class Pointer>
Pointer element(Pointer base, int64_t bytes) {
  using Byte = std::conditional_t<std::is_const_v<std::remove_pointer_t<Pointer>>, const char, char>;
  return base == nullptr ? base : reinterpret_cast<Pointer>(reinterpret_cast<Byte*>(base) + bytes);
}

// Slots in index order: the same bits whatever the threads did.
inline Sums fold(const Sums* slots, int64_t count) {
  Sums total;
  for (int64_t i = 0; i < count; ++i) total.add(slots[i]);
  return total;
}

}  // namespace gru_fast::cpu
