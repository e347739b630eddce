// From the sums of a step to its coefficients: the only code that decides. Host and device code alike. The same in
// Python: gru_fast/core/rules.py, where each rule says what it promises.
//
// A rule looks at d = <g, e>, m = |e|^2 and u = |g|^2 and names alpha and beta of
//
//   g <- alpha * g + beta * e
//
// Clipping to tau, and what is done where digits have cancelled, is the same for all of them: `decide` before apply,
// `settle` after it. A new rule is an entry of Rule, a function, a case of `combine`, and the same in Python.
#pragma once

#include "arithmetic.h"
#include "pipeline.h"

namespace gru_fast {

inline constexpr const char* kRuleNames[] = {"gru", "gdr"};  // by the value of Rule

// What a rule says, before clipping.
struct Combination {
  double alpha = 1.0;
  double beta = 0.0;
  double norm_sq = 0.0;  // |alpha * g + beta * e|^2, as far as the sums tell
  double size_sq = 0.0;  // of the terms that may cancel in it: what it is held against
  bool cancels = false;  // norm_sq has lost too many digits to clip by: apply measures it instead
};

// Below this share of what it is made of, a norm from the sums has lost too many digits.
inline constexpr double kCancellation = 1.0 / 64;
// A result below this share of what it is made of is rounding noise: cos(g, e) = -1.
inline constexpr double kDegenerate = 1.0 / (1 << 20);
// |g| above tau by more than this (16-bit rounding can do it) is scaled once more. The promise is 1e-3.
inline constexpr double kClipSlack = 5e-4;

// g without its component along e, if that component would raise the retain loss (paper Eq. 8).
GRU_FAST_HD Combination gru(double d, double m, double u, bool conflict) {
  Combination out{.norm_sq = u, .size_sq = u};
  if (!conflict) return out;
  out.beta = -d / m;
  const double residual = u - d * (d / m);
  out.norm_sq = residual > 0.0 ? residual : 0.0;
  out.cancels = residual < kCancellation * u;
  return out;
}

// g + e; of two that conflict, each without its component along the other. The projected two are as far apart as g and e
// were close: their dot product is -d (1 - cos^2).
GRU_FAST_HD Combination gdr(double d, double m, double u, bool conflict) {
  Combination out{.beta = m > 0.0 ? 1.0 : 0.0, .norm_sq = u + m + 2.0 * d, .size_sq = u + m};
  if (!conflict) return out;
  const double left = 1.0 - (d / u) * (d / m);  // 1 - cos^2
  out.alpha = 1.0 - d / u;
  out.beta = 1.0 - d / m;
  out.norm_sq = left > 0.0 ? left * (u + m - 2.0 * d) : 0.0;
  out.size_sq = out.alpha * out.alpha * u + out.beta * out.beta * m;
  out.cancels = left < kCancellation;
  return out;
}

GRU_FAST_HD Combination combine(Rule rule, double d, double m, double u, bool conflict) {
  return rule == Rule::kGdr ? gdr(d, m, u, conflict) : gru(d, m, u, conflict);
}

// Whether a rule needs all of r: where NaN or Inf kept some of it out of e, the step is given up.
GRU_FAST_HD bool needs_all_of_r(Rule rule) { return rule == Rule::kGdr; }

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

// What apply does: the rule, clipped to `tau` > 0, infinity for no clipping (paper Eq. 10).
GRU_FAST_HD Decision decide(Rule rule, const Stats& stats, double tau) {
  const double d = stats.dot, m = stats.ema_norm_sq, u = stats.grad_norm_sq;
  Decision out;
  out.norm_sq = u;
  out.nonfinite = !(u < kInfinity && m < kInfinity && fabs(d) < kInfinity);
  if (out.nonfinite || stats.vetoed > 0.0) return out;
  out.conflict = d < 0.0 && m > 0.0;
  if (stats.retain_nonfinite > 0.0 && needs_all_of_r(rule)) return out;
  const Combination wanted = combine(rule, d, m, u, out.conflict);
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
GRU_FAST_HD Stats settle(Rule rule, const Stats& stats, double tau) {
  const Decision decision = decide(rule, stats, tau);
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
