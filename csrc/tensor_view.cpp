#include "tensor_view.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace gru_fast {
namespace {

const dlpack::ExchangeApi* exchange_api_of(PyTypeObject* type) {
  PyObject* type_object = reinterpret_cast<PyObject*>(type);
  if (PyObject_HasAttrString(type_object, dlpack::kTypeAttribute) == 0) return nullptr;
  const py::object capsule =
      py::reinterpret_steal<py::object>(PyObject_GetAttrString(type_object, dlpack::kTypeAttribute));
  if (!capsule) throw py::error_already_set();
  const auto* api = static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), dlpack::kCapsuleName));
  if (api == nullptr) throw py::error_already_set();
  while (api != nullptr && api->version.major != dlpack::kMajorVersion) api = api->previous;
  if (api == nullptr || api->tensor_from_py_object == nullptr) {
    throw py::import_error(
        "gru_fast needs DLPack's exchange table version 1, which torch has from 2.10 on; upgrade torch");
  }
  return api;
}

// Gradients are of one or two types in practice; their tables are remembered.
const dlpack::ExchangeApi* cached_api(PyTypeObject* type) {
  static PyTypeObject* types[4] = {};
  static const dlpack::ExchangeApi* apis[4] = {};
  for (int i = 0; i < 4; ++i) {
    if (types[i] == type) return apis[i];
  }
  const dlpack::ExchangeApi* api = exchange_api_of(type);
  if (api == nullptr) return nullptr;
  for (int i = 0; i < 4; ++i) {
    if (types[i] == nullptr) {
      Py_INCREF(type);  // a remembered address must stay this type's
      types[i] = type;
      apis[i] = api;
      break;
    }
  }
  return api;
}

const dlpack::ExchangeApi*& any_api() {
  static const dlpack::ExchangeApi* api = nullptr;
  return api;
}

std::string device_name(dlpack::Device device) {
  if (device.type == dlpack::kCPU) return "cpu";
  const std::string kind = device.type == dlpack::kCUDA ? "cuda:" : "device type " + std::to_string(device.type) + ":";
  return kind + std::to_string(device.id);
}

std::string dtype_name(dlpack::DataType dtype) {
  static const char* const names[] = {"int", "uint", "float", "opaque", "bfloat", "complex", "bool"};
  const std::string name = dtype.code < 7 ? names[dtype.code] : "dtype code " + std::to_string(dtype.code) + " ";
  return dtype.code == dlpack::kBool ? name : name + std::to_string(dtype.bits);
}

std::string shape_name(const dlpack::Tensor& t) {
  std::string out = "(";
  for (int i = 0; i < t.ndim; ++i) out += (i > 0 ? ", " : "") + std::to_string(t.shape[i]);
  return out + (t.ndim == 1 ? ",)" : ")");
}

// "grads[17] "layers.3.weight"": which tensor a message is about.
struct Label {
  const char* list;
  size_t index;  // in the list we were given, and in names
  const py::object* names;
  size_t shown = index;  // in the list the user gave: differs where rows were left out

  std::string text() const {
    std::string out = std::string(list) + "[" + std::to_string(shown) + "]";
    if (!names->is_none()) out += " \"" + py::str((*names)[py::int_(index)]).cast<std::string>() + "\"";
    return out;
  }
};

[[noreturn]] void value_error(const Label& where, const std::string& what) {
  throw py::value_error(where.text() + ": " + what);
}
[[noreturn]] void type_error(const Label& where, const std::string& what) {
  throw py::type_error(where.text() + ": " + what);
}

DType dtype_of(const dlpack::Tensor& t, const Label& where) {
  using enum DType;
  if (t.dtype.lanes == 1) {
    if (t.dtype.code == dlpack::kFloat && t.dtype.bits == 32) return kFloat32;
    if (t.dtype.code == dlpack::kFloat && t.dtype.bits == 16) return kFloat16;
    if (t.dtype.code == dlpack::kBFloat && t.dtype.bits == 16) return kBFloat16;
  }
  type_error(where, "expected float32, bfloat16 or float16, got " + dtype_name(t.dtype) +
                        "; convert the parameters (e.g. model.float()) before training");
}

int64_t numel_of(const dlpack::Tensor& t) {
  int64_t numel = 1;
  for (int i = 0; i < t.ndim; ++i) numel *= t.shape[i];
  return numel;
}

bool same_shape(const dlpack::Tensor& a, const dlpack::Tensor& b) {
  return a.ndim == b.ndim && std::memcmp(a.shape, b.shape, static_cast<size_t>(a.ndim) * sizeof(int64_t)) == 0;
}

bool is_contiguous(const dlpack::Tensor& t) {
  if (t.strides == nullptr) return true;
  int64_t expected = 1;
  for (int i = t.ndim - 1; i >= 0; --i) {
    if (t.shape[i] != 1 && t.strides[i] != expected) return false;
    expected *= t.shape[i];
  }
  return true;
}

// One element a place, no gaps: any permutation of a contiguous tensor.
bool is_dense(const dlpack::Tensor& t) {
  if (is_contiguous(t)) return true;
  std::vector<std::pair<int64_t, int64_t>> dims;
  for (int i = 0; i < t.ndim; ++i) {
    if (t.shape[i] != 1) dims.emplace_back(t.strides[i], t.shape[i]);
  }
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

bool same_strides(const dlpack::Tensor& a, const dlpack::Tensor& b) {
  for (int i = 0; i < a.ndim; ++i) {
    if (a.shape[i] != 1 && a.strides[i] != b.strides[i]) return false;
  }
  return true;
}

dlpack::Tensor view_checked(py::handle object, const Label& where) {
  const dlpack::ExchangeApi* api = cached_api(Py_TYPE(object.ptr()));
  if (api == nullptr) {
    type_error(where, "expected a torch.Tensor, got " + std::string(Py_TYPE(object.ptr())->tp_name) +
                          (py::hasattr(object, "__dlpack__") ? "; torch >= 2.10 is needed" : ""));
  }
  any_api() = api;
  dlpack::Tensor view;
  if (api->tensor_from_py_object(object.ptr(), &view) != 0) {
    PyErr_Clear();  // torch's own message carries its C++ stack
    const auto said = [&](const char* attribute) {
      return py::str(py::getattr(object, attribute, py::str("unknown"))).cast<std::string>();
    };
    if (said("layout") == "torch.strided") {
      value_error(where,
                  "expected cpu or cuda memory, got " + said("device") + "; load the parameters before training");
    }
    type_error(where, "expected a dense (torch.strided) tensor, got " + said("layout") +
                          "; build the layer with dense gradients (e.g. nn.Embedding(sparse=False))");
  }
  view.data = static_cast<char*>(view.data) + view.byte_offset;
  view.byte_offset = 0;
  return view;
}

// ---- overlap --------------------------------------------------------------------------------------------------------

struct Extent {
  uintptr_t begin, end;
  const char* list;
  uint32_t index;
  bool dense;
};

void add_extent(std::vector<Extent>& extents, const dlpack::Tensor& t, bool dense, const char* list, size_t index) {
  const int64_t item = t.dtype.bits / 8;
  int64_t last = numel_of(t) - 1;
  if (last < 0) return;
  if (!dense) {
    last = 0;
    for (int i = 0; i < t.ndim; ++i) last += (t.shape[i] - 1) * t.strides[i];
  }
  const auto begin = reinterpret_cast<uintptr_t>(t.data);
  extents.push_back(
      {begin, begin + static_cast<uintptr_t>((last + 1) * item), list, static_cast<uint32_t>(index), dense});
}

// Training hands in the same addresses step after step; sorting them anew each time would be a quarter of the overhead
// of a small step. A list whose fingerprint passed before is not sorted again. Guarded by the GIL.
class PassedBefore {
 public:
  bool contains(uint64_t fingerprint) const {
    return std::find(known_.begin(), known_.end(), fingerprint) != known_.end();
  }
  void add(uint64_t fingerprint) {
    known_[next_] = fingerprint;
    next_ = (next_ + 1) % known_.size();
  }

 private:
  std::array<uint64_t, 16> known_{};
  size_t next_ = 0;
};

uint64_t fingerprint_of(const std::vector<Extent>& extents) {
  uint64_t hash = extents.size();
  for (const Extent& e : extents) {
    const uint64_t item = e.begin * 0x9e3779b97f4a7c15ull + e.end * 2 + (e.dense ? 1 : 0);
    hash = (hash ^ (hash >> 31) ^ item) * 0xbf58476d1ce4e5b9ull;
  }
  return hash | 1;  // never the 0 that empty slots hold
}

// A tensor that is written must not share memory with another: different threads would read and write it. Retain
// gradients are only read and may share among themselves. A view with gaps may lie around another tensor without sharing
// an element with it, so of two such views only those that start at the same address are refused.
void check_overlap(std::vector<Extent>& extents, const py::object& names) {
  static PassedBefore passed;
  const uint64_t fingerprint = fingerprint_of(extents);
  if (passed.contains(fingerprint)) return;
  std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
  const Extent* previous = nullptr;
  const Extent* farthest[2] = {};  // of the dense ones so far, the one that ends last: written, only read
  for (const Extent& extent : extents) {
    const bool read_only = std::strcmp(extent.list, "retain_grads") == 0;
    const Extent* other = nullptr;
    for (const Extent* candidate : farthest) {
      const bool both_read = read_only && candidate == farthest[1];
      if (candidate != nullptr && extent.begin < candidate->end && !both_read) other = candidate;
    }
    if (previous != nullptr && extent.begin == previous->begin && !(read_only && previous->list == extent.list)) {
      other = previous;
    }
    if (other != nullptr) {
      const Label first{other->list, other->index, &names}, second{extent.list, extent.index, &names};
      value_error(second, "expected memory of its own, but it overlaps " + first.text() +
                              "; clone() one of them, and list a tied parameter once");
    }
    const Extent*& last = farthest[read_only ? 1 : 0];
    if (extent.dense && (last == nullptr || extent.end > last->end)) last = &extent;
    previous = &extent;
  }
  passed.add(fingerprint);
}

// ---- one parameter --------------------------------------------------------------------------------------------------

void check_like_ema(const dlpack::Tensor& t, const Label& where, const dlpack::Tensor& ema) {
  if (!same_shape(t, ema)) {
    value_error(where, "expected shape " + shape_name(ema) + " as its EMA, got " + shape_name(t) +
                           "; give the lists in the order of the parameters");
  }
  if (t.device.type != ema.device.type || t.device.id != ema.device.id) {
    value_error(where, "expected " + device_name(ema.device) + " as its EMA, got " + device_name(t.device) +
                           "; move one of them (RetainEMA.to(device))");
  }
}

// An expanded tensor has one element for many places: it can be read, not written.
void check_writable(const dlpack::Tensor& t, const Label& where) {
  for (int i = 0; t.strides != nullptr && i < t.ndim; ++i) {
    if (t.shape[i] > 1 && t.strides[i] == 0) {
      value_error(where, "expected one element for each place, got stride 0 in dimension " + std::to_string(i) +
                             " of " + shape_name(t) + " (an expanded tensor); make it .contiguous()");
    }
  }
}

struct RowInput {
  py::handle grad, retain;
  py::handle ema;                   // or
  const dlpack::Tensor* known_ema;  // from a TensorList; null otherwise
  bool ema_is_current;
};

void add_row(Capture& out, std::vector<Extent>& extents, const RowInput& in, size_t index, uint32_t id,
             const py::object& names) {
  const Label ema_label{"ema", index, &names, id};
  const dlpack::Tensor ema = in.known_ema != nullptr ? *in.known_ema : view_checked(in.ema, ema_label);
  if (ema.device.type == dlpack::kCUDAHost)
    value_error(ema_label, "expected cpu or cuda memory, got pinned host memory");
  const DType ema_dtype = dtype_of(ema, ema_label);
  if (index == 0) out.device = ema.device;
  if (ema.device.type != out.device.type || ema.device.id != out.device.id) {
    value_error(ema_label, "expected " + device_name(out.device) + " as ema[0], got " + device_name(ema.device) +
                               "; one call works on one device");
  }
  const bool ema_contiguous = is_contiguous(ema), ema_dense = ema_contiguous || is_dense(ema);
  if (!ema_dense) check_writable(ema, ema_label);
  add_extent(extents, ema, ema_dense, "ema", index);

  Row row{nullptr, nullptr, ema.data, numel_of(ema), 0, id, in.ema_is_current};
  Kind kind{ema_dtype, ema_dtype};
  bool alike = ema_dense;
  const char* first_list = nullptr;
  const auto add_grad = [&](py::handle object, const char* list) -> void* {
    if (object.is_none()) return nullptr;
    const Label label{list, index, &names, id};
    const dlpack::Tensor t = view_checked(object, label);
    const DType dtype = dtype_of(t, label);
    check_like_ema(t, label, ema);
    if (first_list != nullptr && dtype != kind.grad) {
      type_error(label, std::string("expected the dtype of ") + first_list + "[" + std::to_string(id) + "], got " +
                            dtype_name(t.dtype) + "; both are gradients of one parameter");
    }
    if (ema_dtype != DType::kFloat32 && ema_dtype != dtype) {
      type_error(ema_label, "expected float32 or the gradient's " + dtype_name(t.dtype) + ", got " +
                                dtype_name(ema.dtype) + "; pass dtype=torch.float32 or None to RetainEMA");
    }
    first_list = list;
    kind.grad = dtype;
    const bool contiguous = is_contiguous(t);
    alike = alike && (contiguous == ema_contiguous) && (contiguous || same_strides(t, ema));
    if (!contiguous && std::strcmp(list, "grads") == 0) check_writable(t, label);
    add_extent(extents, t, contiguous || is_dense(t), list, index);
    return t.data;
  };
  row.grad = add_grad(in.grad, "grads");
  if (in.grad.is_none()) out.missing_grads.push_back(index);
  row.retain = add_grad(in.retain, "retain_grads");
  if (!alike && row.numel > 0) out.mismatched_layouts.push_back(index);
  out.rows.push_back(row);
  out.kinds.push_back(kind);
}

// A list as an array of borrowed items: no per-item Python calls on the hot path.
class Items {
 public:
  explicit Items(py::handle sequence, const char* what)
      : fast_(py::reinterpret_steal<py::object>(
            PySequence_Fast(sequence.ptr(), (std::string(what) + ": expected a list of tensors").c_str()))) {
    if (!fast_) throw py::error_already_set();
  }
  size_t size() const { return static_cast<size_t>(PySequence_Fast_GET_SIZE(fast_.ptr())); }
  py::handle operator[](size_t i) const { return PySequence_Fast_GET_ITEM(fast_.ptr(), static_cast<Py_ssize_t>(i)); }

 private:
  py::object fast_;
};

void check_length(size_t found, size_t expected, const char* what) {
  if (found == expected) return;
  throw py::value_error(std::string(what) + ": expected " + std::to_string(expected) +
                        " entries, one per parameter, got " + std::to_string(found));
}

}  // namespace

dlpack::Tensor view_of(py::handle tensor) {
  static const py::object* no_names = new py::none();
  return view_checked(tensor, Label{"tensor", 0, no_names});
}

void* current_stream(int device_id) {
  void* stream = nullptr;
  if (any_api() == nullptr || any_api()->current_work_stream(dlpack::kCUDA, device_id, &stream) != 0) {
    throw py::error_already_set();
  }
  return stream;
}

void* helper_pointer(py::handle tensor, const char* what, uint8_t code, uint8_t bits, int64_t min_numel,
                     dlpack::Device device) {
  const dlpack::Tensor t = view_of(tensor);
  const bool fits = t.dtype.code == code && t.dtype.bits == bits && numel_of(t) >= min_numel && is_contiguous(t) &&
                    t.device.type == device.type && t.device.id == device.id;
  if (!fits) {
    throw py::value_error(std::string(what) + ": expected at least " + std::to_string(min_numel) + " contiguous " +
                          dtype_name({code, bits, 1}) + " on " + device_name(device) + ", got " + shape_name(t) + " " +
                          dtype_name(t.dtype) + " on " + device_name(t.device));
  }
  return t.data;
}

TensorList::TensorList(const py::sequence& tensors) : tensors_(tensors) {
  static const py::object* no_names = new py::none();
  views_.reserve(tensors_.size());
  for (size_t i = 0; i < tensors_.size(); ++i) views_.push_back(view_checked(tensors_[i], Label{"ema", i, no_names}));
}

Capture capture(py::sequence grads, py::object retain, py::object ema, py::object ema_is_current, py::object ids,
                py::object names) {
  const TensorList* known_ema = py::isinstance<TensorList>(ema) ? ema.cast<const TensorList*>() : nullptr;
  const Items grad_items(grads, "grads"), ema_items(known_ema != nullptr ? py::object(py::tuple()) : ema, "ema");
  const size_t count = known_ema != nullptr ? known_ema->size() : ema_items.size();
  check_length(grad_items.size(), count, "grads");
  const bool has_retain = !retain.is_none(), has_ids = !ids.is_none(),
             per_row = !py::isinstance<py::bool_>(ema_is_current);
  const Items retain_items(has_retain ? retain : py::object(py::tuple()), "retain_grads");
  const Items id_items(has_ids ? ids : py::object(py::tuple()), "ids");
  const Items current_items(per_row ? ema_is_current : py::object(py::tuple()), "ema_is_current");
  if (has_retain) check_length(retain_items.size(), count, "retain_grads");
  if (has_ids) check_length(id_items.size(), count, "ids");
  if (per_row) check_length(current_items.size(), count, "ema_is_current");

  Capture out;
  out.device = {dlpack::kCPU, 0};
  out.rows.reserve(count);
  out.kinds.reserve(count);
  std::vector<Extent> extents;
  extents.reserve(3 * count);
  for (size_t i = 0; i < count; ++i) {
    const bool current = per_row ? current_items[i].ptr() == Py_True : ema_is_current.ptr() == Py_True;
    const auto id = has_ids ? id_items[i].cast<uint32_t>() : static_cast<uint32_t>(i);
    const RowInput input{grad_items[i], has_retain ? retain_items[i] : py::handle(Py_None),
                         known_ema != nullptr ? py::handle() : ema_items[i],
                         known_ema != nullptr ? &(*known_ema)[i] : nullptr, current};
    add_row(out, extents, input, i, id, names);
  }
  check_overlap(extents, names);
  return out;
}

}  // namespace gru_fast
