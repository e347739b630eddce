// The host side that the CUDA passes share: errors, the current device, the table a kernel takes, scratch, launches.
//
// One launch serves all tensors of a Kind: the rows travel inside the kernel's parameters, where threads read them
// through the constant cache. No copy to the device and no memset comes before a launch, and nothing on the device
// outlives a pass, so that the passes can be captured in a CUDA graph, and a launch that failed spoils none after it.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#include "../arithmetic.h"
#include "../gate.h"
#include "../kinds.h"
#include "../pipeline.h"
#include "../task_vector.h"

namespace gru_fast::cuda {

inline constexpr int kThreads = 256;
// Grid of every pass, per multiprocessor, and the promise to ptxas that caps registers at 64. The same for all passes,
// so that a block of apply meets the chunks that the same block of reduce has left in the L2 cache.
inline constexpr int kBlocksPerSm = 4;
inline constexpr uint32_t kMaxBlocks = 2048;  // bounds scratch where the device is not known yet

// 2,048 elements or more for each step of a block; small enough that 124M parameters make 14 chunks for each block of
// an H100. A divisor of kRoundingTile: a chunk has one rounding key.
inline constexpr int kChunkNumel = 16384;
static_assert(kRoundingTile % kChunkNumel == 0);

// ---- the table ------------------------------------------------------------------------------------------------------

static_assert(CUDART_VERSION >= 12010, "older toolkits pass 4,000 bytes of parameters at most");
inline constexpr size_t kMaxParameterBytes = 32764;
inline constexpr size_t kMaxArgsBytes = 128;  // what a kernel takes besides its table
inline constexpr size_t kTableHeaderBytes = 16;

// A launch copies all of a table, also what of it is empty, so the kernels of a step come for three sizes.
enum class TableSize { kSmall, kMedium, kLarge };
inline constexpr size_t kTableBytes[] = {512, 4096 - kMaxArgsBytes, kMaxParameterBytes - kMaxArgsBytes};
template <class RowT, TableSize S = TableSize::kLarge>
inline constexpr size_t kMaxRows = (kTableBytes[static_cast<int>(S)] - kTableHeaderBytes) / sizeof(RowT);

// Block b takes a contiguous range of chunks: `chunks_per_block`, and one more if b < num_longer_blocks.
template <class RowT, TableSize S = TableSize::kLarge>
struct TableOf {
  uint32_t num_rows;
  uint32_t chunks_per_block;
  uint32_t num_longer_blocks;
  int32_t chunk_numel;
  RowT rows[kMaxRows<RowT, S>];
};

// Returns f.template operator()<S>() for the smallest table that holds `num_rows`.
template <class RowT, class F>
auto with_table_size(size_t num_rows, F&& f) {
  using enum TableSize;
  if (num_rows <= kMaxRows<RowT, kSmall>) return f.template operator()<kSmall>();
  if (num_rows <= kMaxRows<RowT, kMedium>) return f.template operator()<kMedium>();
  return f.template operator()<kLarge>();
}
// The type of a kernel's parameter that its threads share: `__grid_constant__ Shared<Table> table`.
#ifdef __CUDACC__
template <class T>
using Shared = const T;
#else
template <class T>
using Shared = const T&;  // emulated: 32 KB for every thread are too many
#endif

using Table = TableOf<Row>;
using VectorTable = TableOf<VectorRow>;
static_assert(sizeof(Table) == kTableHeaderBytes + kMaxRows<Row> * sizeof(Row));
static_assert(sizeof(VectorTable) == kTableHeaderBytes + kMaxRows<VectorRow> * sizeof(VectorRow));

// ---- errors and devices ---------------------------------------------------------------------------------------------

// Whether an error is of a kernel that runs, or ran: whoever calls CUDA next is told, whatever it does.
inline bool is_of_a_kernel(cudaError_t status) {
  switch (status) {
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalAddress:
    case cudaErrorIllegalInstruction:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorLaunchTimeout:
    case cudaErrorMisalignedAddress:
      return true;
    default:
      return false;
  }
}

inline void check(cudaError_t status, const char* doing) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // not left for the caller's next check to trip over
  const char* whose = is_of_a_kernel(status)
                          ? "; perhaps of an earlier kernel, not of gru_fast: CUDA_LAUNCH_BLOCKING=1 shows which"
                          : "";
  throw std::runtime_error(std::string("gru_fast: CUDA error while ") + doing + ": " + cudaGetErrorName(status) + " (" +
                           cudaGetErrorString(status) + whose + ")");
}

class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&previous_), "asking for the current device");
    if (device == previous_) return;
    check(cudaSetDevice(device), "switching to the device of the gradients");
    switched_ = true;
  }
  ~DeviceGuard() {
    if (switched_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
  bool switched_ = false;
};

// Blocks of `kernel` that fill `device` once. Asked of the driver once for each pair, from any thread.
inline uint32_t full_grid(const void* kernel, int device) {
  static std::mutex mutex;
  static std::map<std::pair<int, const void*>, uint32_t> known;
  const std::lock_guard lock(mutex);
  uint32_t& blocks = known[{device, kernel}];
  if (blocks == 0) {
    int num_sms = 0, blocks_per_sm = 0;
    check(cudaDeviceGetAttribute(&num_sms, cudaDevAttrMultiProcessorCount, device), "counting multiprocessors");
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks_per_sm, kernel, kThreads, 0),
          "asking how many blocks fit a multiprocessor (was gru_fast built for this GPU?)");
    const int wanted = num_sms * std::clamp(blocks_per_sm, 1, kBlocksPerSm);
    blocks = std::min(static_cast<uint32_t>(wanted), kMaxBlocks);
  }
  return blocks;
}

// ---- scratch --------------------------------------------------------------------------------------------------------
// A Header, then one slot of sums for each block of all launches of a pass. It comes uninitialised: blocks fill their
// slots, and the kernel after them on the stream adds the slots up. The counters of the header are cleared by a kernel
// that comes before the one that counts.

struct Header {
  uint32_t wide_ticket;  // blocks of the last launch that have left wide sums
  uint32_t wide_groups;  // not 0: float32 cannot hold the sums of some group
};
inline constexpr size_t kHeaderBytes = 256;

inline Header* header_in(const Context& context) { return static_cast<Header*>(context.scratch); }

// Where the blocks of one launch leave their sums.
template <class T>
struct Slots {
  T* values;       // of all launches
  uint32_t first;  // slot of block 0: blocks of earlier launches
};

// What the blocks of all launches have left.
template <class T>
struct Filled {
  const T* values;
  uint32_t count;
};
template <class T>
Filled<T> filled(const Slots<T>& slots) {
  return {slots.values, slots.first};
}

template <class T>
Slots<T> slots_in(const Context& context, size_t offset = 0) {
  return {reinterpret_cast<T*>(static_cast<char*>(context.scratch) + kHeaderBytes + offset), 0};
}

// ---- launches -------------------------------------------------------------------------------------------------------

// Every launch is this one.
template <class... Params>
void start(void (*kernel)(Params...), uint32_t blocks, int threads, const Context& context, const char* doing,
           const std::type_identity_t<Params>&... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = static_cast<cudaStream_t>(context.stream);
  check(cudaLaunchKernelEx(&config, kernel, args...), doing);
}

// kSmall: a quarter of the blocks, for kernels that nearly always have nothing to do. Starting and ending the blocks is
// then all that they cost.
enum class Grid { kFull, kSmall };

// Blocks for the chunks of `launch`; one where there are none.
template <class LaunchT>
uint32_t blocks_for(const void* kernel, const LaunchT& launch, int device, Grid grid) {
  const uint32_t most = full_grid(kernel, device) / (grid == Grid::kSmall ? kBlocksPerSm : 1);
  return std::clamp(launch.num_chunks, 1u, std::max(most, 1u));
}

// Runs `kernel` over the chunks of `launch`; returns the number of blocks.
template <TableSize S, class LaunchT, class Args>
uint32_t run(void (*kernel)(Shared<TableOf<typename LaunchT::RowType, S>>, Args), const LaunchT& launch,
             const Args& args, const Context& context, const char* doing, Grid grid = Grid::kFull) {
  static_assert(sizeof(Args) <= kMaxArgsBytes);
  const auto* function = reinterpret_cast<const void*>(kernel);
  const uint32_t blocks = blocks_for(function, launch, context.device, grid);
  TableOf<typename LaunchT::RowType, S> table;
  table.num_rows = static_cast<uint32_t>(launch.rows.size());
  table.chunks_per_block = launch.num_chunks / blocks;
  table.num_longer_blocks = launch.num_chunks % blocks;
  table.chunk_numel = kChunkNumel;
  std::copy(launch.rows.begin(), launch.rows.end(), table.rows);
  start(kernel, blocks, kThreads, context, doing, table, args);
  return blocks;
}

// The same of a kernel that comes for each size of table: kernel_of.template operator()<S>().
template <class KernelOf, class LaunchT, class Args>
uint32_t run_sized(const KernelOf& kernel_of, const LaunchT& launch, const Args& args, const Context& context,
                   const char* doing, Grid grid = Grid::kFull) {
  return with_table_size<typename LaunchT::RowType>(launch.rows.size(), [&]<TableSize S>() {
    return run<S>(kernel_of.template operator()<S>(), launch, args, context, doing, grid);
  });
}

// Blocks that run_sized starts.
template <class KernelOf, class LaunchT>
uint32_t blocks_of(const KernelOf& kernel_of, const LaunchT& launch, int device) {
  return with_table_size<typename LaunchT::RowType>(launch.rows.size(), [&]<TableSize S>() {
    return blocks_for(reinterpret_cast<const void*>(kernel_of.template operator()<S>()), launch, device, Grid::kFull);
  });
}

// Calls visit(launch, is_last) in order. A plan without elements counts as one empty launch: its Stats are wanted too.
template <class LaunchT, class Visit>
void for_each_launch(const PlanOf<LaunchT>& plan, Visit&& visit) {
  static const LaunchT kNothing{};  // of kind float32
  if (plan.launches.empty()) return visit(kNothing, true);
  for (const LaunchT& launch : plan.launches) visit(launch, &launch == &plan.launches.back());
}

// Blocks of all launches of a pass, at most.
template <class LaunchT>
size_t max_slots(const PlanOf<LaunchT>& plan) {
  size_t total = 0;
  for_each_launch(plan, [&](const LaunchT& launch, bool) { total += std::clamp(launch.num_chunks, 1u, kMaxBlocks); });
  return total;
}

}  // namespace gru_fast::cuda
