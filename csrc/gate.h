// Rules that decide element by element, of which there is one: SAGO, by the signs of g and x,
//
//   g <- w_r * x                      where they differ
//   g <- w_f * g  (or + w_r * x)      elsewhere
//
// One pass reads g and x once and writes g once; nothing is decided before it. What the step is told of comes with it. NaN
// and Inf in x are not hidden: they are NaN in g. Host and device code alike; in Python: SAGO in gru_fast/core/rules/.
#pragma once

#include "arithmetic.h"
#include "rules.h"

namespace gru_fast {

struct GateSums {
  double dot = 0.0;  // <g, x>, |x|^2, |g|^2 before
  double ema_norm_sq = 0.0;
  double grad_norm_sq = 0.0;
  double written_norm_sq = 0.0;  // |g|^2 as written
  double along = 0.0;            // <g, x> as written
  double opposed = 0.0;          // number of elements whose signs differed

  GRU_FAST_HD void add(const GateSums& other) {
    dot += other.dot;
    ema_norm_sq += other.ema_norm_sq;
    grad_norm_sq += other.grad_norm_sq;
    written_norm_sq += other.written_norm_sq;
    along += other.along;
    opposed += other.opposed;
  }
};

struct Gate {
  float w_f, w_r;
  bool adds;  // x where signs agree, too
};

GRU_FAST_HD Gate gate_of(const Rule& rule) {
  return {static_cast<float>(rule.options[1]), static_cast<float>(rule.options[2]), rule.options[0] == 1.0};
}

// Compared one by one: their product may vanish.
template <class F>
GRU_FAST_HD auto are_opposed(F g, F x) {
  return ((g < 0.0f) & (x > 0.0f)) | ((g > 0.0f) & (x < 0.0f));
}

// What is written where g or x is NaN or Inf: a NaN that stays one when it is rounded.
inline constexpr uint32_t kPlainNan = 0x7fc00000u;

// Into the statistics: of a step without a reduce the sums too.
GRU_FAST_HD void tell(const GateSums& sums, bool is_first, Stats& stats) {
  if (is_first) {
    stats = Stats{};
    stats.dot = sums.dot;
    stats.ema_norm_sq = sums.ema_norm_sq;
    stats.grad_norm_sq = sums.grad_norm_sq;
  }
  stats.written_norm_sq = sums.written_norm_sq;
  stats.alpha = sums.along;
  stats.beta = sums.opposed;
}

}  // namespace gru_fast
