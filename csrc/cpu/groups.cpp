// A rule for each group of rows, on the CPU: the last stage of reduce by groups, and apply and finish by their table. The
// walk over memory is that of a step over all rows.
#include "../groups.h"

#include <vector>

#include "backend.h"
#include "spans.h"

namespace gru_fast::cpu {
namespace {

// The group of every chunk; chunks are numbered over all launches, as the slots of sums are.
std::vector<uint32_t> group_of_slots(const Plan& plan, const Groups& groups) {
  std::vector<uint32_t> out;
  out.reserve(static_cast<size_t>(plan.num_chunks));
  for (const Launch& launch : plan.launches) {
    for (size_t row = 0; row < launch.rows.size(); ++row) {
      const uint32_t end = row + 1 < launch.rows.size() ? launch.rows[row + 1].first_chunk : launch.num_chunks;
      out.insert(out.end(), end - launch.rows[row].first_chunk, groups.of_row[launch.sources[row]]);
    }
  }
  return out;
}

bool is_left(const GroupStats& group) { return group.alpha == 1.0 && group.beta == 0.0; }

// By group, since where the coefficients of one are ordinary those of another may be out of float32's range.
std::vector<bool> wide_groups(const Plan& plan, const Groups& groups) {
  std::vector<int64_t> numel(groups.count);
  for (const Launch& launch : plan.launches) {
    for (size_t row = 0; row < launch.rows.size(); ++row) {
      numel[groups.of_row[launch.sources[row]]] += launch.rows[row].numel;
    }
  }
  std::vector<bool> wide(groups.count);
  for (size_t i = 0; i < groups.count; ++i) {
    const GroupStats& group = groups.stats[i];
    const Dots dots{group.dot, group.ema_norm_sq, group.grad_norm_sq, group.conflict > 0.0};
    const Combination made = weighted(group.alpha, group.beta, dots);
    wide[i] = needs_wide_apply({.alpha = made.alpha, .beta = made.beta, .norm_sq = made.norm_sq}, group.grad_norm_sq,
                               numel[i]);
  }
  return wide;
}

}  // namespace

void reduce_groups(const Plan& plan, const Groups& groups, const Context& context) {
  for (size_t i = 0; i < groups.count; ++i) groups.stats[i] = {};
  if (context.stats->vetoed > 0.0) return;
  const Sums* slots = static_cast<const Sums*>(context.scratch);
  for (const uint32_t id : group_of_slots(plan, groups)) {  // in index order: the same bits whatever the threads did
    GroupStats& group = groups.stats[id];
    group.dot += slots->dot;
    group.ema_norm_sq += slots->ema_norm_sq;
    group.grad_norm_sq += slots->grad_norm_sq;
    ++slots;
  }
  for (size_t i = 0; i < groups.count; ++i) groups.stats[i].own_norm_sq = groups.stats[i].grad_norm_sq;
}

void apply_groups(const Plan& plan, const StepArgs& args, const Groups& groups, const Context& context) {
  if (!decide_groups(args.rule, *context.stats, args.tau, groups.stats, groups.count).writes()) return;
  const std::vector<bool> wide = wide_groups(plan, groups);
  const auto slots = static_cast<double*>(context.scratch);
  const std::vector<uint32_t> group_of = group_of_slots(plan, groups);
  for_each_chunk(
      plan, context.num_threads, Direction::kBackward, [&](Kind kind, const Row&, const Span& span, int64_t slot) {
        const uint32_t id = group_of[static_cast<size_t>(slot)];
        const GroupStats& group = groups.stats[id];
        slots[slot] = 0.0;
        if (span.grad == nullptr || is_left(group)) return;
        slots[slot] = (wide[id] ? kernels().wide_apply : kernels().apply)(kind, span, group.alpha, group.beta);
      });
  double written = 0.0;
  for (int64_t i = 0; i < plan.num_chunks; ++i) written += slots[i];
  for (size_t i = 0; i < groups.count; ++i) {
    if (is_left(groups.stats[i])) written += groups.stats[i].own_norm_sq;
  }
  context.stats->written_norm_sq = written;
}

void finish_groups(const Plan& plan, const StepArgs& args, const Groups& groups, const Context& context) {
  const Decision decision = decide_groups(args.rule, *context.stats, args.tau, groups.stats, groups.count);
  *context.stats = settle(decision, *context.stats, args.tau);
  rescale(plan, context);
}

}  // namespace gru_fast::cpu
