#include "chunk_plan.h"

#include <algorithm>
#include <stdexcept>

namespace gru_fast {
namespace {

constexpr int64_t kMaxCpuChunks = 8192;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

Launch& launch_for(Plan& plan, Kind kind, size_t max_rows, size_t expected_rows) {
  for (auto launch = plan.launches.rbegin(); launch != plan.launches.rend(); ++launch) {
    if (launch->kind == kind && launch->rows.size() < max_rows) return *launch;
  }
  plan.launches.push_back(Launch{kind, {}, 0, 0});
  plan.launches.back().rows.reserve(std::min(max_rows, expected_rows));
  return plan.launches.back();
}

}  // namespace

Plan plan_chunks(const std::vector<Row>& rows, const std::vector<Kind>& kinds, const PlanLimits& limits) {
  if (rows.size() != kinds.size()) throw std::invalid_argument("plan_chunks: one kind per row");
  Plan plan{{}, limits.chunk_numel, 0, 0};
  for (size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].numel == 0) continue;
    const int64_t chunks = divide_up(rows[i].numel, limits.chunk_numel);
    Launch& launch = launch_for(plan, kinds[i], limits.max_rows, rows.size() - i);
    launch.rows.push_back(rows[i]);
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

PlanLimits cpu_limits(const std::vector<Row>& rows) {
  int64_t numel = 0;
  for (const Row& row : rows) numel += row.numel;
  const int64_t tiles = divide_up(divide_up(numel, kMaxCpuChunks), kRoundingTile);
  return {std::max<int64_t>(tiles, 1) * kRoundingTile, SIZE_MAX};
}

ChunkSpan locate_chunk(const Launch& launch, uint32_t chunk, int64_t chunk_numel, size_t hint) {
  const std::vector<Row>& rows = launch.rows;
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
        std::upper_bound(rows.begin(), rows.end(), chunk, [](uint32_t c, const Row& r) { return c < r.first_chunk; });
    row = static_cast<size_t>(after - rows.begin()) - 1;
  }
  const int64_t begin = static_cast<int64_t>(chunk - rows[row].first_chunk) * chunk_numel;
  return {row, begin, std::min(begin + chunk_numel, rows[row].numel)};
}

}  // namespace gru_fast
