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

// The slots' sums, in index order: the same bits whatever the threads did.
void add_up(const Sums* slots, const std::vector<uint32_t>& group_of, const Groups& groups) {
  for (size_t i = 0; i < groups.count; ++i) {
    GroupStats& group = groups.stats[i];
    group.dot = group.ema_norm_sq = group.grad_norm_sq = 0.0;
  }
  for (const uint32_t id : group_of) {
    GroupStats& group = groups.stats[id];
    group.dot += slots->dot;
    group.ema_norm_sq += slots->ema_norm_sq;
    group.grad_norm_sq += slots->grad_norm_sq;
    ++slots;
  }
}

// Takes the sums of groups that float32 cannot hold once more, in float64.
bool widen(const Plan& plan, const Groups& groups, const std::vector<uint32_t>& group_of, const Context& context) {
  bool any = false;
  for (size_t i = 0; i < groups.count; ++i) {
    groups.stats[i].wide = needs_wide_sums(groups.stats[i]);
    any = any || groups.stats[i].wide > 0.0;
  }
  if (!any) return false;
  auto* slots = static_cast<Sums*>(context.scratch);
  for_each_chunk(plan, context.num_threads, Direction::kForward,
                 [&](Kind kind, const Row&, const Span& span, int64_t slot) {
                   const GroupStats& group = groups.stats[group_of[static_cast<size_t>(slot)]];
                   if (group.wide > 0.0) slots[slot] = kernels().wide_sums(kind, span);
                 });
  return true;
}

struct Decided {
  Decision decision;
  double left_sq;  // |g|^2 of groups that are left as they are
};

Decided decide_groups(const StepArgs& args, const Groups& groups, const Stats& stats) {
  Proposals proposals;
  for (size_t i = 0; i < groups.count; ++i) proposals.add(propose(args.rule, stats, groups.stats[i]));
  const Decision all = decide_all(args.rule, stats, args.tau, proposals);
  Conclusions conclusions;
  for (size_t i = 0; i < groups.count; ++i) conclusions.add(conclude(all, args.tau, groups.stats[i]));
  return {decided(all, args.tau, conclusions), conclusions.left_sq};
}

}  // namespace

void reduce_groups(const Plan& plan, const Groups& groups, const Context& context) {
  for (size_t i = 0; i < groups.count; ++i) groups.stats[i] = {};
  if (context.stats->vetoed > 0.0) return;
  for (const Launch& launch : plan.launches) {
    for (size_t row = 0; row < launch.rows.size(); ++row) {
      groups.stats[groups.of_row[launch.sources[row]]].numel += static_cast<double>(launch.rows[row].numel);
    }
  }
  const auto* slots = static_cast<const Sums*>(context.scratch);
  const std::vector<uint32_t> group_of = group_of_slots(plan, groups);
  add_up(slots, group_of, groups);
  if (!(context.stats->wide_sums > 0.0) && widen(plan, groups, group_of, context)) add_up(slots, group_of, groups);
  for (size_t i = 0; i < groups.count; ++i) groups.stats[i].own_norm_sq = groups.stats[i].grad_norm_sq;
}

void apply_groups(const Plan& plan, const StepArgs& args, const Groups& groups, const Context& context) {
  const Decided decided = decide_groups(args, groups, *context.stats);
  if (!decided.decision.writes()) return;
  const auto slots = static_cast<double*>(context.scratch);
  const std::vector<uint32_t> group_of = group_of_slots(plan, groups);
  for_each_chunk(plan, context.num_threads, Direction::kBackward,
                 [&](Kind kind, const Row&, const Span& span, int64_t slot) {
                   const GroupStats& group = groups.stats[group_of[static_cast<size_t>(slot)]];
                   slots[slot] = 0.0;
                   if (span.grad == nullptr || group.is_left()) return;
                   const auto kernel = group.wide > 0.0 ? kernels().wide_apply : kernels().apply;
                   slots[slot] = kernel(kind, span, group.alpha, group.beta);
                 });
  double written = decided.left_sq;
  for (int64_t i = 0; i < plan.num_chunks; ++i) written += slots[i];
  context.stats->written_norm_sq = written;
}

void finish_groups(const Plan& plan, const StepArgs& args, const Groups& groups, const Context& context) {
  const Decided decided = decide_groups(args, groups, *context.stats);
  *context.stats = settle(decided.decision, *context.stats, args.tau);
  rescale(plan, context);
}

}  // namespace gru_fast::cpu
