// What a tensor of a Python list has to be, and the words for one that is not: dtype, shape, device, layout, overlap.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

#include "dlpack_abi.h"
#include "pipeline.h"

namespace gru_fast {

namespace py = pybind11;

// "grads[17] "layers.3.weight"": which tensor a message is about.
struct Label {
  const char* list;
  size_t index;             // in the list we were given, and in names
  const py::object* names;  // None or one name per parameter; null: none
  size_t shown = index;     // in the list the user gave: differs where rows were left out

  std::string text() const;
};

[[noreturn]] void value_error(const Label& where, const std::string& what);
[[noreturn]] void type_error(const Label& where, const std::string& what);

std::string device_name(dlpack::Device device);
std::string dtype_name(dlpack::DataType dtype);
std::string shape_name(const dlpack::Tensor& t);

// Lends a view of a torch.Tensor: valid while the tensor lives and is not resized.
dlpack::Tensor view_checked(py::handle object, const Label& where);

// The exchange table of the tensor type that was seen last; null before the first one.
const dlpack::ExchangeApi* known_api();

DType dtype_of(const dlpack::Tensor& t, const Label& where);
int64_t numel_of(const dlpack::Tensor& t);
bool is_contiguous(const dlpack::Tensor& t);
bool is_dense(const dlpack::Tensor& t);  // one element a place, no gaps: any permutation of a contiguous tensor
bool same_strides(const dlpack::Tensor& a, const dlpack::Tensor& b);

// The tensor that the others of a row are held against, as messages name it.
struct Anchor {
  const dlpack::Tensor& tensor;
  const char* name;         // "its EMA"
  const char* mend_device;  // what to do about another device
};

void check_like(const dlpack::Tensor& t, const Label& where, const Anchor& anchor);
void check_same_device(const dlpack::Tensor& t, const Label& where, dlpack::Device expected);
void check_pageable(const dlpack::Tensor& t, const Label& where);  // not pinned host memory

// An expanded tensor has one element for many places: it can be read, not written.
void check_writable(const dlpack::Tensor& t, const Label& where);

// The memory of the tensors of one call. A tensor that is written must not share memory with another: different threads
// would read and write it. Those that are only read may share among themselves. A view with gaps may lie around another
// tensor without sharing an element with it, so of two such views only those that start at the same address are
// refused.
enum class Access { kRead, kWrite };

class Extents {
 public:
  explicit Extents(size_t expected) { extents_.reserve(expected); }
  void add(const dlpack::Tensor& t, int64_t numel, bool dense, Access access, const Label& label);
  void check(const py::object& names);

 private:
  struct Extent {
    uintptr_t begin, end;
    const char* list;
    uint32_t index, shown;  // as in Label
    bool dense;
    bool read_only;
  };
  uint64_t fingerprint() const;

  std::vector<Extent> extents_;
};

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

void check_length(size_t found, size_t expected, const char* what);

}  // namespace gru_fast
