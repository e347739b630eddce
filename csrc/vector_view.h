// Python lists of tensors -> checked rows of task_vector.h, of `blend`, of optim.h and of sets.h.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "dlpack_abi.h"
#include "optim.h"
#include "pipeline.h"
#include "sets.h"
#include "task_vector.h"

namespace gru_fast {

namespace py = pybind11;

template <class RowT, class KindT>
struct VectorCapture {
  std::vector<RowT> rows;
  std::vector<KindT> kinds;
  dlpack::Device device{dlpack::kCPU, 0};
  // Rows whose tensors are not laid out alike in memory; they must be handed in again as copies that are.
  std::vector<size_t> mismatched_layouts;
};

// Every list has one entry per parameter; entries of `total` and `own`, or the lists, may be None. `mean` is float32,
// gradients float32 or the parameter's dtype. `names`: None or one name per parameter, for messages. Raises TypeError
// or ValueError naming the culprit.
VectorCapture<VectorRow, VectorKind> capture_vectors(py::sequence learned, py::sequence origin, py::object total,
                                                     py::object own, py::sequence mean, py::object names);

// A list and what messages call it.
struct NamedList {
  py::sequence tensors;
  const std::string& name;
};

// x has the dtype of out, y that or float32. Row::grad is out, Row::retain x, Row::ema y.
VectorCapture<Row, Kind> capture_blend(py::sequence out, const NamedList& x, const NamedList& y, py::object names);

// Moments are float32, or bfloat16 as their parameter; both of a row alike. Entries of `grads` and `ema`, or the lists,
// may be None. `rounding_keys`: None or one key per parameter (default: its position).
VectorCapture<AdamWRow, AdamWKind> capture_adamw(py::sequence params, py::object grads, py::sequence exp_avg,
                                                 py::sequence exp_avg_sq, py::object ema, py::object names,
                                                 py::object rounding_keys);

// `vectors`: one list or more, at most kMaxVectors, each float32 or the gradient's dtype. Entries of `grads` may be None.
VectorCapture<SetRow, SetKind> capture_sets(py::sequence grads, py::sequence vectors, py::object names);

}  // namespace gru_fast
