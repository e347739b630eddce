// Rows -> launches and chunks. Pure host arithmetic, shared by both backends and tested from Python.
#pragma once

#include <algorithm>
#include <cstddef>
#include <stdexcept>
#include <vector>

#include "pipeline.h"

namespace gru_fast {

struct PlanLimits {
  int64_t chunk_numel;  // elements of one chunk
  size_t max_rows;      // rows whose table fits one launch
};

// The latest launch of `kind` with room for one more row; a new one if there is none.
template <class LaunchT>
LaunchT& launch_for(PlanOf<LaunchT>& plan, const typename LaunchT::KindType& kind, size_t max_rows,
                    size_t expected_rows) {
  for (auto launch = plan.launches.rbegin(); launch != plan.launches.rend(); ++launch) {
    if (launch->kind == kind && launch->rows.size() < max_rows) return *launch;
  }
  plan.launches.push_back(LaunchT{kind, {}, 0, 0, {}});
  plan.launches.back().rows.reserve(std::min(max_rows, expected_rows));
  plan.launches.back().sources.reserve(std::min(max_rows, expected_rows));
  return plan.launches.back();
}

// Groups `rows` by `kinds[i]` (list order is kept within a kind), skips empty rows, and starts a new launch whenever a
// table is full. `first_chunk` of every row is set.
template <class RowT, class KindT>
PlanOf<LaunchOf<RowT, KindT>> plan_chunks(const std::vector<RowT>& rows, const std::vector<KindT>& kinds,
                                          const PlanLimits& limits) {
  if (rows.size() != kinds.size()) throw std::invalid_argument("plan_chunks: one kind per row");
  PlanOf<LaunchOf<RowT, KindT>> plan{{}, limits.chunk_numel, 0, 0};
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].numel == 0) continue;
    const int64_t chunks = (rows[i].numel + limits.chunk_numel - 1) / limits.chunk_numel;
    auto& launch = launch_for(plan, kinds[i], limits.max_rows, rows.size() - i);
    launch.rows.push_back(rows[i]);
    launch.sources.push_back(static_cast<uint32_t>(i));
    launch.rows.back().first_chunk = launch.num_chunks;
    if (chunks > int64_t{UINT32_MAX} - launch.num_chunks) {
      throw std::invalid_argument("plan_chunks: more than 2^32 chunks in one launch");
    }
    launch.num_chunks += static_cast<uint32_t>(chunks);
    launch.numel += rows[i].numel;
    plan.num_chunks += chunks;
    plan.numel += rows[i].numel;
  }
  return plan;
}

// The CPU's limits: one table, and chunks that grow with the total so that their sums never need more than a few
// hundred KB. A function of the sizes alone, which is what makes the sums independent of the thread count.
PlanLimits cpu_limits(int64_t numel);

template <class RowT>
int64_t total_numel(const std::vector<RowT>& rows) {
  int64_t numel = 0;
  for (const RowT& row : rows) numel += row.numel;
  return numel;
}

// Where chunk number `chunk` of a launch lies: row `row`, elements [begin, end). `hint`: the row of a chunk nearby, where
// the search starts.
struct ChunkSpan {
  size_t row;
  int64_t begin;
  int64_t end;
};
template <class LaunchT>
ChunkSpan locate_chunk(const LaunchT& launch, uint32_t chunk, int64_t chunk_numel, size_t hint = 0) {
  const auto& rows = launch.rows;
  const auto holds = [&](size_t row) {
    return row < rows.size() && rows[row].first_chunk <= chunk &&
           (row + 1 == rows.size() || chunk < rows[row + 1].first_chunk);
  };
  size_t row = hint;
  if (holds(hint + 1)) {
    row = hint + 1;
  } else if (hint > 0 && holds(hint - 1)) {
    row = hint - 1;
  } else if (!holds(hint)) {
    const auto after =
        std::upper_bound(rows.begin(), rows.end(), chunk, [](uint32_t c, const auto& r) { return c < r.first_chunk; });
    row = static_cast<size_t>(after - rows.begin()) - 1;
  }
  const int64_t begin = static_cast<int64_t>(chunk - rows[row].first_chunk) * chunk_numel;
  return {row, begin, std::min(begin + chunk_numel, rows[row].numel)};
}

}  // namespace gru_fast
