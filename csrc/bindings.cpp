// The Python module gru_fast._core: one documented entry per thing the core can do.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <iterator>
#include <string_view>

#include "adamw_bindings.h"
#include "build_info.h"
#include "cpu/backend.h"
#include "cpu/kernels.h"
#include "cpu/parallel.h"
#include "rule_of.h"
#include "rules.h"
#include "set_bindings.h"
#include "takes_cuda.h"
#include "tensor_view.h"
#include "vector_view.h"

#ifdef GRU_FAST_HAS_CUDA
#include "cuda/backend.h"
#endif

namespace gru_fast {
#ifdef GRU_FAST_EMULATE
void bind_emulation(py::module_& core);  // tests/emulation
#endif
namespace {

#ifdef GRU_FAST_HAS_CUDA
constexpr bool kHasCuda = true;
#else
constexpr bool kHasCuda = false;
#endif

// The functions of the backend that owns a device.
struct Backend {
  size_t (*scratch_bytes)(const Plan&);
  void (*reduce)(const Plan&, const StepArgs&, const Context&);
  void (*apply)(const Plan&, const StepArgs&, const Context&);
  void (*finish)(const Plan&, const StepArgs&, const Context&);
  void (*step)(const Plan&, const StepArgs&, const Context&);
  void (*gate)(const Plan&, const StepArgs&, bool, const Context&);
  void (*reduce_groups)(const Plan&, const Groups&, const Context&);
  void (*apply_groups)(const Plan&, const StepArgs&, const Groups&, const Context&);
  void (*finish_groups)(const Plan&, const StepArgs&, const Groups&, const Context&);
  void (*blend)(const Plan&, const BlendArgs&, const Context&);
  void (*probe)(const Plan&, bool, const Context&);

  size_t (*vector_scratch_bytes)(const VectorPlan&);
  void (*vector_reduce)(const VectorPlan&, const VectorArgs&, const Context&);
  void (*vector_measure)(const VectorPlan&, const VectorArgs&, const Context&);
  void (*vector_add)(const VectorPlan&, const VectorArgs&, const Context&);
};

Backend backend_of(dlpack::Device device) {
#ifdef GRU_FAST_HAS_CUDA
  if (takes_cuda(device)) {
    return {cuda::scratch_bytes, cuda::reduce,        cuda::apply,        cuda::finish,        cuda::step,
            cuda::gate,          cuda::reduce_groups, cuda::apply_groups, cuda::finish_groups, cuda::blend,
            cuda::probe,         cuda::scratch_bytes, cuda::reduce,       cuda::measure,       cuda::add};
  }
#endif
  if (device.type == dlpack::kCPU) {
    return {cpu::scratch_bytes, cpu::reduce,        cpu::apply,        cpu::finish,        cpu::step,
            cpu::gate,          cpu::reduce_groups, cpu::apply_groups, cpu::finish_groups, cpu::blend,
            cpu::probe,         cpu::scratch_bytes, cpu::reduce,       cpu::measure,       cpu::add};
  }
  throw py::value_error(
      "no native kernels for this device in this build (GRU_FAST_CUDA decides); use gru_fast.reference");
}

PlanLimits limits_of(dlpack::Device device, const std::vector<Row>& rows) {
#ifdef GRU_FAST_HAS_CUDA
  if (takes_cuda(device)) return cuda::limits();
#endif
  (void)device;
  return cpu_limits(total_numel(rows));
}

PlanLimits limits_of(dlpack::Device device, const std::vector<VectorRow>& rows) {
#ifdef GRU_FAST_HAS_CUDA
  if (takes_cuda(device)) return cuda::vector_limits();
#endif
  (void)device;
  return cpu_limits(total_numel(rows));
}

Context context_on(dlpack::Device device, py::handle stats, py::handle scratch, size_t scratch_bytes,
                   py::handle rounding_step, int num_threads) {
  return {static_cast<Stats*>(helper_pointer(stats, "stats", dlpack::kFloat, 64, kNumStats, device)),
          helper_pointer(scratch, "scratch", dlpack::kUInt, 8, static_cast<int64_t>(scratch_bytes), device),
          rounding_step.is_none()
              ? nullptr
              : static_cast<int64_t*>(helper_pointer(rounding_step, "rounding_step", dlpack::kInt, 64, 1, device)),
          num_threads,
          device.id,
          device.type == dlpack::kCUDA ? current_stream(device.id) : nullptr};
}

[[noreturn]] void refuse_layouts(const char* list, size_t row) {
  throw py::value_error(std::string(list) + "[" + std::to_string(row) +
                        "]: its tensors are laid out differently in memory; pass contiguous copies");
}

// One step's tensors, checked and cut into chunks. Holds raw pointers: the caller keeps the tensors alive and in place.
class Table {
 public:
  Table(py::sequence grads, py::object retain, py::object ema, py::object ema_is_current, py::object ids,
        py::object names, py::object rounding_keys, bool is_direct) {
    Capture captured = capture(grads, retain, ema, ema_is_current, ids, names, rounding_keys, is_direct);
    device_ = captured.device;
    mismatched_layouts_ = std::move(captured.mismatched_layouts);
    missing_grads_ = std::move(captured.missing_grads);
    backend_ = backend_of(device_);
    num_rows_ = captured.rows.size();
    plan_ = plan_chunks(captured.rows, captured.kinds, limits_of(device_, captured.rows));
  }

  size_t scratch_bytes() const { return std::max<size_t>(backend_.scratch_bytes(plan_), 1); }
  const std::vector<size_t>& mismatched_layouts() const { return mismatched_layouts_; }
  const std::vector<size_t>& missing_grads() const { return missing_grads_; }
  int64_t numel() const { return plan_.numel; }
  size_t num_launches() const { return plan_.launches.size(); }
  int64_t num_chunks() const { return plan_.num_chunks; }

  void reduce(py::handle stats, py::handle scratch, py::handle rounding_step, float keep, float gain, uint64_t seed,
              bool all_or_nothing, int num_threads, bool by_row) const {
    StepArgs args{.keep = keep, .gain = gain, .seed = seed, .all_or_nothing = all_or_nothing, .by_row = by_row};
    run(backend_.reduce, args, context(stats, scratch, rounding_step, num_threads));
  }
  void fold(py::handle stats, py::handle scratch, py::handle rounding_step, float keep, float gain, uint64_t seed,
            int num_threads) const {
    StepArgs args{.keep = keep, .gain = gain, .seed = seed, .sums_wanted = false};
    run(backend_.reduce, args, context(stats, scratch, rounding_step, num_threads));
  }
  void apply(py::handle stats, py::handle scratch, double tau, std::string_view rule, const RuleOptions& options,
             int num_threads) const {
    run(backend_.apply, StepArgs{.tau = tau, .rule = rule_of(rule, options)},
        context(stats, scratch, py::none(), num_threads));
  }
  void finish(py::handle stats, py::handle scratch, double tau, std::string_view rule, const RuleOptions& options,
              int num_threads) const {
    run(backend_.finish, StepArgs{.tau = tau, .rule = rule_of(rule, options)},
        context(stats, scratch, py::none(), num_threads));
  }
  void step(py::handle stats, py::handle scratch, py::handle rounding_step, float keep, float gain, double tau,
            std::string_view rule, const RuleOptions& options, uint64_t seed, bool all_or_nothing,
            int num_threads) const {
    const StepArgs args{.keep = keep,
                        .gain = gain,
                        .tau = tau,
                        .rule = rule_of(rule, options),
                        .seed = seed,
                        .all_or_nothing = all_or_nothing};
    run(backend_.step, args, context(stats, scratch, rounding_step, num_threads));
  }
  void gate(py::handle stats, py::handle scratch, std::string_view rule, const RuleOptions& options, bool is_first,
            int num_threads) const {
    const StepArgs args{.rule = rule_of(rule, options)};
    const Context where = context(stats, scratch, py::none(), num_threads);
    const py::gil_scoped_release nogil;
    backend_.gate(plan_, args, is_first, where);
  }
  // The passes by groups of rows. `of_row`: a group for each row; `groups`: what is known of them.
  void reduce_groups(py::handle stats, py::handle scratch, const std::vector<uint32_t>& of_row, py::handle groups,
                     size_t count) const {
    const Context where = context(stats, scratch, py::none(), 1);
    const Groups found = groups_in(of_row, groups, count);
    const py::gil_scoped_release nogil;
    backend_.reduce_groups(plan_, found, where);
  }
  void apply_groups(py::handle stats, py::handle scratch, const std::vector<uint32_t>& of_row, py::handle groups,
                    size_t count, double tau, std::string_view rule, const RuleOptions& options,
                    int num_threads) const {
    run_groups(backend_.apply_groups, of_row, groups, count, StepArgs{.tau = tau, .rule = rule_of(rule, options)},
               context(stats, scratch, py::none(), num_threads));
  }
  void finish_groups(py::handle stats, py::handle scratch, const std::vector<uint32_t>& of_row, py::handle groups,
                     size_t count, double tau, std::string_view rule, const RuleOptions& options,
                     int num_threads) const {
    run_groups(backend_.finish_groups, of_row, groups, count, StepArgs{.tau = tau, .rule = rule_of(rule, options)},
               context(stats, scratch, py::none(), num_threads));
  }
  void probe(bool full, py::handle stats, py::handle scratch, int num_threads) const {
    const Context where = context(stats, scratch, py::none(), num_threads);
    const py::gil_scoped_release nogil;
    backend_.probe(plan_, full, where);
  }

 private:
  template <class Pass>
  void run(Pass pass, const StepArgs& args, const Context& where) const {
    const py::gil_scoped_release nogil;
    pass(plan_, args, where);
  }

  template <class Pass>
  void run_groups(Pass pass, const std::vector<uint32_t>& of_row, py::handle groups, size_t count, const StepArgs& args,
                  const Context& where) const {
    const Groups found = groups_in(of_row, groups, count);
    const py::gil_scoped_release nogil;
    pass(plan_, args, found, where);
  }

  Groups groups_in(const std::vector<uint32_t>& of_row, py::handle groups, size_t count) const {
    if (of_row.size() != num_rows_) {
      throw py::value_error("groups: expected one for each of " + std::to_string(num_rows_) + " rows, got " +
                            std::to_string(of_row.size()));
    }
    for (const uint32_t group : of_row) {
      if (group >= count) throw py::value_error("groups: expected numbers below " + std::to_string(count));
    }
    const auto numel = static_cast<int64_t>(count) * kNumGroupStats;
    auto* stats = static_cast<GroupStats*>(helper_pointer(groups, "groups", dlpack::kFloat, 64, numel, device_));
    return {of_row.data(), stats, count};
  }

  Context context(py::handle stats, py::handle scratch, py::handle rounding_step, int num_threads) const {
    if (!mismatched_layouts_.empty()) refuse_layouts("grads", mismatched_layouts_[0]);
    return context_on(device_, stats, scratch, scratch_bytes(), rounding_step, num_threads);
  }

  Plan plan_;
  dlpack::Device device_;
  Backend backend_;
  size_t num_rows_ = 0;
  std::vector<size_t> mismatched_layouts_, missing_grads_;
};

// One unit's tensors of task vector rectified unlearning. Holds raw pointers, as Table does.
class UnitTable {
 public:
  UnitTable(py::sequence learned, py::sequence origin, py::object total, py::object own, py::sequence mean,
            py::object names) {
    auto captured = capture_vectors(learned, origin, total, own, mean, names);
    device_ = captured.device;
    mismatched_layouts_ = std::move(captured.mismatched_layouts);
    backend_ = backend_of(device_);
    plan_ = plan_chunks(captured.rows, captured.kinds, limits_of(device_, captured.rows));
  }

  size_t scratch_bytes() const { return std::max<size_t>(backend_.vector_scratch_bytes(plan_), 1); }
  const std::vector<size_t>& mismatched_layouts() const { return mismatched_layouts_; }

  void reduce(py::handle stats, py::handle scratch, int num_threads) const {
    run(backend_.vector_reduce, {}, stats, scratch, num_threads);
  }
  void measure(py::handle stats, py::handle scratch, int num_threads) const {
    run(backend_.vector_measure, {}, stats, scratch, num_threads);
  }
  void add(py::handle stats, py::handle scratch, double weight, bool normalize, bool restore, int num_threads) const {
    run(backend_.vector_add, {weight, normalize, restore}, stats, scratch, num_threads);
  }

 private:
  template <class Pass>
  void run(Pass pass, const VectorArgs& args, py::handle stats, py::handle scratch, int num_threads) const {
    if (!mismatched_layouts_.empty()) refuse_layouts("params", mismatched_layouts_[0]);
    const Context where = context_on(device_, stats, scratch, scratch_bytes(), py::none(), num_threads);
    const py::gil_scoped_release nogil;
    pass(plan_, args, where);
  }

  VectorPlan plan_;
  dlpack::Device device_;
  Backend backend_;
  std::vector<size_t> mismatched_layouts_;
};

// The tensors of out <- x_weight * x + y_weight * y. Holds raw pointers, as Table does.
class BlendTable {
 public:
  BlendTable(py::sequence out, py::sequence x, py::sequence y, const std::string& x_name, const std::string& y_name,
             py::object names) {
    auto captured = capture_blend(out, {x, x_name}, {y, y_name}, names);
    device_ = captured.device;
    mismatched_layouts_ = std::move(captured.mismatched_layouts);
    pass_ = backend_of(device_).blend;
    plan_ = plan_chunks(captured.rows, captured.kinds, limits_of(device_, captured.rows));
  }

  const std::vector<size_t>& mismatched_layouts() const { return mismatched_layouts_; }

  void run(float x_weight, float y_weight, int num_threads) const {
    if (!mismatched_layouts_.empty()) refuse_layouts("params", mismatched_layouts_[0]);
    void* stream = device_.type == dlpack::kCUDA ? current_stream(device_.id) : nullptr;
    const Context where{nullptr, nullptr, nullptr, num_threads, device_.id, stream};
    const py::gil_scoped_release nogil;
    pass_(plan_, BlendArgs{x_weight, y_weight}, where);
  }

 private:
  Plan plan_;
  dlpack::Device device_;
  void (*pass_)(const Plan&, const BlendArgs&, const Context&);
  std::vector<size_t> mismatched_layouts_;
};

py::list plan_for_test(const std::vector<int64_t>& numels, const std::vector<int>& kinds, int64_t chunk_numel,
                       size_t max_rows) {
  std::vector<Row> rows;
  std::vector<Kind> row_kinds;
  for (size_t i = 0; i < numels.size(); ++i) {
    rows.push_back({nullptr, nullptr, nullptr, numels[i], 0, static_cast<uint32_t>(i), 0});
    row_kinds.push_back({static_cast<DType>(kinds.at(i) / 3), static_cast<DType>(kinds.at(i) % 3)});
  }
  const PlanLimits limits = chunk_numel > 0 ? PlanLimits{chunk_numel, max_rows} : cpu_limits(total_numel(rows));
  const Plan plan = plan_chunks(rows, row_kinds, limits);
  py::list launches;
  for (const Launch& launch : plan.launches) {
    py::list ids, first_chunks;
    for (const Row& row : launch.rows) {
      ids.append(static_cast<uint32_t>(row.rounding_key));
      first_chunks.append(row.first_chunk);
    }
    py::dict out;
    out["kind"] = static_cast<int>(launch.kind.grad) * 3 + static_cast<int>(launch.kind.ema);
    out["ids"] = ids;
    out["first_chunks"] = first_chunks;
    out["num_chunks"] = launch.num_chunks;
    out["numel"] = launch.numel;
    out["chunk_numel"] = plan.chunk_numel;
    launches.append(out);
  }
  return launches;
}

py::tuple locate_for_test(const std::vector<int64_t>& numels, int64_t chunk_numel, uint32_t chunk) {
  std::vector<Row> rows;
  for (size_t i = 0; i < numels.size(); ++i)
    rows.push_back({nullptr, nullptr, nullptr, numels[i], 0, static_cast<uint32_t>(i), 0});
  const std::vector<Kind> kinds(rows.size(), {DType::kFloat32, DType::kFloat32});
  const Plan plan = plan_chunks(rows, kinds, {chunk_numel, SIZE_MAX});
  const ChunkSpan span = locate_chunk(plan.launches.at(0), chunk, chunk_numel);
  return py::make_tuple(static_cast<uint32_t>(plan.launches[0].rows[span.row].rounding_key), span.begin, span.end);
}

py::dict build_info() {
  py::dict out;
  out["version"] = kVersion;
  out["compiler"] = kCompiler;
  out["build_type"] = kBuildType;
  out["cuda_version"] = kCudaVersion;
  out["cuda_architectures"] = kCudaArchitectures;
  out["no_cuda_reason"] = kNoCudaReason;
  out["vector_level"] = cpu::kernels().level;
  py::list levels;
  for (const char* const* name = cpu::available_levels(); *name != nullptr; ++name) levels.append(*name);
  out["available_levels"] = levels;
  out["thread_source"] = cpu::thread_source();
#ifdef GRU_FAST_HAS_CUDA
  out["cuda_device_count"] = cuda::device_count();
#else
  out["cuda_device_count"] = 0;
#endif
  return out;
}

std::string cuda_problem() {
#ifdef GRU_FAST_HAS_CUDA
  return cuda::problem();
#else
  return kNoCudaReason;
#endif
}

// Element by element the very same objects. What `all(a is b ...)` is in Python, at a fiftieth of its time.
bool same_objects(py::list a, py::list b) {
  const Py_ssize_t size = PyList_GET_SIZE(a.ptr());
  if (size != PyList_GET_SIZE(b.ptr())) return false;
  for (Py_ssize_t i = 0; i < size; ++i) {
    if (PyList_GET_ITEM(a.ptr(), i) != PyList_GET_ITEM(b.ptr(), i)) return false;
  }
  return true;
}

// [param.grad for param in params], at half of its time: what "grad" means is looked up once for each type in a row.
py::list gradients(py::list params) {
  static PyObject* const name = PyUnicode_InternFromString("grad");
  const Py_ssize_t size = PyList_GET_SIZE(params.ptr());
  py::list out(size);
  PyTypeObject* type = nullptr;
  py::object descriptor;
  descrgetfunc get = nullptr;
  for (Py_ssize_t i = 0; i < size; ++i) {
    // A "grad" written in Python may do anything, also shorten the list: IndexError then.
    PyObject* const item = PyList_GetItem(params.ptr(), i);
    if (item == nullptr) throw py::error_already_set();
    const auto param = py::reinterpret_borrow<py::object>(item);
    if (Py_TYPE(item) != type) {
      type = Py_TYPE(item);
      // Of a type that looks its attributes up in a way of its own, or has no descriptor of data, each object is asked.
      descriptor = py::reinterpret_steal<py::object>(PyObject_GetAttr(reinterpret_cast<PyObject*>(type), name));
      PyErr_Clear();
      const bool is_plain = descriptor && type->tp_getattro == PyObject_GenericGetAttr &&
                            Py_TYPE(descriptor.ptr())->tp_descr_set != nullptr;
      get = is_plain ? Py_TYPE(descriptor.ptr())->tp_descr_get : nullptr;
    }
    PyObject* const grad =
        get != nullptr ? get(descriptor.ptr(), item, reinterpret_cast<PyObject*>(type)) : PyObject_GetAttr(item, name);
    if (grad == nullptr) throw py::error_already_set();
    PyList_SET_ITEM(out.ptr(), i, grad);
  }
  return out;
}

void use_vector_level(const std::string& name) {
  if (!cpu::use_level(name.c_str())) throw py::value_error("no vector level \"" + name + "\" on this machine");
}

}  // namespace
}  // namespace gru_fast

PYBIND11_MODULE(_core, m) {
  using namespace gru_fast;
  using py::arg;
  m.doc() = "The passes of gru_fast over lists of tensors. Use gru_fast.rectify_; this is what it stands on.";

  py::class_<TensorList>(m, "TensorList",
                         "Tensors of one's own, looked at once instead of every step; not to be resized.")
      .def(py::init<py::sequence>(), arg("tensors"));

  py::class_<Table>(m, "Table", "One step's tensors on one device, checked and cut into chunks. Keep the lists alive.")
      .def(py::init<py::sequence, py::object, py::object, py::object, py::object, py::object, py::object, bool>(),
           arg("grads"), arg("retain"), arg("ema"), arg("ema_is_current") = false, arg("ids") = py::none(),
           arg("names") = py::none(), arg("rounding_keys") = py::none(), arg("is_direct") = false)
      .def_property_readonly("scratch_bytes", &Table::scratch_bytes, "Bytes of scratch every pass needs.")
      .def_property_readonly("mismatched_layouts", &Table::mismatched_layouts,
                             "Rows whose tensors differ in memory layout; pass contiguous copies of those.")
      .def_property_readonly("missing_grads", &Table::missing_grads, "Rows whose gradient is None.")
      .def_property_readonly("numel", &Table::numel, "Elements over all rows.")
      .def_property_readonly("num_launches", &Table::num_launches, "Kernel launches of one pass (CUDA).")
      .def_property_readonly("num_chunks", &Table::num_chunks, "Chunks over all launches.")
      .def("reduce", &Table::reduce, "e <- keep*e + gain*r and the sums; fills stats[0:5].", arg("stats"),
           arg("scratch"), arg("rounding_step"), arg("keep"), arg("gain"), arg("seed"), arg("all_or_nothing"),
           arg("num_threads"), arg("by_row") = false)
      .def("fold", &Table::fold, "e <- keep*e + gain*r alone; of stats[0:5] only stats[3] is meant to be read.",
           arg("stats"), arg("scratch"), arg("rounding_step"), arg("keep"), arg("gain"), arg("seed"),
           arg("num_threads"))
      .def("apply", &Table::apply, "g <- alpha*g + beta*e, decided from stats[0:5]; fills stats[5].", arg("stats"),
           arg("scratch"), arg("tau"), arg("rule"), arg("options"), arg("num_threads"))
      .def("finish", &Table::finish, "Settles the step, rescales g if needed; fills stats[6:].", arg("stats"),
           arg("scratch"), arg("tau"), arg("rule"), arg("options"), arg("num_threads"))
      .def("step", &Table::step, "reduce, apply and finish.", arg("stats"), arg("scratch"), arg("rounding_step"),
           arg("keep"), arg("gain"), arg("tau"), arg("rule"), arg("options"), arg("seed"), arg("all_or_nothing"),
           arg("num_threads"))
      .def(
          "gate", &Table::gate,
          "An element-wise rule, in place of apply, or of reduce too if `is_first`; fills stats[5:8] (and stats[0:5]).",
          arg("stats"), arg("scratch"), arg("rule"), arg("options"), arg("is_first"), arg("num_threads"))
      .def("reduce_groups", &Table::reduce_groups, "The sums of each group of rows, right after reduce with `by_row`.",
           arg("stats"), arg("scratch"), arg("of_row"), arg("groups"), arg("count"))
      .def("apply_groups", &Table::apply_groups, "apply, with a rule for each group of rows.", arg("stats"),
           arg("scratch"), arg("of_row"), arg("groups"), arg("count"), arg("tau"), arg("rule"), arg("options"),
           arg("num_threads"))
      .def("finish_groups", &Table::finish_groups, "finish after apply_groups.", arg("stats"), arg("scratch"),
           arg("of_row"), arg("groups"), arg("count"), arg("tau"), arg("rule"), arg("options"), arg("num_threads"))
      .def("probe", &Table::probe, "Bench: the bare memory traffic of reduce (and apply if full).", arg("full"),
           arg("stats"), arg("scratch"), arg("num_threads"));

  py::class_<UnitTable>(m, "UnitTable",
                        "One unit's tensors of task vector rectified unlearning, on one device. Keep the lists alive.")
      .def(py::init<py::sequence, py::sequence, py::object, py::object, py::sequence, py::object>(), arg("learned"),
           arg("origin"), arg("total"), arg("own"), arg("mean"), arg("names") = py::none())
      .def_property_readonly("scratch_bytes", &UnitTable::scratch_bytes)
      .def_property_readonly("mismatched_layouts", &UnitTable::mismatched_layouts)
      .def("reduce", &UnitTable::reduce, "The sums of T and r into stats[0:3].", arg("stats"), arg("scratch"),
           arg("num_threads"))
      .def("measure", &UnitTable::measure, "|T~|^2 into stats[5] where stats[0:3] cannot tell it.", arg("stats"),
           arg("scratch"), arg("num_threads"))
      .def("add", &UnitTable::add, "Adds the rectified T to mean, takes learned back to origin; completes stats.",
           arg("stats"), arg("scratch"), arg("weight"), arg("normalize"), arg("restore"), arg("num_threads"));

  py::class_<BlendTable>(m, "BlendTable",
                         "The tensors of out <- x_weight * x + y_weight * y on one device. Keep the lists alive.")
      .def(py::init<py::sequence, py::sequence, py::sequence, const std::string&, const std::string&, py::object>(),
           arg("out"), arg("x"), arg("y"), arg("x_name"), arg("y_name"), arg("names") = py::none())
      .def_property_readonly("mismatched_layouts", &BlendTable::mismatched_layouts)
      .def("run", &BlendTable::run, "Writes out. A y_weight of 0 leaves y unread.", arg("x_weight"), arg("y_weight"),
           arg("num_threads"));

  bind_adamw(m);
  bind_sets(m);

  m.attr("NUM_STATS") = kNumStats;
  m.attr("NUM_GROUP_STATS") = kNumGroupStats;
  py::tuple rules(std::size(kRuleNames));
  for (size_t i = 0; i < std::size(kRuleNames); ++i) rules[i] = kRuleNames[i];
  m.attr("RULES") = rules;
  m.attr("HAS_CUDA") = kHasCuda;
  m.attr("CUDA_ARCHITECTURES") = kCudaArchitectures;  // constants: asking for them wakes no driver
  m.attr("VERSION") = kVersion;
  m.def("build_info", &build_info, "How this module was built and what it runs on.");
  m.def("cuda_problem", &cuda_problem, "Why the CUDA kernels run on no device here; empty if they do.");
  m.def("same_objects", &same_objects, "Whether two lists hold the very same objects.", arg("a"), arg("b"));
  m.def("gradients", &gradients, "The .grad of each parameter, None where it has none.", arg("params"));
  m.def("use_vector_level", &use_vector_level, "Choose the CPU kernels' vector level (tests, benchmarks).",
        arg("name"));
  m.def("plan", &plan_for_test, "The chunk planner, for tests; kinds are 3 * grad dtype + ema dtype.", arg("numels"),
        arg("kinds"), arg("chunk_numel"), arg("max_rows"));
  m.def("locate_chunk", &locate_for_test, "(row, begin, end) of a chunk, for tests.", arg("numels"), arg("chunk_numel"),
        arg("chunk"));
#ifdef GRU_FAST_EMULATE
  bind_emulation(m);
#endif
}
