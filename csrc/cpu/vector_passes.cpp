// The stages of task_vector.h on the CPU, over chunks and threads.
#include <cstring>

#include "backend.h"
#include "chunks.h"
#include "kernels.h"

namespace gru_fast::cpu {
namespace {

template <class Visit>
void for_each_chunk(const VectorPlan& plan, int num_threads, Direction direction, Visit&& visit) {
  for_each_place(plan, num_threads, direction,
                 [&](const VectorKind& kind, const VectorRow& row, const ChunkSpan& where, int64_t slot) {
                   const VectorSpan span{element(row.learned, where.begin * size_of(kind.param)),
                                         element(row.origin, where.begin * size_of(kind.param)),
                                         element(row.total, where.begin * size_of(kind.total)),
                                         element(row.own, where.begin * size_of(kind.own)),
                                         row.mean + where.begin,
                                         where.end - where.begin};
                   visit(kind, span, slot);
                 });
}

Sums sum_chunks(const VectorPlan& plan, const Context& context, double r_weight, bool wide) {
  auto* slots = static_cast<Sums*>(context.scratch);
  for_each_chunk(plan, context.num_threads, Direction::kForward,
                 [&](const VectorKind& kind, const VectorSpan& span, int64_t slot) {
                   slots[slot] =
                       wide ? kernels().wide_vector_sums(kind, span, r_weight) : kernels().vector_sums(kind, span);
                 });
  return fold(slots, plan.num_chunks);
}

}  // namespace

size_t scratch_bytes(const VectorPlan& plan) { return static_cast<size_t>(plan.num_chunks) * sizeof(Sums); }

void reduce(const VectorPlan& plan, const VectorArgs&, const Context& context) {
  Sums sums = sum_chunks(plan, context, 0.0, false);
  const bool wide = plan.numel > 0 && needs_wide_vector_sums(sums, plan.numel, has_rest(plan));
  if (wide) sums = sum_chunks(plan, context, 0.0, true);
  *context.stats = Stats{};
  context.stats->wide_sums = wide;
  context.stats->dot = sums.dot;
  context.stats->ema_norm_sq = sums.ema_norm_sq;
  context.stats->grad_norm_sq = sums.grad_norm_sq;
}

void measure(const VectorPlan& plan, const VectorArgs& args, const Context& context) {
  const VectorDecision decision = decide_vector(*context.stats, args);
  if (!decision.measure) return;
  context.stats->written_norm_sq = sum_chunks(plan, context, decision.r_weight, true).grad_norm_sq;
}

void add(const VectorPlan& plan, const VectorArgs& args, const Context& context) {
  const VectorDecision decision = decide_vector(*context.stats, args);
  const auto kernel = needs_wide_add(decision) ? kernels().wide_vector_add : kernels().vector_add;
  for_each_chunk(plan, context.num_threads, Direction::kBackward,
                 [&](const VectorKind& kind, const VectorSpan& span, int64_t) {
                   if (decision.adds()) {
                     kernel(kind, span, decision.scale, decision.shift, args.restore);
                   } else if (args.restore) {
                     std::memcpy(span.learned, span.origin, static_cast<size_t>(span.numel * size_of(kind.param)));
                   }
                 });
  *context.stats = settle_vector(*context.stats, args);
}

}  // namespace gru_fast::cpu
