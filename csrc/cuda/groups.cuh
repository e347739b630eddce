// What reduce, apply and the passes by groups of rows share; see groups.cu.
#pragma once

#include <cstdint>

#include "../groups.h"
#include "../pipeline.h"
#include "launch.cuh"

namespace gru_fast::cuda {

size_t scratch_bytes_of_sums(const Plan& plan);  // without those of rows

// Where reduce leaves the sums of rows: behind the slots of blocks. See leave_row in device.cuh.
inline Sums* row_slots_in(const Plan& plan, const Context& context) {
  return reinterpret_cast<Sums*>(static_cast<char*>(context.scratch) + scratch_bytes_of_sums(plan));
}
inline size_t num_row_slots(const Launch& launch, uint32_t blocks) { return launch.rows.size() + blocks; }

uint32_t blocks_of_reduce(const Launch& launch, int device);

// With the group of each row in the place of its rounding key.
inline Launch keyed_by_group(Launch launch, const Groups& groups) {
  for (size_t row = 0; row < launch.rows.size(); ++row) {
    launch.rows[row].rounding_key = groups.of_row[launch.sources[row]] & kMaxRoundingKey;
  }
  return launch;
}

}  // namespace gru_fast::cuda
