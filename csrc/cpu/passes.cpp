// The three stages of a step on the CPU: chunks over threads, one slot of sums per chunk, slots folded in index order.
// A slot's value depends on its chunk alone, so the result does not depend on the number of threads.
#include <algorithm>
#include <atomic>

#include "../rules.h"
#include "backend.h"
#include "spans.h"

namespace gru_fast::cpu {
namespace {

// Splits a span where a 16-bit e changes its rounding tile, and keys each part.
template <class Visit>
void for_each_tile(Kind kind, const Row& row, Span span, uint64_t of_step, Visit&& visit) {
  if (kind.ema == DType::kFloat32) return visit(span);
  for (int64_t rest = span.numel, begin = span.tile_offset; rest > 0;) {
    Span part = span;
    part.numel = std::min(rest, kRoundingTile - begin % kRoundingTile);
    part.tile_offset = begin % kRoundingTile;
    part.rounding_key = tile_key(of_step, row.rounding_key, static_cast<uint64_t>(begin / kRoundingTile));
    visit(part);
    const auto advance = [&](auto*& base, int64_t bytes) {
      if (base != nullptr) base = const_cast<char*>(static_cast<const char*>(base)) + bytes;
    };
    advance(span.grad, part.numel * size_of(kind.grad));
    advance(span.retain, part.numel * size_of(kind.grad));
    advance(span.ema, part.numel * size_of(kind.ema));
    begin += part.numel;
    rest -= part.numel;
  }
}

bool any_nonfinite(const Plan& plan, int num_threads) {
  std::atomic<bool> found{false};
  for_each_chunk(plan, num_threads, Direction::kForward, [&](Kind kind, const Row&, const Span& span, int64_t) {
    if (!found.load(std::memory_order_relaxed) && kernels().any_nonfinite(kind, span)) found = true;
  });
  return found;
}

}  // namespace

size_t scratch_bytes(const Plan& plan) { return static_cast<size_t>(plan.num_chunks) * sizeof(GateSums); }

void reduce(const Plan& plan, const StepArgs& args, const Context& context) {
  Stats& stats = *context.stats;
  stats = Stats{};
  if (args.all_or_nothing && any_nonfinite(plan, context.num_threads)) {
    stats.vetoed = 1.0;
    return;
  }
  auto* slots = static_cast<Sums*>(context.scratch);
  const uint64_t of_step =
      step_key(args.seed, context.rounding_step != nullptr ? static_cast<uint64_t>(*context.rounding_step) : 0);
  for_each_chunk(
      plan, context.num_threads, Direction::kForward, [&](Kind kind, const Row& row, const Span& span, int64_t slot) {
        Sums sums;
        for_each_tile(kind, row, span, of_step,
                      [&](const Span& part) { sums.add(kernels().reduce(kind, part, args.keep, args.gain)); });
        slots[slot] = sums;
      });
  Sums sums = fold(slots, plan.num_chunks);
  if (args.sums_wanted && plan.numel > 0 && needs_wide_sums(sums, plan.numel)) {
    stats.wide_sums = 1.0;
    const double retain_nonfinite = sums.retain_nonfinite;
    for_each_chunk(
        plan, context.num_threads, Direction::kForward,
        [&](Kind kind, const Row&, const Span& span, int64_t slot) { slots[slot] = kernels().wide_sums(kind, span); });
    sums = fold(slots, plan.num_chunks);
    sums.retain_nonfinite = retain_nonfinite;
  }
  stats.dot = sums.dot;
  stats.ema_norm_sq = sums.ema_norm_sq;
  stats.grad_norm_sq = sums.grad_norm_sq;
  stats.retain_nonfinite = sums.retain_nonfinite;
  if (context.rounding_step != nullptr) ++*context.rounding_step;
}

void apply(const Plan& plan, const StepArgs& args, const Context& context) {
  const Decision decision = decide(args.rule, *context.stats, args.tau);
  if (!decision.writes()) return;
  const auto kernel =
      needs_wide_apply(decision, context.stats->grad_norm_sq, plan.numel) ? kernels().wide_apply : kernels().apply;
  auto* slots = static_cast<double*>(context.scratch);
  for_each_chunk(plan, context.num_threads, Direction::kBackward,
                 [&](Kind kind, const Row&, const Span& span, int64_t slot) {
                   slots[slot] = span.grad != nullptr ? kernel(kind, span, decision.alpha, decision.beta) : 0.0;
                 });
  double written = 0.0;
  for (int64_t i = 0; i < plan.num_chunks; ++i) written += slots[i];
  context.stats->written_norm_sq = written;
}

void gate(const Plan& plan, const StepArgs& args, bool is_first, const Context& context) {
  if (!is_first && is_shut(args.rule, *context.stats)) return;
  const Gate gate = gate_of(args.rule);
  auto* slots = static_cast<GateSums*>(context.scratch);
  for_each_chunk(plan, context.num_threads, Direction::kBackward,
                 [&](Kind kind, const Row&, const Span& span, int64_t slot) {
                   slots[slot] = span.ema != nullptr ? kernels().gate(kind, span, gate) : GateSums{};
                 });
  GateSums total;
  for (int64_t i = 0; i < plan.num_chunks; ++i) total.add(slots[i]);
  tell(total, is_first, *context.stats);
}

void finish(const Plan& plan, const StepArgs& args, const Context& context) {
  *context.stats = settle(args.rule, *context.stats, args.tau);
  rescale(plan, context);
}

void step(const Plan& plan, const StepArgs& args, const Context& context) {
  reduce(plan, args, context);
  apply(plan, args, context);
  finish(plan, args, context);
}

void blend(const Plan& plan, const BlendArgs& args, const Context& context) {
  for_each_chunk(plan, context.num_threads, Direction::kForward, [&](Kind kind, const Row&, const Span& span, int64_t) {
    kernels().blend(kind, span, args.x_weight, args.y_weight);
  });
}

void probe(const Plan& plan, bool full, const Context& context) {
  for_each_chunk(plan, context.num_threads, Direction::kForward,
                 [](Kind kind, const Row&, const Span& span, int64_t) { kernels().probe_reduce(kind, span); });
  if (!full) return;
  for_each_chunk(plan, context.num_threads, Direction::kBackward,
                 [](Kind kind, const Row&, const Span& span, int64_t) { kernels().probe_apply(kind, span); });
}

}  // namespace gru_fast::cpu
