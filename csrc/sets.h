// Several vectors x_1..x_n in the place of one e: averages of as many retain sets, or gradients that were kept. Their dot
// products with g and with each other give the coefficients of
//
//   g <- alpha * g + sum_j beta_j x_j
//
//   gem       the nearest vector with <., x_j> >= 0 for all j: v >= margin minimising 1/2 v'Gv + h'v   (Lopez-Paz 2017)
//   subspace  g without its component in the span of x: v = -G^+ h; then w_r times the mean of x
//
// with G_ij = <x_i, x_j>, h_j = <g, x_j>. All sums are of float64 products, which of float32 numbers are exact: G may be
// nearly singular. Host and device code alike; the same in Python: gru_fast/core/rules/several.py.
#pragma once

#include "arithmetic.h"
#include "pipeline.h"
#include "rules.h"

namespace gru_fast {

inline constexpr int kMaxVectors = 8;
inline constexpr int kMaxPairs = kMaxVectors * (kMaxVectors + 1) / 2;

// Where the pair i <= j lies in a list of all pairs. Fewer vectors have a list that is the beginning of the same.
GRU_FAST_HD constexpr int pair_at(int i, int j) { return j * (j + 1) / 2 + i; }

// One parameter. All pointers address `numel` elements in the same order.
struct SetRow {
  void* grad;                        // null counts as zeros
  const void* vectors[kMaxVectors];  // float32 or the dtype of g; null from the number of vectors on
  int64_t numel;
  uint32_t first_chunk;
  DType grad_dtype;
  uint8_t is_float32;  // bit j: x_j is; else it has grad_dtype

  GRU_FAST_HD DType dtype(int j) const { return (is_float32 >> j & 1) != 0 ? DType::kFloat32 : grad_dtype; }
};
static_assert(sizeof(SetRow) == 88);

// Rows of all dtypes share a launch.
struct SetKind {
  bool operator==(const SetKind&) const = default;
};

using SetLaunch = LaunchOf<SetRow, SetKind>;
using SetPlan = PlanOf<SetLaunch>;

// Of kCount vectors.
template <int kCount>
struct SetSumsOf {
  double grad_norm_sq = 0.0;
  double dots[kCount] = {};
  double gram[kCount * (kCount + 1) / 2] = {};

  GRU_FAST_HD void add(const SetSumsOf& other) {
    grad_norm_sq += other.grad_norm_sq;
    for (int j = 0; j < kCount; ++j) dots[j] += other.dots[j];
    for (int p = 0; p < kCount * (kCount + 1) / 2; ++p) gram[p] += other.gram[p];
  }
};
using SetSums = SetSumsOf<kMaxVectors>;

// A float64 tensor on the device of the rows. `step` is what any step leaves behind, with the mean of the vectors in the
// place of e.
struct SetStats {
  Stats step;
  double dots[kMaxVectors];   // may be summed over devices before the decision, as step.grad_norm_sq, .retain_nonfinite
  double gram[kMaxPairs];     // and .vetoed
  double betas[kMaxVectors];  // written by the decision
  double size_sq;             // see Combination
  double measures;            // 1: the norm is measured by apply
};
inline constexpr int kNumSetStats = kNumStats + kMaxVectors + kMaxPairs + kMaxVectors + 2;
static_assert(sizeof(SetStats) == kNumSetStats * sizeof(double));

struct SetArgs {
  int count;  // of the vectors
  double tau;
  Rule rule;
};

// ---- the decision ---------------------------------------------------------------------------------------------------

// x_j is taken to lie in the span of others when less than this share of |x_j|^2 is left beside them.
inline constexpr double kDependent = 1e-10;
// How far a solution may miss a condition: of |g|, by rounding.
inline constexpr double kSlack = 1e-12;

// The sums in units in which every vector has length 1; one of zeros stays zeros, and takes no part.
struct UnitVectors {
  int count = 0;
  double gram[kMaxVectors][kMaxVectors];
  double dots[kMaxVectors];
  double lengths[kMaxVectors];  // 0: of zeros
};

GRU_FAST_HD UnitVectors unit_vectors(const SetStats& stats, int count) {
  UnitVectors out;
  out.count = count;
  for (int j = 0; j < count; ++j) {
    const double square = stats.gram[pair_at(j, j)];
    out.lengths[j] = square > 0.0 ? sqrt(square) : 0.0;
    out.dots[j] = square > 0.0 ? stats.dots[j] / out.lengths[j] : 0.0;
  }
  for (int j = 0; j < count; ++j) {
    for (int i = 0; i <= j; ++i) {
      const bool both = out.lengths[i] > 0.0 && out.lengths[j] > 0.0;
      const double cosine = both ? stats.gram[pair_at(i, j)] / out.lengths[i] / out.lengths[j] : 0.0;
      out.gram[i][j] = out.gram[j][i] = i == j && both ? 1.0 : cosine;
    }
  }
  return out;
}

// v on the vectors in `chosen` (bits) with G v = -dots there, 0 elsewhere. False if they depend on each other.
GRU_FAST_HD bool solve(const UnitVectors& x, const double* dots, unsigned chosen, double* v) {
  int at[kMaxVectors], size = 0;
  for (int j = 0; j < x.count; ++j) {
    v[j] = 0.0;
    if ((chosen >> j & 1u) != 0) at[size++] = j;
  }
  double lower[kMaxVectors][kMaxVectors], half[kMaxVectors];  // Cholesky
  for (int i = 0; i < size; ++i) {
    for (int j = 0; j <= i; ++j) {
      double rest = x.gram[at[i]][at[j]];
      for (int k = 0; k < j; ++k) rest -= lower[i][k] * lower[j][k];
      if (i == j && !(rest > kDependent)) return false;
      lower[i][j] = i == j ? sqrt(rest) : rest / lower[j][j];
    }
    double rest = -dots[at[i]];
    for (int k = 0; k < i; ++k) rest -= lower[i][k] * half[k];
    half[i] = rest / lower[i][i];
  }
  for (int i = size - 1; i >= 0; --i) {
    double rest = half[i];
    for (int k = i + 1; k < size; ++k) rest -= lower[k][i] * v[at[k]];
    v[at[i]] = rest / lower[i][i];
  }
  return true;
}

// By how much v misses the conditions of the smallest 1/2 v'Gv + dots'v over v >= 0: v >= 0, and G v + dots >= 0 where v
// is 0. In units of |g|, of which rounding takes its share.
GRU_FAST_HD double missed(const UnitVectors& x, const double* dots, unsigned chosen, const double* v, double norm) {
  double worst = 0.0, size = norm;
  for (int j = 0; j < x.count; ++j) {
    double value = v[j];
    size += fabs(v[j]);
    if ((chosen >> j & 1u) == 0) {
      value = dots[j];
      for (int k = 0; k < x.count; ++k) value += x.gram[j][k] * v[k];
    }
    worst = value < -worst ? -value : worst;
  }
  return size > 0.0 ? worst / size : 0.0;
}

// The smallest 1/2 v'Gv + dots'v over v >= 0. There is a solution on vectors that do not depend on each other: of their
// at most 255 choices the smallest that meets the conditions. No iteration, nothing that could cycle.
GRU_FAST_HD void nearest_in_cone(const UnitVectors& x, const double* dots, double norm, double* v) {
  double least = kInfinity, tried[kMaxVectors];
  for (int size = 0; size <= x.count; ++size) {
    for (unsigned chosen = 0; chosen < 1u << x.count; ++chosen) {
      int bits = 0;
      for (int j = 0; j < x.count; ++j) bits += static_cast<int>(chosen >> j & 1u);
      if (bits != size || !solve(x, dots, chosen, tried)) continue;
      const double miss = missed(x, dots, chosen, tried, norm);
      if (!(miss < least)) continue;
      least = miss;
      for (int j = 0; j < x.count; ++j) v[j] = tried[j] > 0.0 ? tried[j] : 0.0;
      if (miss <= kSlack) return;
    }
  }
}

// -G^+ dots: the longest independent choice, each time the vector of which most is left beside those taken.
GRU_FAST_HD void whole_component(const UnitVectors& x, double* v) {
  double left[kMaxVectors], lower[kMaxVectors][kMaxVectors];  // pivoted Cholesky, to choose by
  for (int j = 0; j < x.count; ++j) left[j] = x.gram[j][j];
  unsigned chosen = 0;
  for (int step = 0; step < x.count; ++step) {
    int pivot = 0;
    for (int j = 1; j < x.count; ++j) pivot = left[j] > left[pivot] ? j : pivot;
    if (!(left[pivot] > kDependent)) break;
    const double root = sqrt(left[pivot]);
    for (int j = 0; j < x.count; ++j) {
      double rest = x.gram[j][pivot];
      for (int k = 0; k < step; ++k) rest -= lower[j][k] * lower[pivot][k];
      lower[j][step] = rest / root;
      left[j] -= lower[j][step] * lower[j][step];
    }
    chosen |= 1u << pivot;
    left[pivot] = 0.0;
  }
  if (!solve(x, x.dots, chosen, v)) {
    for (int j = 0; j < x.count; ++j) v[j] = 0.0;  // not reached: they were chosen not to depend on each other
  }
}

// beta of each vector, before clipping.
GRU_FAST_HD void spread(const Rule& rule, const SetStats& stats, int count, double* betas) {
  const UnitVectors x = unit_vectors(stats, count);
  double v[kMaxVectors] = {};
  const bool gem = rule.id == RuleId::kGem;
  const double margin = gem ? rule.options[0] : 0.0;
  if (gem) {
    bool conflict = false;
    double dots[kMaxVectors];
    for (int j = 0; j < count; ++j) {
      conflict = conflict || x.dots[j] < 0.0;
      dots[j] = x.dots[j];
      for (int k = 0; k < count; ++k) dots[j] += margin * x.lengths[k] * x.gram[j][k];
    }
    if (!conflict) {
      for (int j = 0; j < count; ++j) betas[j] = 0.0;
      return;
    }
    nearest_in_cone(x, dots, sqrt(stats.step.grad_norm_sq), v);
  } else {
    whole_component(x, v);
  }
  const double added = gem ? margin : rule.options[0] / count;
  for (int j = 0; j < count; ++j) betas[j] = x.lengths[j] > 0.0 ? v[j] / x.lengths[j] + added : 0.0;
}

// What apply does: alpha, beta_j, and what is known of the norm afterwards, into the statistics.
GRU_FAST_HD void decide_sets(const SetArgs& args, SetStats& stats) {
  Stats& step = stats.step;
  const double u = step.grad_norm_sq;
  bool finite = u < kInfinity, conflict = false;
  step.dot = step.ema_norm_sq = 0.0;
  for (int j = 0; j < args.count; ++j) {
    const double d = stats.dots[j];
    finite = finite && fabs(d) < kInfinity;
    conflict = conflict || (d < 0.0 && stats.gram[pair_at(j, j)] > 0.0);
    step.dot += d / args.count;
    for (int i = 0; i <= j; ++i) {
      const double g = stats.gram[pair_at(i, j)];
      finite = finite && fabs(g) < kInfinity;
      step.ema_norm_sq += (i == j ? 1.0 : 2.0) * g / args.count / args.count;
    }
    stats.betas[j] = 0.0;
  }
  step.alpha = 1.0;
  step.beta = step.clipped = stats.measures = 0.0;
  step.out_norm_sq = stats.size_sq = u;
  step.grad_nonfinite = !finite;
  step.conflict = finite && !(step.vetoed > 0.0) && conflict;
  if (!finite || step.vetoed > 0.0 || (step.retain_nonfinite > 0.0 && needs_all_of_r(args.rule))) return;
  spread(args.rule, stats, args.count, stats.betas);
  double norm_sq = u;
  for (int j = 0; j < args.count; ++j) {
    const double b = stats.betas[j];
    norm_sq += 2.0 * (b * stats.dots[j]);
    for (int i = 0; i <= j; ++i) norm_sq += (i == j ? 1.0 : 2.0) * (stats.betas[i] * (b * stats.gram[pair_at(i, j)]));
    stats.size_sq += b * (b * stats.gram[pair_at(j, j)]);
    if (fabs(b) > fabs(step.beta)) step.beta = b;
  }
  step.out_norm_sq = norm_sq > 0.0 ? norm_sq : 0.0;
  const bool measure = norm_sq < kCancellation * stats.size_sq;
  stats.measures = measure;
  const double norm = sqrt(step.out_norm_sq);
  if (measure || !(norm > args.tau)) return;
  const double factor = args.tau / norm;
  step.clipped = 1.0;
  step.alpha = factor;
  step.beta *= factor;
  for (int j = 0; j < args.count; ++j) stats.betas[j] *= factor;
  step.out_norm_sq = args.tau * args.tau;
}

GRU_FAST_HD Decision decided(const SetStats& stats) {
  const Stats& step = stats.step;
  return {.alpha = step.alpha,
          .beta = step.beta,
          .norm_sq = step.out_norm_sq,
          .size_sq = stats.size_sq,
          .conflict = step.conflict > 0.0,
          .clipped = step.clipped > 0.0,
          .measure = stats.measures > 0.0,
          .nonfinite = step.grad_nonfinite > 0.0};
}

}  // namespace gru_fast
