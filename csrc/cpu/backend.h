// The CPU backend: the functions pipeline.h asks for, and the bench's probe.
#pragma once

#include "../chunk_plan.h"
#include "../groups.h"
#include "../optim.h"
#include "../pipeline.h"
#include "../sets.h"
#include "../task_vector.h"

namespace gru_fast::cpu {

size_t scratch_bytes(const Plan& plan);
void reduce(const Plan& plan, const StepArgs& args, const Context& context);
void apply(const Plan& plan, const StepArgs& args, const Context& context);
void finish(const Plan& plan, const StepArgs& args, const Context& context);
void step(const Plan& plan, const StepArgs& args, const Context& context);
void blend(const Plan& plan, const BlendArgs& args, const Context& context);

// An element-wise rule in place of apply, after reduce or, where e is current, in place of both.
void gate(const Plan& plan, const StepArgs& args, bool is_first, const Context& context);

void reduce_groups(const Plan& plan, const Groups& groups, const Context& context);
void apply_groups(const Plan& plan, const StepArgs& args, const Groups& groups, const Context& context);
void finish_groups(const Plan& plan, const StepArgs& args, const Groups& groups, const Context& context);

size_t scratch_bytes(const VectorPlan& plan);
void reduce(const VectorPlan& plan, const VectorArgs& args, const Context& context);
void measure(const VectorPlan& plan, const VectorArgs& args, const Context& context);
void add(const VectorPlan& plan, const VectorArgs& args, const Context& context);

// Of sets.h: the sums, what they say, the write, the rare extra scaling. `stats` lies where the rows do.
size_t scratch_bytes(const SetPlan& plan);
void reduce(const SetPlan& plan, const SetArgs& args, SetStats& stats, const Context& context);
void decide(const SetPlan& plan, const SetArgs& args, SetStats& stats, const Context& context);
void apply(const SetPlan& plan, const SetArgs& args, SetStats& stats, const Context& context);
void finish(const SetPlan& plan, const SetArgs& args, SetStats& stats, const Context& context);

size_t scratch_bytes(const AdamWPlan& plan);
void adamw(const AdamWPlan& plan, AdamWPass pass, const AdamWArgs& args, const AdamWContext& context);

// Bench only: the memory traffic of reduce (and, if `full`, of apply) over the same chunks, values unchanged.
void probe(const Plan& plan, bool full, const Context& context);

}  // namespace gru_fast::cpu
