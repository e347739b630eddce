#include "tensor_checks.h"

#include <algorithm>
#include <array>
#include <utility>

namespace gru_fast {

// ---- words ----------------------------------------------------------------------------------------------------------

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

std::string Label::text() const {
  std::string out = std::string(list) + "[" + std::to_string(shown) + "]";
  if (names != nullptr && !names->is_none())
    out += " \"" + py::str((*names)[py::int_(index)]).cast<std::string>() + "\"";
  return out;
}

void value_error(const Label& where, const std::string& what) { throw py::value_error(where.text() + ": " + what); }
void type_error(const Label& where, const std::string& what) { throw py::type_error(where.text() + ": " + what); }

// ---- views ----------------------------------------------------------------------------------------------------------

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

const dlpack::ExchangeApi*& last_api() {
  static const dlpack::ExchangeApi* api = nullptr;
  return api;
}

bool same_shape(const dlpack::Tensor& a, const dlpack::Tensor& b) {
  bool same = a.ndim == b.ndim;
  for (int i = 0; same && i < a.ndim; ++i)
    same = a.shape[i] == b.shape[i];  // memcmp costs more than one or two of these
  return same;
}

}  // namespace

const dlpack::ExchangeApi* known_api() { return last_api(); }

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

bool is_contiguous(const dlpack::Tensor& t) {
  if (t.strides == nullptr) return true;
  int64_t expected = 1;
  for (int i = t.ndim - 1; i >= 0; --i) {
    if (t.shape[i] != 1 && t.strides[i] != expected) return false;
    expected *= t.shape[i];
  }
  return true;
}

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
  last_api() = api;
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

// ---- checks ---------------------------------------------------------------------------------------------------------

void check_like(const dlpack::Tensor& t, const Label& where, const Anchor& anchor) {
  if (!same_shape(t, anchor.tensor)) {
    value_error(where, "expected shape " + shape_name(anchor.tensor) + " as " + anchor.name + ", got " + shape_name(t) +
                           "; give the lists in the order of the parameters");
  }
  if (t.device.type != anchor.tensor.device.type || t.device.id != anchor.tensor.device.id) {
    value_error(where, "expected " + device_name(anchor.tensor.device) + " as " + anchor.name + ", got " +
                           device_name(t.device) + "; " + anchor.mend_device);
  }
}

void check_same_device(const dlpack::Tensor& t, const Label& where, dlpack::Device expected) {
  if (t.device.type == expected.type && t.device.id == expected.id) return;
  value_error(where, "expected " + device_name(expected) + " as " + where.list + "[0], got " + device_name(t.device) +
                         "; one call works on one device");
}

void check_pageable(const dlpack::Tensor& t, const Label& where) {
  if (t.device.type != dlpack::kCUDAHost) return;
  value_error(where, "expected cpu or cuda memory, got pinned host memory; pass a clone(), which is not pinned");
}

void check_writable(const dlpack::Tensor& t, const Label& where) {
  for (int i = 0; t.strides != nullptr && i < t.ndim; ++i) {
    if (t.shape[i] > 1 && t.strides[i] == 0) {
      value_error(where, "expected one element for each place, got stride 0 in dimension " + std::to_string(i) +
                             " of " + shape_name(t) + " (an expanded tensor); make it .contiguous()");
    }
  }
}

void check_length(size_t found, size_t expected, const char* what) {
  if (found == expected) return;
  throw py::value_error(std::string(what) + ": expected " + std::to_string(expected) +
                        " entries, one per parameter, got " + std::to_string(found));
}

// ---- overlap --------------------------------------------------------------------------------------------------------

namespace {

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

}  // namespace

void Extents::add(const dlpack::Tensor& t, int64_t numel, bool dense, Access access, const Label& label) {
  const int64_t item = t.dtype.bits / 8;
  int64_t last = numel - 1;
  if (last < 0) return;
  if (!dense) {
    last = 0;
    for (int i = 0; i < t.ndim; ++i) last += (t.shape[i] - 1) * t.strides[i];
  }
  const auto begin = reinterpret_cast<uintptr_t>(t.data);
  extents_.push_back({begin, begin + static_cast<uintptr_t>((last + 1) * item), label.list,
                      static_cast<uint32_t>(label.index), static_cast<uint32_t>(label.shown), dense,
                      access == Access::kRead});
}

uint64_t Extents::fingerprint() const {
  uint64_t hash = extents_.size();
  for (const Extent& e : extents_) {
    const uint64_t item = e.begin * 0x9e3779b97f4a7c15ull + e.end * 4 + (e.dense ? 1 : 0) + (e.read_only ? 2 : 0);
    hash = (hash ^ (hash >> 31) ^ item) * 0xbf58476d1ce4e5b9ull;
  }
  return hash | 1;  // never the 0 that empty slots hold
}

void Extents::check(const py::object& names) {
  static PassedBefore passed;
  const uint64_t known = fingerprint();
  if (passed.contains(known)) return;
  std::sort(extents_.begin(), extents_.end(), [](const Extent& a, const Extent& b) { return a.begin < b.begin; });
  const Extent* previous = nullptr;
  const Extent* farthest[2] = {};  // of the dense ones so far, the one that ends last: written, only read
  for (const Extent& extent : extents_) {
    const Extent* other = nullptr;
    for (const Extent* candidate : farthest) {
      const bool both_read = extent.read_only && candidate == farthest[1];
      if (candidate != nullptr && extent.begin < candidate->end && !both_read) other = candidate;
    }
    if (previous != nullptr && extent.begin == previous->begin && !(extent.read_only && previous->read_only)) {
      other = previous;
    }
    if (other != nullptr) {
      const Label first{other->list, other->index, &names, other->shown};
      const Label second{extent.list, extent.index, &names, extent.shown};
      value_error(second, "expected memory of its own, but it overlaps " + first.text() +
                              "; clone() one of them, and list a tied parameter once");
    }
    const Extent*& last = farthest[extent.read_only ? 1 : 0];
    if (extent.dense && (last == nullptr || extent.end > last->end)) last = &extent;
    previous = &extent;
  }
  passed.add(known);
}

}  // namespace gru_fast
