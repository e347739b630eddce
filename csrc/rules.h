// From the sums of a step to what is done: the only code that decides. Host and device code alike. The same in Python:
// gru_fast/core/rules/decision.py.
//
// A rule (combinations.h) looks at d = <g, e>, m = |e|^2 and u = |g|^2 and names alpha and beta of
//
//   g <- alpha * g + beta * e
//
// Clipping to tau, and what is done where digits have cancelled, is the same for all of them: `decide` before apply,
// `settle` after it.
#pragma once

#include "arithmetic.h"
#include "combinations.h"
#include "pipeline.h"

namespace gru_fast {

// A result below this share of what it is made of is rounding noise: cos(g, e) = -1.
inline constexpr double kDegenerate = 1.0 / (1 << 20);
// |g| above tau by more than this (16-bit rounding can do it) is scaled once more. The promise is 1e-3.
inline constexpr double kClipSlack = 5e-4;

struct Decision {
  double alpha = 1.0;
  double beta = 0.0;
  double norm_sq = 0.0;  // |g|^2 after apply, as far as the sums tell
  double size_sq = 0.0;  // see Combination
  bool conflict = false;
  bool clipped = false;
  bool measure = false;  // norm_sq is unreliable: clip after apply has measured it
  bool nonfinite = false;

  GRU_FAST_HD bool writes() const { return alpha != 1.0 || beta != 0.0; }
};

// Whether there is neither NaN nor Inf in g or in e.
GRU_FAST_HD bool is_finite(const Stats& stats) {
  return stats.grad_norm_sq < kInfinity && stats.ema_norm_sq < kInfinity && fabs(stats.dot) < kInfinity;
}

// Whether g is left as it is, whatever the rule says: NaN or Inf, in what is needed.
GRU_FAST_HD bool is_shut(const Rule& rule, const Stats& stats) {
  return !is_finite(stats) || stats.vetoed > 0.0 || (stats.retain_nonfinite > 0.0 && needs_all_of_r(rule));
}

// What apply does: the rule, clipped to `tau` > 0, infinity for no clipping (paper Eq. 10).
GRU_FAST_HD Decision decide(const Rule& rule, const Stats& stats, double tau) {
  const double d = stats.dot, m = stats.ema_norm_sq, u = stats.grad_norm_sq;
  Decision out;
  out.norm_sq = u;
  out.nonfinite = !is_finite(stats);
  if (out.nonfinite || stats.vetoed > 0.0) return out;
  out.conflict = d < 0.0 && m > 0.0;
  if (is_shut(rule, stats)) return out;
  const Combination wanted = combine(rule, Dots{d, m, u, out.conflict});
  out.alpha = wanted.alpha;
  out.beta = wanted.beta;
  out.norm_sq = wanted.norm_sq;
  out.size_sq = wanted.size_sq;
  out.measure = wanted.cancels;
  const double norm = sqrt(out.norm_sq);
  if (!out.measure && norm > tau) {
    const double factor = tau / norm;
    out.clipped = true;
    out.alpha *= factor;
    out.beta *= factor;
    out.norm_sq = tau * tau;
  }
  return out;
}

// Completes the outcome fields of `stats` once apply has written (or had nothing to write).
GRU_FAST_HD Stats settle(const Decision& decision, const Stats& stats, double tau) {
  Stats out = stats;
  out.alpha = decision.alpha;
  out.beta = decision.beta;
  out.rescale = 1.0;
  out.out_norm_sq = decision.norm_sq;
  out.conflict = decision.conflict;
  out.clipped = decision.clipped;
  out.degenerate = 0.0;
  out.grad_nonfinite = decision.nonfinite;
  if (!decision.writes()) return out;
  const double written = sqrt(stats.written_norm_sq);
  out.out_norm_sq = stats.written_norm_sq;
  if (decision.measure && written <= kDegenerate * sqrt(decision.size_sq)) {
    out.rescale = 0.0;
    out.degenerate = 1.0;
  } else if (written > tau * (decision.measure ? 1.0 : 1.0 + kClipSlack)) {
    out.rescale = tau / written;
    out.clipped = 1.0;
  }
  out.out_norm_sq *= out.rescale * out.rescale;
  return out;
}

// The same of an element-wise rule, whose pass (gate.h) has written, or was shut.
GRU_FAST_HD Stats settle_elements(const Rule& rule, const Stats& stats, double tau) {
  const double d = stats.dot, m = stats.ema_norm_sq, u = stats.grad_norm_sq;
  Stats out = stats;
  out.grad_nonfinite = !is_finite(stats);
  const bool shut = is_shut(rule, stats);
  const double written = sqrt(stats.written_norm_sq);
  out.conflict = !(out.grad_nonfinite > 0.0) && !(stats.vetoed > 0.0) && d < 0.0 && m > 0.0;
  out.clipped = !shut && written > tau * (1.0 + kClipSlack);
  out.degenerate = !shut && u > 0.0 && written == 0.0;
  out.rescale = out.clipped > 0.0 ? tau / written : 1.0;
  out.out_norm_sq = shut ? u : stats.written_norm_sq * out.rescale * out.rescale;
  return out;
}

GRU_FAST_HD Stats settle(const Rule& rule, const Stats& stats, double tau) {
  if (rule.id == RuleId::kSago) return settle_elements(rule, stats, tau);
  return settle(decide(rule, stats, tau), stats, tau);
}

// Coefficients that float32 cannot hold (|e| many orders of magnitude from |g|), and gradients whose squares it cannot,
// are applied in float64.
GRU_FAST_HD bool needs_wide_apply(const Decision& decision, double grad_norm_sq, int64_t numel) {
  const double alpha = fabs(decision.alpha), beta = fabs(decision.beta);
  const bool coefficients = alpha > 1e38 || alpha < 1e-37 || beta > 1e38 || (beta != 0.0 && beta < 1e-37);
  const bool squares = grad_norm_sq > 1e38 || decision.norm_sq > 1e38 ||
                       decision.norm_sq < static_cast<double>(numel) * 8.271806125530277e-25;
  return coefficients || squares;  // 2^-80 an element: the projection may take 2^-20 from it
}

}  // namespace gru_fast
