#include "set_bindings.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "cpu/backend.h"
#include "rule_of.h"
#include "sets.h"
#include "takes_cuda.h"
#include "tensor_view.h"
#include "vector_view.h"

#ifdef GRU_FAST_HAS_CUDA
#include "cuda/backend.h"
#endif

namespace gru_fast {
namespace {

// The passes of the backend that owns a device.
struct SetBackend {
  using Pass = void (*)(const SetPlan&, const SetArgs&, SetStats&, const Context&);
  size_t (*scratch_bytes)(const SetPlan&);
  Pass reduce, decide, apply, finish;
};

SetBackend backend_of(dlpack::Device device) {
#ifdef GRU_FAST_HAS_CUDA
  if (takes_cuda(device)) return {cuda::scratch_bytes, cuda::reduce, cuda::decide, cuda::apply, cuda::finish};
#endif
  (void)takes_cuda;
  if (device.type != dlpack::kCPU) {
    throw py::value_error("no native kernels for this device in this build (GRU_FAST_CUDA decides)");
  }
  return {cpu::scratch_bytes, cpu::reduce, cpu::decide, cpu::apply, cpu::finish};
}

PlanLimits limits_of(dlpack::Device device, const std::vector<SetRow>& rows) {
#ifdef GRU_FAST_HAS_CUDA
  if (takes_cuda(device)) return cuda::set_limits();
#endif
  (void)device;
  return cpu_limits(total_numel(rows));
}

// The tensors of one step against several vectors. Holds raw pointers: the caller keeps the tensors alive and in place.
class SetTable {
 public:
  SetTable(py::sequence grads, py::sequence vectors, py::object names) : count_(static_cast<int>(py::len(vectors))) {
    auto captured = capture_sets(grads, vectors, names);
    device_ = captured.device;
    mismatched_layouts_ = std::move(captured.mismatched_layouts);
    backend_ = backend_of(device_);
    plan_ = plan_chunks(captured.rows, captured.kinds, limits_of(device_, captured.rows));
  }

  size_t scratch_bytes() const { return std::max<size_t>(backend_.scratch_bytes(plan_), 1); }
  const std::vector<size_t>& mismatched_layouts() const { return mismatched_layouts_; }

  void reduce(py::handle stats, py::handle scratch, int num_threads) const {
    run(backend_.reduce, {count_, 0.0, {}}, stats, scratch, num_threads);
  }
  void decide(py::handle stats, py::handle scratch, double tau, std::string_view rule,
              const RuleOptions& options) const {
    run(backend_.decide, {count_, tau, rule_of(rule, options)}, stats, scratch, 1);
  }
  void apply(py::handle stats, py::handle scratch, int num_threads) const {
    run(backend_.apply, {count_, 0.0, {}}, stats, scratch, num_threads);
  }
  void finish(py::handle stats, py::handle scratch, double tau, int num_threads) const {
    run(backend_.finish, {count_, tau, {}}, stats, scratch, num_threads);
  }

 private:
  void run(SetBackend::Pass pass, const SetArgs& args, py::handle stats, py::handle scratch, int num_threads) const {
    if (!mismatched_layouts_.empty()) {
      throw py::value_error("grads[" + std::to_string(mismatched_layouts_[0]) +
                            "]: its tensors are laid out differently in memory; pass contiguous copies");
    }
    auto* found = static_cast<SetStats*>(helper_pointer(stats, "stats", dlpack::kFloat, 64, kNumSetStats, device_));
    void* work = helper_pointer(scratch, "scratch", dlpack::kUInt, 8, static_cast<int64_t>(scratch_bytes()), device_);
    void* stream = device_.type == dlpack::kCUDA ? current_stream(device_.id) : nullptr;
    const Context where{nullptr, work, nullptr, num_threads, device_.id, stream};
    const py::gil_scoped_release nogil;
    pass(plan_, args, *found, where);
  }

  int count_;
  SetPlan plan_;
  dlpack::Device device_;
  SetBackend backend_;
  std::vector<size_t> mismatched_layouts_;
};

}  // namespace

void bind_sets(py::module_& m) {
  using py::arg;
  py::class_<SetTable>(m, "SetTable", "One step's tensors beside several vectors, on one device. Keep the lists alive.")
      .def(py::init<py::sequence, py::sequence, py::object>(), arg("grads"), arg("sets"), arg("names") = py::none())
      .def_property_readonly("scratch_bytes", &SetTable::scratch_bytes)
      .def_property_readonly("mismatched_layouts", &SetTable::mismatched_layouts)
      .def("reduce", &SetTable::reduce, "All dot products, into stats; everything else there becomes 0.", arg("stats"),
           arg("scratch"), arg("num_threads"))
      .def("decide", &SetTable::decide, "The coefficients, from those.", arg("stats"), arg("scratch"), arg("tau"),
           arg("rule"), arg("options"))
      .def("apply", &SetTable::apply, "Writes g by the coefficients; |g|^2 as written.", arg("stats"), arg("scratch"),
           arg("num_threads"))
      .def("finish", &SetTable::finish, "Settles the step, rescales g if needed.", arg("stats"), arg("scratch"),
           arg("tau"), arg("num_threads"));
  m.attr("NUM_SET_STATS") = kNumSetStats;
  m.attr("MAX_VECTORS") = kMaxVectors;
}

}  // namespace gru_fast
