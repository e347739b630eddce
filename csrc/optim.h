// AdamW (Loshchilov and Hutter 2019) over ALL parameters, with the gradient of a step rectified on the fly and with the
// update that is really made rectified too. For one element, in float32 and in the order of torch's fused AdamW:
//
//   g' = alpha * g + beta * e                      alpha, beta: what a rule made of the sums (rules.h); never stored
//   M <- M + (1 - b1) (g' - M),  V <- b2 V + (1 - b2) g'^2
//   D  = sqrt(V) / sqrt(1 - b2^t) + eps
//   theta <- (1 - lr wd) theta - (lr / (1 - b1^t)) M / D       = theta - lr U
//
// and with the update rectified, over all parameters, each with the learning rate of its group:
//
//   q = sum lr U e,   K = sum lr e^2 / W            W = 1 (Euclidean), or D + rms(D) of the step before (Adam)
//   q < 0:  Z = U + (-q / K) e / W,  theta <- theta - lr Z     so that sum lr Z e = 0; the closest Z to U in the metric
//                                                              sum lr W (Z - U)^2
//
// 16-bit tensors hold rounded values: U is made of M and V as they are stored, in both passes to the bit. What is written
// is rounded stochastically, by the parameter's own count of steps, so that a step too small for the grid is not lost.
#pragma once

#include <cstddef>
#include <cstdint>

#include "arithmetic.h"
#include "pipeline.h"

namespace gru_fast {

struct AdamWKind {
  DType param;   // theta and g
  DType moment;  // M and V: float32, or `param` where that is bfloat16 (a float16 V would be 0 below 2^-24)
  DType ema;     // e: float32 or `param`
  bool operator==(const AdamWKind&) const = default;
};

// One parameter. The pointers address `numel` elements in the same order.
struct AdamWRow {
  void* param;
  void* grad;  // null counts as zeros; written only with `write_grad`
  void* exp_avg;
  void* exp_avg_sq;
  const void* ema;  // null counts as zeros
  int64_t numel;
  uint32_t first_chunk;   // set by the planner
  uint32_t rounding_key;  // names the stream of rounding bits
  uint32_t index;         // of the row's AdamWScalars
};
static_assert(sizeof(AdamWRow) == 64);

using AdamWLaunch = LaunchOf<AdamWRow, AdamWKind>;
using AdamWPlan = PlanOf<AdamWLaunch>;

// The scalars of one parameter, in a float64 tensor of (parameters, 8) on the device of the rows: in a captured graph
// they change from replay to replay.
struct AdamWScalars {
  double lr, beta1, beta2, eps, weight_decay;
  double bias1;       // 1 - beta1^step
  double bias2_root;  // sqrt(1 - beta2^step)
  double step;        // this one counted; rounding bits go by it
};
inline constexpr int kNumAdamWScalars = 8;
static_assert(sizeof(AdamWScalars) == kNumAdamWScalars * sizeof(double));

// What a pass leaves of the update: sums, which may be added up over devices and processes, and a largest value.
struct UpdateStats {
  double dot = 0.0;             // q = sum lr U e
  double step_norm_sq = 0.0;    // sum (lr U)^2
  double ema_norm_sq = 0.0;     // |e|^2 over the rows that move
  double reach = 0.0;           // K = sum lr e^2 / W
  double change_sq = 0.0;       // sum (lr e / W)^2
  double denominator_sq = 0.0;  // sum D^2; 0 in the Euclidean metric
  double numel = 0.0;           // elements that move
  double largest = 0.0;         // max |e| / W

  GRU_FAST_HD void add(const UpdateStats& other) {
    dot += other.dot;
    step_norm_sq += other.step_norm_sq;
    ema_norm_sq += other.ema_norm_sq;
    reach += other.reach;
    change_sq += other.change_sq;
    denominator_sq += other.denominator_sq;
    numel += other.numel;
    largest = largest > other.largest ? largest : other.largest;
  }
};
inline constexpr int kNumUpdateStats = 8;
static_assert(sizeof(UpdateStats) == kNumUpdateStats * sizeof(double));

// With its update rectified, a step is kMoments and kUpdate, or, where nothing may be written before it is known that U is
// a number everywhere, kSums and a kStep that is given the sums.
enum class AdamWPass : uint8_t {
  kStep,     // M, V and theta, the latter by the sums of U where there are any
             //                               reads theta g M V (e), writes theta M V
  kMoments,  // M, V and the sums of U        reads theta g M V e, writes M V
  kUpdate,   // theta, by the sums of U       reads theta M V (e), writes theta (M)
  kSums,     // the sums of U alone           reads theta g M V e
};

struct AdamWArgs {
  uint64_t seed = 0;        // of the rounding bits of 16-bit tensors
  int64_t numel = 0;        // of e over all devices and processes
  bool adam = false;        // W = D + rms(D), else 1
  bool feed_back = false;   // M takes its part of the correction: M <- M + (1 - b1^t) lambda D e / W
  bool write_grad = false;  // kStep and kMoments leave g' in g
  bool maximize = false;    // climbs: g' = -g
};

// Where a pass works; all but the last three on the device of the rows.
struct AdamWContext {
  const AdamWScalars* scalars;
  const Stats* stats;   // settled: alpha, beta and |e|^2 of the step; null: g as it is, and no e
  UpdateStats* update;  // written by kMoments and kSums, read by kUpdate and kStep; null of a step as it is
  const double* floor;  // rms(D) of the step before; null in the Euclidean metric
  void* scratch;        // scratch_bytes(plan), 8-byte aligned, uninitialised
  int num_threads;      // CPU
  int device;           // CUDA
  void* stream;         // CUDA
};

// ---- from sums to factors -------------------------------------------------------------------------------------------

// lambda of Z = U + lambda e / W: 0 where nothing is to be rectified.
GRU_FAST_HD double update_factor(const UpdateStats& update) {
  const bool conflict = update.dot < 0.0 && update.dot > -kInfinity && update.reach > 0.0 && update.reach < kInfinity;
  return conflict ? -update.dot / update.reach : 0.0;
}

// Whether U is a number everywhere: else kUpdate leaves theta as it is, and kStep everything.
GRU_FAST_HD bool is_finite_update(const UpdateStats& update) { return update.step_norm_sq < kInfinity; }

// A power of two that brings e near 1, so that products with it neither overflow in float32 nor vanish. Scaling by it is
// exact.
GRU_FAST_HD float ema_scale(double ema_norm_sq, int64_t numel) {
  if (!(ema_norm_sq > 0.0 && ema_norm_sq < kInfinity) || numel == 0) return 1.0f;
  const double mean_exponent = log2(ema_norm_sq / static_cast<double>(numel)) / 2.0;
  const double exponent = mean_exponent > 120.0 ? 120.0 : mean_exponent < -120.0 ? -120.0 : mean_exponent;
  return static_cast<float>(exp2(-floor(exponent)));
}

// What a settled step says of g.
struct GradientFactors {
  double alpha = 1.0, beta = 0.0, ema_norm_sq = 0.0;
  bool skips = false;  // NaN or Inf: nothing is written
};

GRU_FAST_HD GradientFactors gradient_factors(const Stats* stats) {
  if (stats == nullptr) return {};
  const bool skips = stats->vetoed > 0.0 || stats->grad_nonfinite > 0.0;
  return {stats->alpha * stats->rescale, stats->beta * stats->rescale, stats->ema_norm_sq, skips};
}

// What is the same for all elements of a row, as float32 lanes take it.
struct AdamWFactors {
  float alpha, beta;                        // g' = alpha g + beta e
  float first, second, beta2;               // 1 - b1 (or -b1, see small_first), 1 - b2, b2
  float bias2_root, eps, decay, step_size;  // decay = 1 - lr wd, step_size = -lr / bias1
  float unit, weight_decay;                 // U = unit M / D + wd theta
  float scale, floor;                       // e comes as scale * e; W = D + floor
  float shift, feed;                        // lr lambda / scale, bias1 lambda / scale
  bool small_first;                         // M + first (g' - M); else g' + first (g' - M), as torch's lerp
  bool adam;
};

GRU_FAST_HD AdamWFactors factors_of(const AdamWScalars& row, const AdamWArgs& args, const AdamWContext& context,
                                    const GradientFactors& gradient, double lambda) {
  AdamWFactors out;
  const double sign = args.maximize ? -1.0 : 1.0;
  out.alpha = static_cast<float>(sign * gradient.alpha);
  out.beta = static_cast<float>(sign * gradient.beta);
  out.first = static_cast<float>(1.0 - row.beta1);
  out.small_first = out.first < 0.5f;
  if (!out.small_first) out.first -= 1.0f;
  out.second = static_cast<float>(1.0 - row.beta2);
  out.beta2 = static_cast<float>(row.beta2);
  out.bias2_root = static_cast<float>(row.bias2_root);
  out.eps = static_cast<float>(row.eps);
  out.decay = static_cast<float>(1.0 - row.lr * row.weight_decay);
  out.step_size = static_cast<float>(-(row.lr / row.bias1));
  out.unit = static_cast<float>(1.0 / row.bias1);
  out.weight_decay = static_cast<float>(row.weight_decay);
  out.scale = ema_scale(gradient.ema_norm_sq, args.numel);
  out.floor = args.adam ? static_cast<float>(*context.floor) : 0.0f;
  out.shift = static_cast<float>(row.lr * (lambda / out.scale));
  out.feed = args.feed_back ? static_cast<float>(row.bias1 * (lambda / out.scale)) : 0.0f;
  out.adam = args.adam;
  return out;
}

// Whether a pass has to read e, and theta.
GRU_FAST_HD bool reads_ema(AdamWPass pass, const AdamWFactors& c) {
  if (pass == AdamWPass::kStep) return c.beta != 0.0f || c.shift != 0.0f;
  return pass != AdamWPass::kUpdate || c.shift != 0.0f;
}
GRU_FAST_HD bool reads_param(AdamWPass pass, const AdamWFactors& c) {
  return pass == AdamWPass::kStep || pass == AdamWPass::kUpdate || c.weight_decay != 0.0f;
}

// The sums of a row's elements as kernels take them, of U and scale * e, in units of UpdateStats.
GRU_FAST_HD UpdateStats in_units(UpdateStats sums, const AdamWScalars& row, float scale) {
  const double once = 1.0 / scale, twice = once * once;
  sums.dot *= row.lr * once;
  sums.step_norm_sq *= row.lr * row.lr;
  sums.ema_norm_sq *= twice;
  sums.reach *= row.lr * twice;
  sums.change_sq *= row.lr * row.lr * twice;
  sums.largest *= once;
  return sums;
}

// Added to the seed: bits of their own for M, V, theta, and what is fed back into M.
GRU_FAST_HD uint64_t rounding_stream(int stream) {
  switch (stream) {
    case 0:
      return 0x243f6a8885a308d3ull;
    case 1:
      return 0x13198a2e03707344ull;
    case 2:
      return 0xa4093822299f31d0ull;
    default:
      return 0x082efa98ec4e6c89ull;
  }
}

// ---- one element ----------------------------------------------------------------------------------------------------
// F: a float or a vector of them. Math: its multiply_add(a, b, c), one rounding where the machine has that, and root.
// Nothing else may be contracted: files that use these are compiled without.

template <class Math, class F>
GRU_FAST_HD F first_moment(const AdamWFactors& c, F g, F m) {
  return Math::multiply_add(F{} + c.first, g - m, c.small_first ? m : g);
}

template <class Math, class F>
GRU_FAST_HD F second_moment(const AdamWFactors& c, F g, F v) {
  return Math::multiply_add(c.second * g, g, c.beta2 * v);
}

template <class Math, class F>
GRU_FAST_HD F denominator(const AdamWFactors& c, F v) {
  return Math::root(v) / c.bias2_root + c.eps;
}

// lr wd = 0 makes decay 1, so that theta comes through as it is.
template <class F>
GRU_FAST_HD F moved(const AdamWFactors& c, F theta, F m, F d) {
  return c.decay * theta + c.step_size * m / d;
}

template <class Math, class F>
GRU_FAST_HD F update_of(const AdamWFactors& c, F theta, F m, F d) {
  return Math::multiply_add(F{} + c.weight_decay, theta, c.unit * m / d);
}

// ---- backends -------------------------------------------------------------------------------------------------------
// What a backend offers beside pipeline.h's list (same signatures in namespaces cpu and cuda):
//
//   size_t scratch_bytes(const AdamWPlan&)
//   void adamw(const AdamWPlan&, AdamWPass, const AdamWArgs&, const AdamWContext&)
//
// and on CUDA, where the host does not look at the sums (on the CPU gru_fast/core/adamw_step.py decides):
//
//   void settle(const AdamWPlan&, double tau, bool rectifies, Stats*, const AdamWContext&)
//                        completes Stats as apply and finish would, measuring |g'| where it has cancelled in the sums;
//                        without `rectifies` g is clipped to tau alone
//
// A step is kStep; with its update rectified kMoments, kUpdate, or kSums, kStep. Sums of devices and processes are added up
// between the two.

}  // namespace gru_fast
