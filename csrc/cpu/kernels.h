// The per-chunk kernels of the CPU backend. reduce.cpp, apply.cpp, blend.cpp, vector_unit.cpp, adamw.cpp and
// set_unit.cpp are compiled once per vector level; the best table this machine can run is chosen at run time.
#pragma once

#include <cstdint>

#include "../arithmetic.h"
#include "../gate.h"
#include "../optim.h"
#include "../pipeline.h"
#include "../sets.h"
#include "../task_vector.h"

namespace gru_fast::cpu {

// What one call sees of a row: elements [0, numel), never crossing a rounding tile when e is 16-bit.
struct Span {
  void* grad;          // may be null
  const void* retain;  // may be null
  void* ema;           // may be null
  int64_t numel;
  bool ema_is_current;
  uint64_t rounding_key;  // tile_key of the tile that element 0 lies in
  int64_t tile_offset;    // position of element 0 in that tile; a multiple of 4
};

// The same of a row of task_vector.h.
struct VectorSpan {
  void* learned;
  const void* origin;
  const void* total;  // may be null
  const void* own;    // may be null
  float* mean;
  int64_t numel;
};

// The same of a row of optim.h, within one rounding tile where any of its tensors has 16 bits.
struct AdamWSpan {
  void* param;
  void* grad;  // may be null
  void* exp_avg;
  void* exp_avg_sq;
  const void* ema;  // may be null
  int64_t numel;
  uint64_t rounding_keys[4];  // of M, V, theta, and of what is fed back into M
  int64_t tile_offset;        // a multiple of 4
};

// The same of a row of sets.h.
struct SetSpan {
  void* grad;  // may be null
  const void* vectors[kMaxVectors];
  int64_t numel;
  DType grad_dtype;
  DType dtypes[kMaxVectors];
};

struct Kernels {
  Sums (*reduce)(Kind, const Span&, float keep, float gain);           // writes e; sums with the stored e
  Sums (*wide_sums)(Kind, const Span&);                                // the same sums, float64 throughout
  bool (*any_nonfinite)(Kind, const Span&);                            // in g or r
  double (*apply)(Kind, const Span&, double alpha, double beta);       // writes g; returns |g|^2 as written
  double (*wide_apply)(Kind, const Span&, double alpha, double beta);  // the same, float64 throughout
  void (*rescale)(Kind, const Span&, double factor);                   // g <- factor * g, 16-bit towards zero
  GateSums (*gate)(Kind, const Span&, const Gate&);                    // writes g by signs; sums before and after
  void (*blend)(Kind, const Span&, float x_weight, float y_weight);    // grad <- x_weight * retain + y_weight * ema
  Sums (*vector_sums)(VectorKind, const VectorSpan&);                  // <T, r>, |r|^2, |T|^2
  Sums (*wide_vector_sums)(VectorKind, const VectorSpan&, double r_weight);  // of T + r_weight * r; float64 throughout
  // mean += scale * T + shift * r, and then learned <- origin if `restore`
  void (*vector_add)(VectorKind, const VectorSpan&, double scale, double shift, bool restore);
  void (*wide_vector_add)(VectorKind, const VectorSpan&, double scale, double shift, bool restore);  // in float64
  // One pass; the sums are of U and factors.scale * e, without learning rates (in_units) and without numel.
  UpdateStats (*adamw)(AdamWKind, AdamWPass, const AdamWSpan&, const AdamWFactors&, bool write_grad);
  SetSums (*set_sums)(const SetSpan&, int count);  // of `count` vectors, in float64
  // g <- alpha * g + sum betas[j] * x_j; returns |g|^2 as written
  double (*set_combine)(const SetSpan&, double alpha, const double* betas, int count);
  void (*probe_reduce)(Kind, const Span&);  // bench: reads g, r, e and writes e back, values unchanged
  void (*probe_apply)(Kind, const Span&);   // bench: reads g, e and writes g back, values unchanged
  const char* level;
};

const Kernels& kernels();

// Levels this machine can run, best first; `use_level` picks one by name (tests and benchmarks). Returns false if the
// name is not among them.
const char* const* available_levels();
bool use_level(const char* name);

}  // namespace gru_fast::cpu
