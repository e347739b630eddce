// The chunks of a step's plan as spans of its rows.
#pragma once

#include "../pipeline.h"
#include "chunks.h"
#include "kernels.h"

namespace gru_fast::cpu {

// Element `begin` of a tensor; null stays null.
template <class Pointer>
Pointer at(Pointer base, DType dtype, int64_t begin) {
  return static_cast<Pointer>(element(base, begin * size_of(dtype)));
}

// Calls visit(kind, row, span, slot) for every chunk of the plan.
template <class Visit>
void for_each_chunk(const Plan& plan, int num_threads, Direction direction, Visit&& visit) {
  for_each_place(plan, num_threads, direction, [&](Kind kind, const Row& row, const ChunkSpan& where, int64_t slot) {
    const Span span{at(row.grad, kind.grad, where.begin),
                    at(row.retain, kind.grad, where.begin),
                    at(row.ema, kind.ema, where.begin),
                    where.end - where.begin,
                    row.ema_is_current != 0,
                    0,
                    where.begin};
    visit(kind, row, span, slot);
  });
}

// The rare extra scaling of g that `settle` has asked for.
inline void rescale(const Plan& plan, const Context& context) {
  const double factor = context.stats->rescale;
  if (factor == 1.0) return;
  for_each_chunk(plan, context.num_threads, Direction::kForward, [&](Kind kind, const Row&, const Span& span, int64_t) {
    if (span.grad != nullptr) kernels().rescale(kind, span, factor);
  });
}

}  // namespace gru_fast::cpu
