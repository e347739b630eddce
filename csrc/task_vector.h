// One unit of task vector rectified unlearning (TRU), over ALL parameters taken as one vector:
//
//   T = learned - origin,  r = total - own        neither is ever stored
//   d = <T, r>,  m = |r|^2,  u = |T|^2
//   T~ = T + (max(-d, 0) / m) * r                 <T~, r> >= 0: the loss on the rest does not rise (paper Eq. 12)
//   mean <- mean + weight * T~ / |T~|             or weight * T~, without `normalize`
//   learned <- origin                             with `restore`
//
// It is the rule "gru" of a rectified step (rules.h) with T for g and r for e, and so `decide` and the fields of Stats
// serve here too: dot is d, ema_norm_sq m, grad_norm_sq u, written_norm_sq |T~|^2 where the sums cannot tell it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pipeline.h"
#include "rules.h"

namespace gru_fast {

struct VectorKind {
  DType param;  // learned and origin
  DType total;  // float32 or `param`
  DType own;    // float32 or `param`
  bool operator==(const VectorKind&) const = default;
};

// One parameter. The pointers address `numel` elements in the same order. Gradients that are null count as zeros.
struct VectorRow {
  void* learned;
  const void* origin;
  const void* total;
  const void* own;
  float* mean;
  int64_t numel;
  uint32_t first_chunk;  // set by the planner
};
static_assert(sizeof(VectorRow) == 56);

using VectorLaunch = LaunchOf<VectorRow, VectorKind>;
using VectorPlan = PlanOf<VectorLaunch>;

struct VectorArgs {
  double weight = 1.0;
  bool normalize = true;
  bool restore = true;
};

// Whether there is an r: without one, <T, r> and |r|^2 are 0 for a reason.
inline bool has_rest(const VectorPlan& plan) {
  for (const VectorLaunch& launch : plan.launches) {
    for (const VectorRow& row : launch.rows) {
      if (row.total != nullptr || row.own != nullptr) return true;
    }
  }
  return false;
}

// As `needs_wide_sums` of a rectified step.
GRU_FAST_HD bool needs_wide_vector_sums(Sums sums, int64_t numel, bool has_rest) {
  if (!has_rest) sums.ema_norm_sq = sums.grad_norm_sq;
  return needs_wide_sums(sums, numel);
}

// What is added to the mean: scale * T + shift * r. Both 0 where a unit has no direction or is not finite.
struct VectorDecision {
  double scale = 0.0;
  double shift = 0.0;
  double r_weight = 0.0;  // T~ = T + r_weight * r
  double norm_sq = 0.0;   // |T~|^2
  bool projected = false;
  bool measure = false;  // |T~|^2 has cancelled in the sums: it is taken from the elements
  bool degenerate = false;
  bool nonfinite = false;

  GRU_FAST_HD bool adds() const { return scale != 0.0; }
};

GRU_FAST_HD VectorDecision decide_vector(const Stats& stats, const VectorArgs& args) {
  const Decision decision = decide(Rule{}, stats, kInfinity);
  VectorDecision out;
  out.nonfinite = decision.nonfinite;
  if (out.nonfinite) return out;
  out.projected = decision.conflict;
  out.measure = decision.measure;
  out.r_weight = decision.beta;
  out.norm_sq = decision.measure ? stats.written_norm_sq : decision.norm_sq;
  out.degenerate = !(sqrt(out.norm_sq) > kDegenerate * sqrt(stats.grad_norm_sq));  // T = 0 too
  if (out.degenerate) return out;
  out.scale = args.normalize ? args.weight / sqrt(out.norm_sq) : args.weight;
  out.shift = out.scale * out.r_weight;
  return out;
}

// Completes the outcome fields of `stats`: alpha and beta are what was added, scale * T + shift * r.
GRU_FAST_HD Stats settle_vector(const Stats& stats, const VectorArgs& args) {
  const VectorDecision decision = decide_vector(stats, args);
  Stats out = stats;
  out.alpha = decision.scale;
  out.beta = decision.shift;
  out.rescale = 1.0;
  out.out_norm_sq = decision.norm_sq;
  out.conflict = decision.projected;
  out.clipped = 0.0;
  out.degenerate = decision.degenerate;
  out.grad_nonfinite = decision.nonfinite;
  return out;
}

// Coefficients that float32 cannot hold are applied in float64.
GRU_FAST_HD bool needs_wide_add(const VectorDecision& decision) {
  const double scale = fabs(decision.scale), shift = fabs(decision.shift);
  return scale > 1e38 || scale < 1e-37 || shift > 1e38 || (shift != 0.0 && shift < 1e-37);
}

// What a backend offers beside pipeline.h's list (same signatures in namespaces cpu and cuda):
//
//   size_t scratch_bytes(const VectorPlan&)
//   void reduce(const VectorPlan&, const VectorArgs&, const Context&)    writes dot .. grad_norm_sq
//   void measure(const VectorPlan&, const VectorArgs&, const Context&)   writes written_norm_sq, in the rare case
//   void add(const VectorPlan&, const VectorArgs&, const Context&)       writes mean, learned; completes Stats
//
// A unit is reduce, measure, add. With several devices dot .. grad_norm_sq are summed between the first two,
// written_norm_sq between the last two.

}  // namespace gru_fast
