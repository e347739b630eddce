#include "adamw_bindings.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <string_view>

#include "cpu/backend.h"
#include "optim.h"
#include "rule_of.h"
#include "rules.h"
#include "takes_cuda.h"
#include "tensor_view.h"
#include "vector_view.h"

#ifdef GRU_FAST_HAS_CUDA
#include "cuda/backend.h"
#endif

namespace gru_fast {
namespace {

PlanLimits limits_of(bool on_cuda, const std::vector<AdamWRow>& rows) {
#ifdef GRU_FAST_HAS_CUDA
  if (on_cuda) return cuda::adamw_limits();
#endif
  (void)on_cuda;
  return cpu_limits(total_numel(rows));
}

// The tensors of one step of AdamW. Holds raw pointers: the caller keeps the tensors alive and in place.
class AdamWTable {
 public:
  AdamWTable(py::sequence params, py::object grads, py::sequence exp_avg, py::sequence exp_avg_sq, py::object ema,
             py::object names, py::object rounding_keys) {
    auto captured = capture_adamw(params, grads, exp_avg, exp_avg_sq, ema, names, rounding_keys);
    device_ = captured.device;
    on_cuda_ = takes_cuda(device_);
    mismatched_layouts_ = std::move(captured.mismatched_layouts);
    num_rows_ = captured.rows.size();
    plan_ = plan_chunks(captured.rows, captured.kinds, limits_of(on_cuda_, captured.rows));
  }

  size_t scratch_bytes() const {
#ifdef GRU_FAST_HAS_CUDA
    if (on_cuda_) return cuda::scratch_bytes(plan_);
#endif
    return std::max<size_t>(cpu::scratch_bytes(plan_), 1);
  }
  const std::vector<size_t>& mismatched_layouts() const { return mismatched_layouts_; }

  void run(std::string_view pass, py::handle scalars, py::handle stats, py::handle update, py::handle floor,
           py::handle scratch, uint64_t seed, int64_t numel, bool feed_back, bool write_grad, bool maximize,
           int num_threads) const {
    const AdamWPass which = pass_of(pass);
    const AdamWArgs args{seed, numel, !floor.is_none(), feed_back, write_grad, maximize};
    const AdamWContext where = context(scalars, stats, update, floor, scratch, num_threads);
    if (where.update == nullptr && which != AdamWPass::kStep) {
      throw py::value_error("update: expected a tensor for its sums, got None");
    }
    const py::gil_scoped_release nogil;
#ifdef GRU_FAST_HAS_CUDA
    if (on_cuda_) return cuda::adamw(plan_, which, args, where);
#endif
    cpu::adamw(plan_, which, args, where);
  }

  // `rule`: None clips alone.
  void settle(py::handle stats, py::handle scratch, double tau, std::optional<std::string_view> rule,
              const RuleOptions& options) const {
    const AdamWContext where = context(py::none(), stats, py::none(), py::none(), scratch, 1);
    if (where.stats == nullptr) throw py::value_error("stats: expected a tensor, got None");
    const Rule chosen = rule ? rule_of(*rule, options) : Rule{};
#ifdef GRU_FAST_HAS_CUDA
    if (on_cuda_) {
      const py::gil_scoped_release nogil;
      return cuda::settle(plan_, tau, rule ? &chosen : nullptr, const_cast<Stats*>(where.stats), where);
    }
#endif
    (void)tau, (void)chosen;
    throw py::value_error("settle: expected tensors on a CUDA device; elsewhere the host decides");
  }

 private:
  static AdamWPass pass_of(std::string_view name) {
    if (name == "step") return AdamWPass::kStep;
    if (name == "moments") return AdamWPass::kMoments;
    if (name == "update") return AdamWPass::kUpdate;
    if (name == "sums") return AdamWPass::kSums;
    throw py::value_error("pass: expected one of step, moments, update, sums, got \"" + std::string(name) + "\"");
  }

  AdamWContext context(py::handle scalars, py::handle stats, py::handle update, py::handle floor, py::handle scratch,
                       int num_threads) const {
    if (!mismatched_layouts_.empty()) {
      throw py::value_error("params[" + std::to_string(mismatched_layouts_[0]) +
                            "]: its tensors are laid out differently in memory; pass contiguous copies");
    }
    const auto doubles = [&](py::handle tensor, const char* what, size_t count) {
      void* data = tensor.is_none()
                       ? nullptr
                       : helper_pointer(tensor, what, dlpack::kFloat, 64, static_cast<int64_t>(count), device_);
      return static_cast<double*>(data);
    };
    return {reinterpret_cast<const AdamWScalars*>(doubles(scalars, "scalars", num_rows_ * kNumAdamWScalars)),
            reinterpret_cast<const Stats*>(doubles(stats, "stats", kNumStats)),
            reinterpret_cast<UpdateStats*>(doubles(update, "update", kNumUpdateStats)),
            doubles(floor, "floor", 1),
            helper_pointer(scratch, "scratch", dlpack::kUInt, 8, static_cast<int64_t>(scratch_bytes()), device_),
            num_threads,
            device_.id,
            device_.type == dlpack::kCUDA ? current_stream(device_.id) : nullptr};
  }

  AdamWPlan plan_;
  dlpack::Device device_;
  bool on_cuda_;
  size_t num_rows_;
  std::vector<size_t> mismatched_layouts_;
};

}  // namespace

void bind_adamw(py::module_& m) {
  using py::arg;
  py::class_<AdamWTable>(m, "AdamWTable", "One step's tensors of AdamW on one device. Keep the lists alive.")
      .def(py::init<py::sequence, py::object, py::sequence, py::sequence, py::object, py::object, py::object>(),
           arg("params"), arg("grads"), arg("exp_avg"), arg("exp_avg_sq"), arg("ema"), arg("names") = py::none(),
           arg("rounding_keys") = py::none())
      .def_property_readonly("scratch_bytes", &AdamWTable::scratch_bytes)
      .def_property_readonly("mismatched_layouts", &AdamWTable::mismatched_layouts)
      .def("run", &AdamWTable::run,
           "One pass: moments (M, V and the sums of U), update (theta, by those), sums (alone), step (M, V, theta, by "
           "sums if there are any).",
           arg("which"), arg("scalars"), arg("stats"), arg("update"), arg("floor"), arg("scratch"), arg("seed"),
           arg("numel"), arg("feed_back"), arg("write_grad"), arg("maximize"), arg("num_threads"))
      .def("settle", &AdamWTable::settle, "CUDA: completes stats as if g had been written, which it is not.",
           arg("stats"), arg("scratch"), arg("tau"), arg("rule"), arg("options"));
  m.attr("NUM_ADAMW_SCALARS") = kNumAdamWScalars;
  m.attr("NUM_UPDATE_STATS") = kNumUpdateStats;
}

}  // namespace gru_fast
