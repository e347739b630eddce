// A rule for each group of rows, on the CPU: the last stage of reduce by groups, and apply and finish by their table. The
// walk over memory is that of a step over all rows.
#include "../groups.h"

#include <algorithm>
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

std::vector<int64_t> numel_of_groups(const Plan& plan, const Groups& groups) {
  std::vector<int64_t> numel(groups.count);
  for (const Launch& launch : plan.launches) {
    for (size_t row = 0; row < launch.rows.size(); ++row) {
      numel[groups.of_row[launch.sources[row]]] += launch.rows[row].numel;
    }
  }
  return numel;
}

// The slots' sums, in index order: the same bits whatever the threads did.
void add_up(const Sums* slots, const std::vector<uint32_t>& group_of, const Groups& groups) {
  for (size_t i = 0; i < groups.count; ++i) groups.stats[i] = {};
  for (const uint32_t id : group_of) {
    GroupStats& group = groups.stats[id];
    group.dot += slots->dot;
    group.ema_norm_sq += slots->ema_norm_sq;
    group.grad_norm_sq += slots->grad_norm_sq;
    ++slots;
  }
}

// Takes the sums of groups that float32 cannot hold once more, in float64: the total may be ordinary beside them.
bool widen(const Plan& plan, const Groups& groups, const std::vector<uint32_t>& group_of, const Context& context) {
  const std::vector<int64_t> numel = numel_of_groups(plan, groups);
  std::vector<char> wide(groups.count);
  for (size_t i = 0; i < groups.count; ++i) {
    const GroupStats& group = groups.stats[i];
    wide[i] = needs_wide_sums({group.dot, group.ema_norm_sq, group.grad_norm_sq}, numel[i]);
  }
  if (std::none_of(wide.begin(), wide.end(), [](char is_wide) { return is_wide != 0; })) return false;
  auto* slots = static_cast<Sums*>(context.scratch);
  for_each_chunk(plan, context.num_threads, Direction::kForward,
                 [&](Kind kind, const Row&, const Span& span, int64_t slot) {
                   if (wide[group_of[static_cast<size_t>(slot)]] != 0) slots[slot] = kernels().wide_sums(kind, span);
                 });
  return true;
}

// By group, since where the coefficients of one are ordinary those of another may be out of float32's range.
std::vector<bool> wide_groups(const Plan& plan, const Groups& groups) {
  const std::vector<int64_t> numel = numel_of_groups(plan, groups);
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
  if (context.stats->vetoed > 0.0) {
    for (size_t i = 0; i < groups.count; ++i) groups.stats[i] = {};
    return;
  }
  const auto* slots = static_cast<const Sums*>(context.scratch);
  const std::vector<uint32_t> group_of = group_of_slots(plan, groups);
  add_up(slots, group_of, groups);
  if (!(context.stats->wide_sums > 0.0) && widen(plan, groups, group_of, context)) add_up(slots, group_of, groups);
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
