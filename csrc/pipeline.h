// READ FIRST. What one step of Gradient Rectified Unlearning is made of, and what a backend must offer.
//
//   e <- keep * e + gain * r                     keep = 1 - gamma, gain = gamma / loss_scale        (paper Eq. 9)
//   d = <g, e>,  m = |e|^2,  u = |g|^2           over ALL parameters, with the e that is stored
//   g <- alpha * g + beta * e                    alpha, beta from d, m, u and tau, by a rule        (Eq. 8 and 10)
//
// The gradient travels: bindings.cpp -> tensor_view (Python lists -> Rows) -> chunk_plan (Rows -> chunks) ->
// reduce (EMA and sums) -> rules.h (sums -> coefficients) -> apply (rectified gradient) -> finish (rare).
// A backend is one folder with the functions declared at the end of this file; the core never allocates device memory,
// never synchronises, and knows tensors only as (pointer, count, dtype, device).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace gru_fast {

enum class DType : uint8_t { kFloat32, kBFloat16, kFloat16 };

constexpr int64_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// The largest finite number of a dtype. A constant, not a function, so that device code may use it.
template <DType T>
inline constexpr double kLargest = T == DType::kFloat16    ? 65504.0
                                   : T == DType::kBFloat16 ? 0x1.fep127
                                                           : 0x1.fffffep127;

// g and r share a dtype; e is float32 or that same dtype.
struct Kind {
  DType grad;
  DType ema;
  bool operator==(const Kind&) const = default;
};

// One parameter. All three pointers address `numel` elements in the same order, with any alignment the dtype allows.
// Missing gradients are null and count as zeros: no r decays e, no g adds nothing to d and u.
struct Row {
  void* grad;          // g, Kind::grad; modified by apply and finish; may be null
  const void* retain;  // r, Kind::grad; may be null
  void* ema;           // e, Kind::ema; modified by reduce unless `ema_is_current`; may be null only with `grad` null.
                       // Where no average is kept: r itself, current, so that a step reads g and r and writes g
  int64_t numel;
  uint32_t first_chunk;         // set by the planner: chunks of earlier rows of the same launch
  uint32_t rounding_key : 31;   // names the stream of rounding bits; by default the position in the caller's list
                                // (cuda/groups.cuh: the group, for passes that round nothing by chance)
  uint32_t ema_is_current : 1;  // e already holds this step's value: only the sums are wanted
};
static_assert(sizeof(Row) == 40);
inline constexpr int64_t kMaxRoundingKey = (int64_t{1} << 31) - 1;

// Rows of one Kind whose table fits one launch, cut into chunks of `Plan::chunk_numel` elements (the last of a row is
// shorter). Chunks are numbered from 0 in row order; rows are never empty. Templates, because task_vector.h has rows of
// its own.
template <class RowT, class KindT>
struct LaunchOf {
  using RowType = RowT;
  using KindType = KindT;
  KindT kind;
  std::vector<RowT> rows;
  uint32_t num_chunks;
  int64_t numel;
  std::vector<uint32_t> sources;  // of each row, its place in the caller's list
};

template <class LaunchT>
struct PlanOf {
  std::vector<LaunchT> launches;
  int64_t chunk_numel;  // a divisor or a multiple of kRoundingTile
  int64_t num_chunks;   // over all launches
  int64_t numel;        // over all launches
};

using Launch = LaunchOf<Row, Kind>;
using Plan = PlanOf<Launch>;

// Rounding bits are keyed by (seed, step, Row::rounding_key, element / kRoundingTile) and then by position in the tile,
// so they do not depend on chunks, threads or device.
inline constexpr int64_t kRoundingTile = 65536;

// What a step leaves behind: one float64 tensor of kNumStats on the device of the gradients. Inputs of the decision
// (written by reduce and apply, may be summed over devices in between) come first, its outcome after them.
struct Stats {
  double dot;               // d = <g, e>
  double ema_norm_sq;       // m = |e|^2
  double grad_norm_sq;      // u = |g|^2 before rectification
  double retain_nonfinite;  // > 0: some r was NaN or Inf; those elements of e kept their old value
  double vetoed;            // > 0: an all-or-nothing step met NaN or Inf; nothing was written
  double written_norm_sq;   // |g|^2 as apply wrote it
  double alpha;             // g <- alpha * g + beta * e; of an element-wise rule <g, e> as written
  double beta;              // of an element-wise rule the number of elements whose signs differed
  double rescale;           // extra factor of finish; 1: not needed
  double out_norm_sq;       // |g|^2 after the step
  double conflict;          // 1: d < 0, the projection fired
  double clipped;           // 1: |g| was above tau
  double degenerate;        // 1: cos(g, e) = -1 to rounding; g became 0
  double grad_nonfinite;    // 1: NaN or Inf in g (or in e); g was left untouched
  double wide_sums;         // 1: the sums were taken once more, in float64 (needs_wide_sums)
  double reserved;
};
inline constexpr int kNumStats = 16;
static_assert(sizeof(Stats) == kNumStats * sizeof(double));

// Who says what alpha and beta are, and the options it was given; see combinations.h.
enum class RuleId : uint8_t {
  kGru,
  kGdr,
  kAGem,
  kPcGrad,
  kUpGrad,
  kBlur,
  kGu,
  kNgDiff,
  kMgda,
  kCaGrad,
  kHamu,
  kSago,
  kGem,
  kSubspace
};
struct Rule {
  RuleId id = RuleId::kGru;
  double options[4] = {};
};

struct StepArgs {
  float keep = 1.0f;  // weight of the old e: 1 - gamma, or 1 for a later micro-batch of the same step
  float gain = 0.0f;  // weight of r: gamma / loss_scale
  double tau = 0.0;   // largest |g| after the step; infinity: no clipping
  Rule rule = {};
  uint64_t seed = 0;            // of the rounding bits of a 16-bit e
  bool all_or_nothing = false;  // NaN or Inf anywhere in g or r leaves every tensor as it is (loss scaling)
  bool sums_wanted = true;      // false: e alone; sums that float32 products cannot give are not taken once more
  bool by_row = false;          // CUDA: the sums of each row stay in scratch, for reduce_groups
};

struct BlendArgs {
  float x_weight;
  float y_weight;  // 0: y is not read
};

// Where a backend works. `stats`, `scratch` and `rounding_step` live on the device of the rows.
struct Context {
  Stats* stats;
  void* scratch;           // scratch_bytes(plan), 8-byte aligned, uninitialised
  int64_t* rounding_step;  // read by reduce, then incremented; null when no e is 16-bit
  int num_threads;         // CPU
  int device;              // CUDA
  void* stream;            // CUDA: cudaStream_t
};

// What a backend offers (same signatures in namespaces cpu and cuda):
//
//   size_t scratch_bytes(const Plan&)
//   void reduce(const Plan&, const StepArgs&, const Context&)   writes e, dot .. vetoed
//   void apply(const Plan&, const StepArgs&, const Context&)    decides from those; writes g, written_norm_sq
//   void finish(const Plan&, const StepArgs&, const Context&)   settles; rescales g in the rare cases; completes Stats
//   void step(const Plan&, const StepArgs&, const Context&)     the three
//
// With several devices or processes the fields dot .. vetoed are summed between the
// first two, written_norm_sq between the last two.
//
//   void gate(const Plan&, const StepArgs&, bool is_first, const Context&)   gate.h: in place of apply, or of reduce too
//
//   void reduce_groups(const Plan&, const Groups&, const Context&)                  groups.h: right after reduce, and in
//   void apply_groups(const Plan&, const StepArgs&, const Groups&, const Context&)  place of apply and finish
//   void finish_groups(const Plan&, const StepArgs&, const Groups&, const Context&)
//
//   void blend(const Plan&, const BlendArgs&, const Context&)   out <- x_weight * x + y_weight * y, rounded to nearest
//
// where Row::grad is out, Row::retain is x, both Kind::grad, and Row::ema is y, Kind::ema, which is only read.
// task_vector.h lists what it asks for.

}  // namespace gru_fast
