// A rule for each group of rows instead of one for all: the sums of a group give its own alpha and beta. NaN, clipping and
// what is left of the whole are still decided over all of them. Host and device code alike; the same in Python:
// decide_groups in gru_fast/core/rules/decision.py.
//
// A decision over groups is made in three parts, so that the CPU can go through them in a loop and CUDA with a thread for
// each group: `propose` for every group, `decide_all` over what these add up to, `conclude` for every group.
#pragma once

#include <cstddef>

#include "rules.h"

namespace gru_fast {

// One line of a float64 tensor (groups, kNumGroupStats) on the device of the rows.
struct GroupStats {
  double dot;  // <g, e>, |e|^2, |g|^2 over the rows of the group; may be summed over devices in between
  double ema_norm_sq;
  double grad_norm_sq;
  double alpha;  // g <- alpha * g + beta * e, written by apply
  double beta;
  double conflict;     // 1: d < 0 in this group
  double own_norm_sq;  // |g|^2 of what of the group is in these rows
  double numel;        // elements of the group in these rows
  double wide;         // 1: float32 cannot hold its sums (after reduce), its coefficients (after the decision)

  GRU_FAST_HD bool is_left() const { return alpha == 1.0 && beta == 0.0; }
};
inline constexpr int kNumGroupStats = 9;
static_assert(sizeof(GroupStats) == kNumGroupStats * sizeof(double));

// Which group each row is of, by its place in the caller's list, and what is known of the groups.
struct Groups {
  const uint32_t* of_row;
  GroupStats* stats;
  size_t count;
};

// Whether float32 cannot hold the sums of a group: the total may be ordinary beside them.
GRU_FAST_HD bool needs_wide_sums(const GroupStats& group) {
  return needs_wide_sums({group.dot, group.ema_norm_sq, group.grad_norm_sq, 0.0}, static_cast<int64_t>(group.numel));
}

// What the groups bring to the decision.
struct Proposals {
  double norm_sq = 0.0;  // of what their rules want, as in Combination
  double size_sq = 0.0;
  double conflicts = 0.0;  // groups with d < 0

  GRU_FAST_HD void add(const Proposals& other) {
    norm_sq += other.norm_sq;
    size_sq += other.size_sq;
    conflicts += other.conflicts;
  }
};

struct Conclusions {
  double written = 0.0;  // groups of which anything is written
  double left_sq = 0.0;  // |g|^2 of the others, in these rows

  GRU_FAST_HD void add(const Conclusions& other) {
    written += other.written;
    left_sq += other.left_sq;
  }
};

// alpha and beta of a group as its rule wants them.
GRU_FAST_HD Proposals propose(const Rule& rule, const Stats& stats, GroupStats& group) {
  const bool conflict = group.dot < 0.0 && group.ema_norm_sq > 0.0;
  group.alpha = 1.0;
  group.beta = 0.0;
  group.conflict = is_finite(stats) && !(stats.vetoed > 0.0) && conflict;
  if (is_shut(rule, stats)) return {0.0, 0.0, group.conflict};
  const Combination wanted = combine(rule, Dots{group.dot, group.ema_norm_sq, group.grad_norm_sq, conflict});
  group.alpha = wanted.alpha;
  group.beta = wanted.beta;
  return {wanted.norm_sq, wanted.size_sq, group.conflict};
}

// All but whether anything is written.
GRU_FAST_HD Decision decide_all(const Rule& rule, const Stats& stats, double tau, const Proposals& proposals) {
  Decision out;
  out.norm_sq = stats.grad_norm_sq;
  out.nonfinite = !is_finite(stats);
  out.conflict = proposals.conflicts > 0.0;
  if (is_shut(rule, stats)) return out;
  out.norm_sq = proposals.norm_sq;
  out.size_sq = proposals.size_sq;
  out.measure = out.norm_sq < kCancellation * out.size_sq || (out.size_sq == 0.0 && stats.grad_norm_sq > 0.0);
  out.clipped = !out.measure && sqrt(out.norm_sq) > tau;
  return out;
}

// Clips alpha and beta of a group. What float32 is too narrow for is asked of each: where the coefficients of one are
// ordinary those of another may be out of its range.
GRU_FAST_HD Conclusions conclude(const Decision& all, double tau, GroupStats& group) {
  if (all.clipped) {
    const double factor = tau / sqrt(all.norm_sq);
    group.alpha *= factor;
    group.beta *= factor;
  }
  const Dots dots{group.dot, group.ema_norm_sq, group.grad_norm_sq, group.conflict > 0.0};
  const Combination made = weighted(group.alpha, group.beta, dots);
  const Decision own{.alpha = made.alpha, .beta = made.beta, .norm_sq = made.norm_sq};
  group.wide = needs_wide_apply(own, group.grad_norm_sq, static_cast<int64_t>(group.numel));
  return group.is_left() ? Conclusions{0.0, group.own_norm_sq} : Conclusions{1.0, 0.0};
}

// What apply is told: with groups of which any is written alpha and beta are NaN, since each has its own.
GRU_FAST_HD Decision decided(Decision all, double tau, const Conclusions& conclusions) {
  if (all.clipped) all.norm_sq = tau * tau;
  if (conclusions.written > 0.0) all.alpha = all.beta = kNan;
  return all;
}

}  // namespace gru_fast
