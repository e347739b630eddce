#include "chunk_plan.h"

namespace gru_fast {
namespace {

constexpr int64_t kMaxCpuChunks = 8192;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

PlanLimits cpu_limits(int64_t numel) {
  const int64_t tiles = divide_up(divide_up(numel, kMaxCpuChunks), kRoundingTile);
  return {std::max<int64_t>(tiles, 1) * kRoundingTile, SIZE_MAX};
}

}  // namespace gru_fast
