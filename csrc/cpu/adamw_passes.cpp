// The passes of optim.h on the CPU, over chunks and threads; slots of sums folded in index order, as in passes.cpp.
#include <algorithm>

#include "../optim.h"
#include "backend.h"
#include "chunks.h"
#include "kernels.h"

namespace gru_fast::cpu {
namespace {

AdamWSpan span_at(AdamWKind kind, const AdamWRow& row, int64_t begin, int64_t end) {
  return {element(row.param, begin * size_of(kind.param)),
          element(row.grad, begin * size_of(kind.param)),
          element(row.exp_avg, begin * size_of(kind.moment)),
          element(row.exp_avg_sq, begin * size_of(kind.moment)),
          element(row.ema, begin * size_of(kind.ema)),
          end - begin,
          {},
          begin % kRoundingTile};
}

// Splits a chunk where its rounding tile changes, and keys each part.
template <class Visit>
void for_each_tile(AdamWKind kind, const AdamWRow& row, const ChunkSpan& where, uint64_t seed, uint64_t step,
                   Visit&& visit) {
  if (kind.param == DType::kFloat32) return visit(span_at(kind, row, where.begin, where.end));
  for (int64_t begin = where.begin; begin < where.end;) {
    const int64_t tile = begin / kRoundingTile, end = std::min(where.end, (tile + 1) * kRoundingTile);
    AdamWSpan part = span_at(kind, row, begin, end);
    for (int stream = 0; stream < 4; ++stream) {
      part.rounding_keys[stream] =
          tile_key(step_key(seed + rounding_stream(stream), step), row.rounding_key, static_cast<uint64_t>(tile));
    }
    visit(part);
    begin = end;
  }
}

}  // namespace

size_t scratch_bytes(const AdamWPlan& plan) { return static_cast<size_t>(plan.num_chunks) * sizeof(UpdateStats); }

void adamw(const AdamWPlan& plan, AdamWPass pass, const AdamWArgs& args, const AdamWContext& context) {
  const GradientFactors gradient = gradient_factors(context.stats);
  const bool sums_wanted = pass == AdamWPass::kMoments || pass == AdamWPass::kSums;
  const bool by_sums = !sums_wanted && context.update != nullptr;
  if (gradient.skips) {
    if (sums_wanted) *context.update = UpdateStats{};
    return;
  }
  if (by_sums && !is_finite_update(*context.update)) return;
  const double lambda = by_sums ? update_factor(*context.update) : 0.0;
  auto* slots = static_cast<UpdateStats*>(context.scratch);
  for_each_place(plan, context.num_threads, by_sums ? Direction::kBackward : Direction::kForward,
                 [&](AdamWKind kind, const AdamWRow& row, const ChunkSpan& where, int64_t slot) {
                   const AdamWScalars& scalars = context.scalars[row.index];
                   const AdamWFactors factors = factors_of(scalars, args, context, gradient, lambda);
                   UpdateStats sums;
                   for_each_tile(kind, row, where, args.seed, static_cast<uint64_t>(scalars.step), [&](AdamWSpan span) {
                     if (!reads_ema(pass, factors)) span.ema = nullptr;
                     sums.add(kernels().adamw(kind, pass, span, factors, args.write_grad));
                   });
                   slots[slot] = in_units(sums, scalars, factors.scale);
                   slots[slot].numel = static_cast<double>(where.end - where.begin);
                 });
  if (!sums_wanted) return;
  *context.update = UpdateStats{};
  for (int64_t i = 0; i < plan.num_chunks; ++i) context.update->add(slots[i]);
}

}  // namespace gru_fast::cpu
