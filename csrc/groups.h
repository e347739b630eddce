// A rule for each group of rows instead of one for all: the sums of a group give its own alpha and beta. NaN, clipping and
// what is left of the whole are still decided over all of them. Host and device code alike; the same in Python:
// decide_groups in gru_fast/core/rules/decision.py.
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
  double reserved;
};
inline constexpr int kNumGroupStats = 8;
static_assert(sizeof(GroupStats) == kNumGroupStats * sizeof(double));

// Which group each row is of, by its place in the caller's list, and what is known of the groups.
struct Groups {
  const uint32_t* of_row;
  GroupStats* stats;
  size_t count;
};

// What apply does. alpha and beta of the groups are written; those of the Decision are the largest departure from 1 and 0
// among them, by which the others are told whether anything is written, and how widely.
GRU_FAST_HD Decision decide_groups(const Rule& rule, const Stats& stats, double tau, GroupStats* groups, size_t count) {
  const double d = stats.dot, m = stats.ema_norm_sq, u = stats.grad_norm_sq;
  Decision out;
  out.norm_sq = u;
  out.nonfinite = !(u < kInfinity && m < kInfinity && fabs(d) < kInfinity);
  const bool stays = out.nonfinite || stats.vetoed > 0.0 || (stats.retain_nonfinite > 0.0 && needs_all_of_r(rule));
  double norm_sq = 0.0;
  for (size_t i = 0; i < count; ++i) {
    GroupStats& group = groups[i];
    group.alpha = 1.0;
    group.beta = 0.0;
    const bool conflict = group.dot < 0.0 && group.ema_norm_sq > 0.0;
    group.conflict = !out.nonfinite && !(stats.vetoed > 0.0) && conflict;
    out.conflict = out.conflict || group.conflict > 0.0;
    if (stays) continue;
    const Combination wanted = combine(rule, Dots{group.dot, group.ema_norm_sq, group.grad_norm_sq, conflict});
    group.alpha = wanted.alpha;
    group.beta = wanted.beta;
    norm_sq += wanted.norm_sq;
    out.size_sq += wanted.size_sq;
  }
  if (stays) return out;
  out.norm_sq = norm_sq;
  out.measure = norm_sq < kCancellation * out.size_sq || (out.size_sq == 0.0 && u > 0.0);
  const double norm = sqrt(norm_sq);
  out.clipped = !out.measure && norm > tau;
  if (out.clipped) out.norm_sq = tau * tau;
  const double factor = out.clipped ? tau / norm : 1.0;
  for (size_t i = 0; i < count; ++i) {
    groups[i].alpha *= factor;
    groups[i].beta *= factor;
    if (groups[i].alpha != 1.0) out.alpha = groups[i].alpha;
    if (groups[i].beta != 0.0) out.beta = groups[i].beta;
  }
  return out;
}

}  // namespace gru_fast
