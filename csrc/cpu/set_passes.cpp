// The stages of sets.h on the CPU, over chunks and threads.
#include <algorithm>
#include <iterator>

#include "backend.h"
#include "chunks.h"
#include "kernels.h"

namespace gru_fast::cpu {
namespace {

template <class Visit>
void for_each_chunk(const SetPlan& plan, int count, int num_threads, Direction direction, Visit&& visit) {
  for_each_place(plan, num_threads, direction,
                 [&](const SetKind&, const SetRow& row, const ChunkSpan& where, int64_t slot) {
                   SetSpan span{};
                   span.grad = element(row.grad, where.begin * size_of(row.grad_dtype));
                   span.grad_dtype = row.grad_dtype;
                   for (int j = 0; j < count; ++j) {
                     span.dtypes[j] = row.dtype(j);
                     span.vectors[j] = element(row.vectors[j], where.begin * size_of(span.dtypes[j]));
                   }
                   span.numel = where.end - where.begin;
                   visit(span, slot);
                 });
}

}  // namespace

size_t scratch_bytes(const SetPlan& plan) { return static_cast<size_t>(plan.num_chunks) * sizeof(SetSums); }

void reduce(const SetPlan& plan, const SetArgs& args, SetStats& stats, const Context& context) {
  auto* slots = static_cast<SetSums*>(context.scratch);
  for_each_chunk(plan, args.count, context.num_threads, Direction::kForward,
                 [&](const SetSpan& span, int64_t slot) { slots[slot] = kernels().set_sums(span, args.count); });
  SetSums total;
  for (int64_t i = 0; i < plan.num_chunks; ++i) total.add(slots[i]);
  stats = SetStats{};
  stats.step.grad_norm_sq = total.grad_norm_sq;
  std::copy(std::begin(total.dots), std::end(total.dots), stats.dots);
  std::copy(std::begin(total.gram), std::end(total.gram), stats.gram);
}

void decide(const SetPlan&, const SetArgs& args, SetStats& stats, const Context&) { decide_sets(args, stats); }

void apply(const SetPlan& plan, const SetArgs& args, SetStats& stats, const Context& context) {
  if (!decided(stats).writes()) return;
  auto* slots = static_cast<double*>(context.scratch);
  for_each_chunk(plan, args.count, context.num_threads, Direction::kBackward, [&](const SetSpan& span, int64_t slot) {
    slots[slot] = span.grad != nullptr ? kernels().set_combine(span, stats.step.alpha, stats.betas, args.count) : 0.0;
  });
  double written = 0.0;
  for (int64_t i = 0; i < plan.num_chunks; ++i) written += slots[i];
  stats.step.written_norm_sq = written;
}

void finish(const SetPlan& plan, const SetArgs& args, SetStats& stats, const Context& context) {
  stats.step = settle(decided(stats), stats.step, args.tau);
  const double factor = stats.step.rescale;
  if (factor == 1.0) return;
  for_each_chunk(plan, 0, context.num_threads, Direction::kForward, [&](const SetSpan& span, int64_t) {
    if (span.grad == nullptr) return;
    const Span grad{span.grad, nullptr, nullptr, span.numel, true, 0, 0};
    kernels().rescale({span.grad_dtype, DType::kFloat32}, grad, factor);
  });
}

}  // namespace gru_fast::cpu
