// The CPU backend: the functions pipeline.h asks for, and the bench's probe.
#pragma once

#include "../chunk_plan.h"
#include "../pipeline.h"

namespace gru_fast::cpu {

size_t scratch_bytes(const Plan& plan);
void reduce(const Plan& plan, const StepArgs& args, const Context& context);
void apply(const Plan& plan, const StepArgs& args, const Context& context);
void finish(const Plan& plan, const StepArgs& args, const Context& context);

// Bench only: the memory traffic of reduce (and, if `full`, of apply) over the same chunks, values unchanged.
void probe(const Plan& plan, bool full, const Context& context);

}  // namespace gru_fast::cpu
