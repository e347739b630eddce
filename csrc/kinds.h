// From dtypes known at run time to the templates of a kernel: the list of all kinds there are. Host code; inlined
// everywhere, so that no copy is shared between the vector levels of the CPU.
#pragma once

#include "optim.h"
#include "pipeline.h"
#include "task_vector.h"

namespace gru_fast {

// Returns f.template operator()<G, E>() for the dtypes of `kind`.
template <class F>
inline __attribute__((always_inline)) auto with_kind(Kind kind, F&& f) {
  using enum DType;
  const bool wide_ema = kind.ema == kFloat32;
  if (kind.grad == kFloat32) return f.template operator()<kFloat32, kFloat32>();
  if (kind.grad == kBFloat16) {
    return wide_ema ? f.template operator()<kBFloat16, kFloat32>() : f.template operator()<kBFloat16, kBFloat16>();
  }
  return wide_ema ? f.template operator()<kFloat16, kFloat32>() : f.template operator()<kFloat16, kFloat16>();
}

// Returns f.template operator()<P, A, B>() for the dtypes of `kind`: parameters, total, own.
template <class F>
inline __attribute__((always_inline)) auto with_kind(VectorKind kind, F&& f) {
  using enum DType;
  const auto of_param = [&]<DType P>() __attribute__((always_inline)) {
    if (kind.total == kFloat32) {
      return kind.own == kFloat32 ? f.template operator()<P, kFloat32, kFloat32>()
                                  : f.template operator()<P, kFloat32, P>();
    }
    return kind.own == kFloat32 ? f.template operator()<P, P, kFloat32>() : f.template operator()<P, P, P>();
  };
  if (kind.param == kFloat32) return f.template operator()<kFloat32, kFloat32, kFloat32>();
  return kind.param == kBFloat16 ? of_param.template operator()<kBFloat16>() : of_param.template operator()<kFloat16>();
}

// Returns f.template operator()<P, T, E>() for the dtypes of `kind`: parameters, moments, e.
template <class F>
inline __attribute__((always_inline)) auto with_adamw_kind(AdamWKind kind, F&& f) {
  using enum DType;
  const bool wide_ema = kind.ema == kFloat32;
  if (kind.param == kFloat32) return f.template operator()<kFloat32, kFloat32, kFloat32>();
  if (kind.param == kFloat16) {
    return wide_ema ? f.template operator()<kFloat16, kFloat32, kFloat32>()
                    : f.template operator()<kFloat16, kFloat32, kFloat16>();
  }
  if (kind.moment == kFloat32) {
    return wide_ema ? f.template operator()<kBFloat16, kFloat32, kFloat32>()
                    : f.template operator()<kBFloat16, kFloat32, kBFloat16>();
  }
  return wide_ema ? f.template operator()<kBFloat16, kBFloat16, kFloat32>()
                  : f.template operator()<kBFloat16, kBFloat16, kBFloat16>();
}

}  // namespace gru_fast
