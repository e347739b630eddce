// Rows -> launches and chunks. Pure host arithmetic, shared by both backends and tested from Python.
#pragma once

#include <vector>

#include "pipeline.h"

namespace gru_fast {

struct PlanLimits {
  int64_t chunk_numel;  // elements of one chunk
  size_t max_rows;      // rows whose table fits one launch
};

// Groups `rows` by `kinds[i]` (list order is kept within a kind), skips empty rows, and starts a new launch whenever a
// table is full. `first_chunk` of every row is set.
Plan plan_chunks(const std::vector<Row>& rows, const std::vector<Kind>& kinds, const PlanLimits& limits);

// The CPU's limits: one table, and chunks that grow with the total so that their sums never need more than a few
// hundred KB. A function of the sizes alone, which is what makes the sums independent of the thread count.
PlanLimits cpu_limits(const std::vector<Row>& rows);

// Where chunk number `chunk` of a launch lies: row `row`, elements [begin, end). `hint`: the row of a chunk nearby, where
// the search starts.
struct ChunkSpan {
  size_t row;
  int64_t begin;
  int64_t end;
};
ChunkSpan locate_chunk(const Launch& launch, uint32_t chunk, int64_t chunk_numel, size_t hint = 0);

}  // namespace gru_fast
