// The rules: each turns d = <g, x>, m = |x|^2 and u = |g|^2 into alpha and beta of
//
//   g <- alpha * g + beta * x          x: e, the average of the retain gradients, or r, that of this step
//
// Host and device code alike. The same in Python: gru_fast/core/rules/, where each rule says what it promises, where it
// comes from and how its public code differs. A new rule is an entry of RuleId and kRuleNames, a function, a case of
// `combine`, and its class in Python: a test holds the two against each other.
#pragma once

#include "arithmetic.h"
#include "pipeline.h"

namespace gru_fast {

inline constexpr const char* kRuleNames[] = {
    "gru",    "gdr",  "a_gem",  "pcgrad", "upgrad", "blur", "gu",
    "ngdiff", "mgda", "cagrad", "hamu",   "sago",   "gem",  "subspace"};  // by the value of RuleId

// What a rule says, before clipping.
struct Combination {
  double alpha = 1.0;
  double beta = 0.0;
  double norm_sq = 0.0;  // |alpha * g + beta * x|^2, as far as the sums tell
  double size_sq = 0.0;  // of the terms that may cancel in it: what it is held against
  bool cancels = false;  // norm_sq has lost too many digits to clip by: apply measures it instead
};

// The sums, and whether descending g would raise the retain loss.
struct Dots {
  double d, m, u;
  bool conflict;
};

// Below this share of what it is made of, a norm from the sums has lost too many digits.
inline constexpr double kCancellation = 1.0 / 64;
// |p|^2 below this share of m is rounding noise: g and x are collinear (hamu).
inline constexpr double kCollinear = 1.0 / (1ull << 40);

// Of coefficients alone.
GRU_FAST_HD Combination weighted(double alpha, double beta, const Dots& s) {
  Combination out{.alpha = alpha, .beta = beta};
  const double own = alpha * alpha * s.u, added = beta * beta * s.m;
  const double sum = own + added + 2.0 * (alpha * beta * s.d);
  out.norm_sq = sum > 0.0 ? sum : 0.0;
  out.size_sq = own + added;
  out.cancels = sum < kCancellation * out.size_sq || (alpha == 0.0 && beta == 0.0);
  return out;
}

// What an x or g of zeros leaves of a rule that adds x: its weights.
GRU_FAST_HD Combination without_one(double alpha, double beta, const Dots& s) {
  return weighted(alpha, s.m > 0.0 ? beta : 0.0, s);
}

// g without its component along x, if that component would raise the retain loss (paper Eq. 8). Also a_gem's.
GRU_FAST_HD Combination gru(const Dots& s) {
  Combination out{.norm_sq = s.u, .size_sq = s.u};
  if (!s.conflict) return out;
  out.beta = -s.d / s.m;
  const double residual = s.u - s.d * (s.d / s.m);
  out.norm_sq = residual > 0.0 ? residual : 0.0;
  out.cancels = residual < kCancellation * s.u;
  return out;
}

// g + x; of two that conflict, each without its component along the other. The projected two are as far apart as g and x
// were close: their dot product is -d (1 - cos^2).
GRU_FAST_HD Combination gdr(const Dots& s) {
  Combination out{.beta = s.m > 0.0 ? 1.0 : 0.0, .norm_sq = s.u + s.m + 2.0 * s.d, .size_sq = s.u + s.m};
  if (!s.conflict || !(s.u > 0.0)) return out;
  const double left = 1.0 - (s.d / s.u) * (s.d / s.m);  // 1 - cos^2
  out.alpha = 1.0 - s.d / s.u;
  out.beta = 1.0 - s.d / s.m;
  out.norm_sq = left > 0.0 ? left * (s.u + s.m - 2.0 * s.d) : 0.0;
  out.size_sq = out.alpha * out.alpha * s.u + out.beta * out.beta * s.m;
  out.cancels = left < kCancellation;
  return out;
}

// options: form (0 one-sided, 1 sum, 2 mean), w_f, w_r
GRU_FAST_HD Combination pcgrad(const Dots& s, const double* options) {
  const double share = options[0] == 2.0 ? 0.5 : 1.0;
  const double w_f = share * options[1], w_r = share * options[2];
  if (!s.conflict || !(s.u > 0.0)) return without_one(w_f, w_r, s);
  if (options[0] == 0.0) return weighted(w_f, w_r - w_f * (s.d / s.m), s);
  return weighted(w_f - w_r * (s.d / s.u), w_r - w_f * (s.d / s.m), s);
}

// options: below (0 forget, 1 retain), g0
GRU_FAST_HD Combination blur(const Dots& s, const double* options) {
  const double g0 = options[1];
  if (options[0] == 0.0) return s.u > 0.0 ? without_one(g0 - s.d / s.u, 1.0, s) : without_one(g0, 1.0, s);
  return s.m > 0.0 ? weighted(1.0, g0 - s.d / s.m, s) : weighted(1.0, 0.0, s);
}

// options: w_f, w_r
GRU_FAST_HD Combination gu(const Dots& s, const double* options) {
  if (!(s.m > 0.0)) return weighted(options[0], 0.0, s);
  return weighted(options[0], options[1] - options[0] * (s.d / s.m), s);
}

GRU_FAST_HD Combination ngdiff(const Dots& s) {
  return weighted(s.u > 0.0 ? 1.0 / sqrt(s.u) : 1.0, s.m > 0.0 ? 1.0 / sqrt(s.m) : 0.0, s);
}

GRU_FAST_HD Combination mgda(const Dots& s) {
  if (!(s.m > 0.0)) return weighted(1.0, 0.0, s);
  const double apart = s.u + s.m - 2.0 * s.d;  // |g - x|^2
  const double t = apart > 0.0 ? (s.m - s.d) / apart : 0.5;
  const double share = t < 0.0 ? 0.0 : t > 1.0 ? 1.0 : t;
  return weighted(share, 1.0 - share, s);
}

// |t * g + (1 - t) * x|^2
GRU_FAST_HD double between_sq(const Dots& s, double t) {
  const double sum = t * t * s.u + (1.0 - t) * (1.0 - t) * s.m + 2.0 * (t * (1.0 - t) * s.d);
  return sum > 0.0 ? sum : 0.0;
}

// The slope in t of <y, g0> + radius * |y| with y = t * g + (1 - t) * x and g0 = (g + x) / 2: convex in t.
GRU_FAST_HD double cagrad_slope(const Dots& s, double radius, double t) {
  const double norm = sqrt(between_sq(s, t));
  const double along = t * (s.u - s.d) + (1.0 - t) * (s.d - s.m);  // <y, g - x>
  return 0.5 * (s.u - s.m) + (norm > 0.0 ? radius * (along / norm) : 0.0);
}

// options: c
GRU_FAST_HD Combination cagrad(const Dots& s, const double* options) {
  if (!(s.m > 0.0)) return weighted(1.0, 0.0, s);
  const double mean_sq = 0.25 * (s.u + s.m + 2.0 * s.d);  // |g0|^2
  const double radius = options[0] * sqrt(mean_sq > 0.0 ? mean_sq : 0.0);
  double low = 0.0, high = 1.0, t = 0.5;
  if (cagrad_slope(s, radius, 0.0) >= 0.0) {
    t = 0.0;
  } else if (cagrad_slope(s, radius, 1.0) <= 0.0) {
    t = 1.0;
  } else {
    for (int i = 0; i < 60; ++i) {
      t = 0.5 * (low + high);
      (cagrad_slope(s, radius, t) < 0.0 ? low : high) = t;
    }
  }
  const double norm = sqrt(between_sq(s, t));
  const double q = norm > 0.0 ? radius / norm : 0.0;
  return weighted(0.5 + q * t, 0.5 + q * (1.0 - t), s);
}

// Its coefficients in the form q: of the vector to descend (alpha) and the one that bounds it (beta), whose names form u
// swaps. `radius` below 0: |x|.
GRU_FAST_HD void hamu_coefficients(const Dots& s, double q, double radius, double& alpha, double& beta) {
  const double reach = radius < 0.0 ? sqrt(s.m) : radius;
  const double norm_r = sqrt(s.m);
  alpha = q / s.u;
  beta = 0.0;
  if (q > reach * sqrt(s.u)) return;  // infeasible: as far as it was asked for
  if (s.d * reach >= q * norm_r) {    // descending x alone forgets enough
    alpha = 0.0;
    beta = reach / norm_r;
    return;
  }
  const double rest_sq = s.m - s.d * (s.d / s.u);  // |p|^2
  if (rest_sq <= kCollinear * s.m) return;
  const double left_sq = reach * reach - q * (q / s.u);
  beta = sqrt(left_sq > 0.0 ? left_sq : 0.0) / sqrt(rest_sq);
  alpha -= beta * (s.d / s.u);
}

// options: form (0 q, 1 u), q over the learning rate, radius over the learning rate (below 0: from the rate)
GRU_FAST_HD Combination hamu(const Dots& s, const double* options) {
  if (!(s.m > 0.0 && s.u > 0.0)) return without_one(1.0, 1.0, s);
  double alpha, beta;
  if (options[0] == 0.0) {
    hamu_coefficients(s, options[1], options[2], alpha, beta);
  } else {
    hamu_coefficients({s.d, s.u, s.m, s.conflict}, options[1], options[2], beta, alpha);
  }
  return weighted(alpha, beta, s);
}

GRU_FAST_HD Combination upgrad(const Dots& s) {
  constexpr double kHalves[] = {2.0, 1.0, 1.0};
  return pcgrad(s, kHalves);
}

// Of one vector; of several: sets.h. options: margin
GRU_FAST_HD Combination gem(const Dots& s, const double* options) {
  if (!(s.conflict && options[0] * s.m > -s.d)) return gru(s);
  return weighted(1.0, options[0], s);
}

// Of one vector; of several: sets.h. options: w_r
GRU_FAST_HD Combination subspace(const Dots& s, const double* options) {
  return weighted(1.0, s.m > 0.0 ? options[0] - s.d / s.m : 0.0, s);
}

GRU_FAST_HD Combination combine(const Rule& rule, const Dots& s) {
  switch (rule.id) {
    case RuleId::kGru:
    case RuleId::kAGem:
      return gru(s);
    case RuleId::kGdr:
      return gdr(s);
    case RuleId::kPcGrad:
      return pcgrad(s, rule.options);
    case RuleId::kUpGrad:
      return upgrad(s);
    case RuleId::kBlur:
      return blur(s, rule.options);
    case RuleId::kGu:
      return gu(s, rule.options);
    case RuleId::kNgDiff:
      return ngdiff(s);
    case RuleId::kMgda:
      return mgda(s);
    case RuleId::kCaGrad:
      return cagrad(s, rule.options);
    case RuleId::kHamu:
      return hamu(s, rule.options);
    case RuleId::kGem:
      return gem(s, rule.options);
    case RuleId::kSubspace:
      return subspace(s, rule.options);
    case RuleId::kSago:  // element-wise: gate.h
      break;
  }
  return gru(s);
}

// Whether a rule adds x to g, and so needs all of r: where NaN or Inf kept some of it out of e, the step is given up.
GRU_FAST_HD bool needs_all_of_r(const Rule& rule) {
  return rule.id != RuleId::kGru && rule.id != RuleId::kAGem && rule.id != RuleId::kGem;
}

}  // namespace gru_fast
