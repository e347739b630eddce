// Which vector level runs. The same kernel sources are compiled once per level, each in a namespace of its name.
#include <cstring>

#include "kernels.h"

#define GRU_FAST_DECLARE_LEVEL(name)                                                    \
  namespace gru_fast::cpu::name {                                                       \
  Sums reduce(Kind, const Span&, float, float);                                         \
  Sums wide_sums(Kind, const Span&);                                                    \
  bool any_nonfinite(Kind, const Span&);                                                \
  double apply(Kind, const Span&, double, double);                                      \
  double wide_apply(Kind, const Span&, double, double);                                 \
  void rescale(Kind, const Span&, double);                                              \
  GateSums gate(Kind, const Span&, const Gate&);                                        \
  void blend(Kind, const Span&, float, float);                                          \
  Sums vector_sums(VectorKind, const VectorSpan&);                                      \
  Sums wide_vector_sums(VectorKind, const VectorSpan&, double);                         \
  void vector_add(VectorKind, const VectorSpan&, double, double, bool);                 \
  void wide_vector_add(VectorKind, const VectorSpan&, double, double, bool);            \
  UpdateStats adamw(AdamWKind, AdamWPass, const AdamWSpan&, const AdamWFactors&, bool); \
  SetSums set_sums(const SetSpan&, int);                                                \
  double set_combine(const SetSpan&, double, const double*, int);                       \
  void probe_reduce(Kind, const Span&);                                                 \
  void probe_apply(Kind, const Span&);                                                  \
  const Kernels kTable = {                                                              \
      .reduce = reduce,                                                                 \
      .wide_sums = wide_sums,                                                           \
      .any_nonfinite = any_nonfinite,                                                   \
      .apply = apply,                                                                   \
      .wide_apply = wide_apply,                                                         \
      .rescale = rescale,                                                               \
      .gate = gate,                                                                     \
      .blend = blend,                                                                   \
      .vector_sums = vector_sums,                                                       \
      .wide_vector_sums = wide_vector_sums,                                             \
      .vector_add = vector_add,                                                         \
      .wide_vector_add = wide_vector_add,                                               \
      .adamw = adamw,                                                                   \
      .set_sums = set_sums,                                                             \
      .set_combine = set_combine,                                                       \
      .probe_reduce = probe_reduce,                                                     \
      .probe_apply = probe_apply,                                                       \
      .level = #name,                                                                   \
  };                                                                                    \
  }

#ifdef GRU_FAST_X86_LEVELS
GRU_FAST_DECLARE_LEVEL(avx512)
GRU_FAST_DECLARE_LEVEL(avx2)
#endif
GRU_FAST_DECLARE_LEVEL(baseline)

namespace gru_fast::cpu {
namespace {

constexpr int kMaxLevels = 3;

struct Levels {
  const Kernels* tables[kMaxLevels] = {};
  const char* names[kMaxLevels + 1] = {};  // null-terminated
  int count = 0;

  void add(const Kernels& table) {
    names[count] = table.level;
    tables[count++] = &table;
  }

  Levels() {
#ifdef GRU_FAST_X86_LEVELS
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
      add(avx512::kTable);
    }
    if (has_avx2) add(avx2::kTable);  // every processor with AVX2 and FMA has F16C
#endif
    add(baseline::kTable);
  }
};

const Levels& levels() {
  static const Levels found;
  return found;
}

const Kernels*& current() {
  static const Kernels* table = levels().tables[0];
  return table;
}

}  // namespace

const Kernels& kernels() { return *current(); }

const char* const* available_levels() { return levels().names; }

bool use_level(const char* name) {
  for (int i = 0; i < levels().count; ++i) {
    if (std::strcmp(levels().names[i], name) == 0) {
      current() = levels().tables[i];
      return true;
    }
  }
  return false;
}

}  // namespace gru_fast::cpu
