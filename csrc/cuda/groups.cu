// The sums of each group of rows on CUDA, from those of rows that reduce has left; see groups.h.
//
// Kernels, in this order on the stream: fold adds up the slots of a group in the order of its rows and blocks; for groups
// whose sums float32 products cannot give, wide takes those of its rows once more, and fold adds up again. The last two
// leave at once where there is no such group.
#include "../groups.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <vector>

#include "backend.h"
#include "device.cuh"
#include "groups.cuh"

namespace gru_fast::cuda {
namespace {

// ---- adding up ------------------------------------------------------------------------------------------------------

// The slots of one row, which lie side by side.
struct RowSlots {
  int64_t numel;
  uint32_t first;
  uint32_t count;
  uint32_t group;
  uint32_t unused;
};
static_assert(sizeof(RowSlots) == 24);

// Rows in the order of their groups.
inline constexpr size_t kMaxFolded = (kMaxParameterBytes - kMaxArgsBytes - kTableHeaderBytes) / sizeof(RowSlots);
struct FoldTable {
  uint32_t num_rows;
  uint32_t goes_on;  // 1: the first group has rows in the table before
  uint64_t unused;
  RowSlots rows[kMaxFolded];
};
static_assert(sizeof(FoldTable) == kTableHeaderBytes + kMaxFolded * sizeof(RowSlots));

struct FoldArgs {
  const Stats* stats;
  const Sums* slots;
  GroupStats* groups;
  uint32_t* any_wide;
  bool again;  // of groups whose slots hold wide sums
};

struct GroupSums {
  Sums sums;
  double numel = 0.0;
  __device__ __forceinline__ void add(const GroupSums& other) {
    sums.add(other.sums);
    numel += other.numel;
  }
};

// A block for each row; that of a group's first row adds up the group, a warp for each row.
__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    fold_kernel(__grid_constant__ Shared<FoldTable> table, const FoldArgs args) {
  if (args.again && *args.any_wide == 0) return;
  const uint32_t first = blockIdx.x, id = table.rows[first].group;
  if (first > 0 && table.rows[first - 1].group == id) return;
  GroupStats& group = args.groups[id];
  if (args.again && !(group.wide > 0.0)) return;
  GroupSums total;
  if (!(args.stats->vetoed > 0.0)) {
    for (uint32_t at = first + threadIdx.x / 32; at < table.num_rows && table.rows[at].group == id;
         at += kThreads / 32) {
      const RowSlots& row = table.rows[at];
      for (uint32_t i = threadIdx.x % 32; i < row.count; i += 32) total.sums.add(load_slot(args.slots + row.first + i));
      if (threadIdx.x % 32 == 0) total.numel += static_cast<double>(row.numel);
    }
  }
  total = sum_block(total);
  if (threadIdx.x != 0) return;
  if (first == 0 && table.goes_on != 0) {
    total.add({{group.dot, group.ema_norm_sq, group.grad_norm_sq, 0.0}, group.numel});
  }
  if (!args.again) group = GroupStats{};
  group.dot = total.sums.dot;
  group.ema_norm_sq = total.sums.ema_norm_sq;
  group.grad_norm_sq = group.own_norm_sq = total.sums.grad_norm_sq;
  group.numel = total.numel;
  if (args.again) return;
  group.wide = needs_wide_sums(group) ? 1.0 : 0.0;
  if (group.wide > 0.0) *args.any_wide = 1;
}

// ---- the same sums in float64 ---------------------------------------------------------------------------------------

struct WideGroupsArgs {
  const GroupStats* groups;
  const uint32_t* any_wide;
  Sums* row_slots;
  Kind kind;
};

__global__ void __launch_bounds__(kThreads, kBlocksPerSm)
    wide_groups_kernel(__grid_constant__ Shared<Table> table, const WideGroupsArgs args) {
  if (*args.any_wide == 0) return;
  __shared__ Place<Sums> of_rows;  // which nobody asks for
  if (threadIdx.x == 0) of_rows.value() = Sums{};
  Sums total;
  walk_chunks<Direction::kForward>(table, [&](const Row& row, int64_t begin, int numel) {
    leave_row_before(total, args.row_slots, static_cast<uint32_t>(&row - table.rows), begin, of_rows.value());
    if (!(args.groups[row.rounding_key].wide > 0.0)) return;
    add_wide_sums(args.kind, row, begin, numel, total);
  });
  leave_last_row(total, args.row_slots, table, of_rows.value());
}

// ---- launchers ------------------------------------------------------------------------------------------------------

// The block that has a chunk, as walk_chunks shares them out.
uint32_t block_of(uint32_t chunk, uint32_t num_chunks, uint32_t blocks) {
  const uint32_t each = num_chunks / blocks, longer = num_chunks % blocks;
  return chunk < longer * (each + 1) ? chunk / (each + 1) : longer + (chunk - longer * (each + 1)) / each;
}

// Where a pass over `plan` has left the sums of rows; `blocks` of each launch. A group without rows has one that is empty,
// so that its statistics are written.
std::vector<RowSlots> slots_by_group(const Plan& plan, const Groups& groups, const std::vector<uint32_t>& blocks) {
  std::vector<RowSlots> out;
  std::vector<bool> has_rows(groups.count);
  uint32_t first = 0;
  for (size_t i = 0; i < plan.launches.size(); ++i) {
    const Launch& launch = plan.launches[i];
    for (uint32_t row = 0; row < launch.rows.size(); ++row) {
      const uint32_t end = row + 1 < launch.rows.size() ? launch.rows[row + 1].first_chunk : launch.num_chunks;
      const uint32_t from = block_of(launch.rows[row].first_chunk, launch.num_chunks, blocks[i]);
      const uint32_t to = block_of(end - 1, launch.num_chunks, blocks[i]);
      const uint32_t group = groups.of_row[launch.sources[row]];
      out.push_back({launch.rows[row].numel, first + from + row, to - from + 1, group, 0});
      has_rows[group] = true;
    }
    first += static_cast<uint32_t>(num_row_slots(launch, blocks[i]));
  }
  for (uint32_t group = 0; group < groups.count; ++group) {
    if (!has_rows[group]) out.push_back({0, 0, 0, group, 0});
  }
  std::stable_sort(out.begin(), out.end(), [](const RowSlots& a, const RowSlots& b) { return a.group < b.group; });
  return out;
}

void launch_fold(const std::vector<RowSlots>& rows, const FoldArgs& args, const Context& context) {
  for (size_t from = 0; from < rows.size(); from += kMaxFolded) {
    const size_t count = std::min(kMaxFolded, rows.size() - from);
    FoldTable table;
    table.num_rows = static_cast<uint32_t>(count);
    table.goes_on = from > 0 && rows[from - 1].group == rows[from].group ? 1 : 0;
    table.unused = 0;
    std::copy_n(rows.begin() + static_cast<std::ptrdiff_t>(from), count, table.rows);
    start(&fold_kernel, table.num_rows, kThreads, context, "launching the sums of groups", table, args);
  }
}

}  // namespace

void reduce_groups(const Plan& plan, const Groups& groups, const Context& context) {
  const DeviceGuard guard(context.device);
  uint32_t* any_wide = &header_in(context)->wide_groups;  // which reduce has cleared
  Sums* row_slots = row_slots_in(plan, context);
  FoldArgs fold_args{context.stats, row_slots, groups.stats, any_wide, false};
  std::vector<uint32_t> blocks;
  for (const Launch& launch : plan.launches) blocks.push_back(blocks_of_reduce(launch, context.device));
  launch_fold(slots_by_group(plan, groups, blocks), fold_args, context);

  WideGroupsArgs wide_args{groups.stats, any_wide, row_slots, {}};
  blocks.clear();
  for (const Launch& launch : plan.launches) {
    wide_args.kind = launch.kind;
    blocks.push_back(run(&wide_groups_kernel, keyed_by_group(launch, groups), wide_args, context,
                         "launching the wide sums of groups", Grid::kSmall));
    wide_args.row_slots += num_row_slots(launch, blocks.back());
  }
  fold_args.again = true;
  launch_fold(slots_by_group(plan, groups, blocks), fold_args, context);
}

}  // namespace gru_fast::cuda
