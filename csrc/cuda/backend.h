// The CUDA backend as the host sees it: no CUDA header is needed to include this. Linked in when nvcc was there at build.
#pragma once

#include <cstddef>
#include <string>

#include "../chunk_plan.h"
#include "../groups.h"
#include "../optim.h"
#include "../pipeline.h"
#include "../sets.h"
#include "../task_vector.h"

namespace gru_fast::cuda {

// As pipeline.h says. Every function launches on `context.stream` of `context.device`, restores the caller's current
// device, never synchronises and can be captured in a CUDA graph.
size_t scratch_bytes(const Plan& plan);
void reduce(const Plan& plan, const StepArgs& args, const Context& context);
void apply(const Plan& plan, const StepArgs& args, const Context& context);
void finish(const Plan& plan, const StepArgs& args, const Context& context);
void step(const Plan& plan, const StepArgs& args, const Context& context);
void blend(const Plan& plan, const BlendArgs& args, const Context& context);
void reduce_groups(const Plan& plan, const Groups& groups, const Context& context);
void apply_groups(const Plan& plan, const StepArgs& args, const Groups& groups, const Context& context);
void finish_groups(const Plan& plan, const StepArgs& args, const Groups& groups, const Context& context);
void gate(const Plan& plan, const StepArgs& args, bool is_first, const Context& context);

size_t scratch_bytes(const VectorPlan& plan);
void reduce(const VectorPlan& plan, const VectorArgs& args, const Context& context);
void measure(const VectorPlan& plan, const VectorArgs& args, const Context& context);
void add(const VectorPlan& plan, const VectorArgs& args, const Context& context);

size_t scratch_bytes(const AdamWPlan& plan);
void adamw(const AdamWPlan& plan, AdamWPass pass, const AdamWArgs& args, const AdamWContext& context);
// By `rule`; null: g is only clipped.
void settle(const AdamWPlan& plan, double tau, const Rule* rule, Stats* stats, const AdamWContext& context);

// Of sets.h, as on the CPU. `stats` lies on the device.
size_t scratch_bytes(const SetPlan& plan);
void reduce(const SetPlan& plan, const SetArgs& args, SetStats& stats, const Context& context);
void decide(const SetPlan& plan, const SetArgs& args, SetStats& stats, const Context& context);
void apply(const SetPlan& plan, const SetArgs& args, SetStats& stats, const Context& context);
void finish(const SetPlan& plan, const SetArgs& args, SetStats& stats, const Context& context);

// Bench only: the memory traffic of reduce (and, if `full`, of apply) over the same chunks, values unchanged.
void probe(const Plan& plan, bool full, const Context& context);

PlanLimits limits();
PlanLimits vector_limits();
PlanLimits adamw_limits();
PlanLimits set_limits();
int device_count();     // 0 without a driver or a device; never throws
std::string problem();  // why the CUDA that is linked in runs on no device; empty if it does

}  // namespace gru_fast::cuda
