#include "vector_view.h"

#include <iterator>
#include <string>

#include "tensor_checks.h"

namespace gru_fast {
namespace {

constexpr const char* kMendDevice = "move one of them";

// One parameter: its first tensor, and the others held against it.
class RowReader {
 public:
  RowReader(py::handle first, const Label& label, Access access, Extents& extents)
      : extents_(extents), names_(*label.names), index_(label.index), first_(view_checked(first, label)) {
    check_pageable(first_, label);
    dtype_ = dtype_of(first_, label);
    alike_ = is_dense(first_);
    add(first_, label, access);
  }

  const dlpack::Tensor& first() const { return first_; }
  DType dtype() const { return dtype_; }
  bool is_alike() const { return alike_ || numel_of(first_) == 0; }

  // Another tensor of the row, of one of two dtypes (DType::kFloat32 beside `dtype()` unless it is asked for alone).
  struct Part {
    void* data = nullptr;
    DType dtype;
  };
  enum class Allowed { kSame, kFloat32, kSameOrFloat32 };

  Part other(py::handle object, const char* list, Access access, Allowed allowed, const char* first_name) {
    const Label label{list, index_, &names_};
    const dlpack::Tensor t = view_checked(object, label);
    const DType dtype = dtype_of(t, label);
    check_like(t, label, {first_, first_name, kMendDevice});
    const bool fits =
        (allowed != Allowed::kFloat32 && dtype == dtype_) || (allowed != Allowed::kSame && dtype == DType::kFloat32);
    if (!fits) type_error(label, "expected " + words_of(allowed, first_name) + ", got " + dtype_name(t.dtype));
    hold(t, label, access);
    return {t.data, dtype};
  }

  // One that is read, of any dtype.
  Part like(py::handle object, const char* list, const char* first_name) {
    const Label label{list, index_, &names_};
    const dlpack::Tensor t = view_checked(object, label);
    const DType dtype = dtype_of(t, label);
    check_like(t, label, {first_, first_name, kMendDevice});
    hold(t, label, Access::kRead);
    return {t.data, dtype};
  }

  // The same of a gradient that may be missing; its dtype then is the row's.
  Part gradient(py::handle object, const char* list) {
    if (object.is_none()) return {nullptr, dtype_};
    return other(object, list, Access::kRead, Allowed::kSameOrFloat32, "its parameter");
  }

 private:
  void hold(const dlpack::Tensor& t, const Label& label, Access access) {
    alike_ = alike_ && is_contiguous(t) == is_contiguous(first_) && (is_contiguous(t) || same_strides(t, first_));
    add(t, label, access);
  }

  void add(const dlpack::Tensor& t, const Label& label, Access access) {
    if (access == Access::kWrite) check_writable(t, label);
    extents_.add(t, numel_of(t), is_dense(t), access, label);
  }

  std::string words_of(Allowed allowed, const char* first_name) const {
    if (allowed == Allowed::kFloat32 || dtype_ == DType::kFloat32) return "float32";
    const std::string same = dtype_name(first_.dtype) + " as " + first_name;
    return allowed == Allowed::kSame ? same : "float32, or " + same;
  }

  Extents& extents_;
  const py::object& names_;
  size_t index_;
  dlpack::Tensor first_;
  DType dtype_;
  bool alike_;
};

// A list of gradients that may be None itself.
class OptionalItems {
 public:
  OptionalItems(const py::object& list, const char* what, size_t count)
      : items_(list.is_none() ? py::object(py::tuple()) : list, what), is_given_(!list.is_none()) {
    if (is_given_) check_length(items_.size(), count, what);
  }
  py::handle operator[](size_t i) const { return is_given_ ? items_[i] : py::handle(Py_None); }

 private:
  Items items_;
  bool is_given_;
};

template <class RowT, class KindT>
void append(VectorCapture<RowT, KindT>& out, const RowT& row, const KindT& kind, const RowReader& reader) {
  if (!reader.is_alike()) out.mismatched_layouts.push_back(out.rows.size());
  out.rows.push_back(row);
  out.kinds.push_back(kind);
}

// Reads rows one after the other: read(i, label of the first tensor, extents), which returns the reader of the row.
template <class RowT, class KindT, class Read>
VectorCapture<RowT, KindT> capture_rows(size_t count, size_t lists, const char* first_list, const py::object& names,
                                        Read&& read) {
  VectorCapture<RowT, KindT> out;
  out.rows.reserve(count);
  out.kinds.reserve(count);
  Extents extents(lists * count);
  for (size_t i = 0; i < count; ++i) {
    const Label label{first_list, i, &names};
    const RowReader reader = read(i, label, extents, out);
    if (i == 0) out.device = reader.first().device;
    check_same_device(reader.first(), label, out.device);
  }
  extents.check(names);
  return out;
}

}  // namespace

VectorCapture<VectorRow, VectorKind> capture_vectors(py::sequence learned, py::sequence origin, py::object total,
                                                     py::object own, py::sequence mean, py::object names) {
  const Items learned_items(learned, "learned"), origin_items(origin, "origin"), mean_items(mean, "mean");
  const size_t count = learned_items.size();
  check_length(origin_items.size(), count, "origin");
  check_length(mean_items.size(), count, "mean");
  const OptionalItems total_items(total, "total", count), own_items(own, "own", count);
  using Allowed = RowReader::Allowed;
  return capture_rows<VectorRow, VectorKind>(
      count, 5, "params", names, [&](size_t i, const Label& label, Extents& extents, auto& out) {
        RowReader row(learned_items[i], label, Access::kWrite, extents);
        const auto start = row.other(origin_items[i], "origin", Access::kRead, Allowed::kSame, "its parameter");
        const auto all = row.gradient(total_items[i], "total"), unit = row.gradient(own_items[i], "own");
        const auto sum = row.other(mean_items[i], "mean", Access::kWrite, Allowed::kFloat32, "its parameter");
        append(out,
               VectorRow{row.first().data, start.data, all.data, unit.data, static_cast<float*>(sum.data),
                         numel_of(row.first()), 0},
               VectorKind{row.dtype(), all.dtype, unit.dtype}, row);
        return row;
      });
}

VectorCapture<Row, Kind> capture_blend(py::sequence out_list, const NamedList& x, const NamedList& y,
                                       py::object names) {
  const char *x_name = x.name.c_str(), *y_name = y.name.c_str();
  const Items out_items(out_list, "params"), x_items(x.tensors, x_name), y_items(y.tensors, y_name);
  const size_t count = out_items.size();
  check_length(x_items.size(), count, x_name);
  check_length(y_items.size(), count, y_name);
  using Allowed = RowReader::Allowed;
  return capture_rows<Row, Kind>(
      count, 3, "params", names, [&](size_t i, const Label& label, Extents& extents, auto& out) {
        RowReader row(out_items[i], label, Access::kWrite, extents);
        const auto left = row.other(x_items[i], x_name, Access::kRead, Allowed::kSame, "its parameter");
        const auto right = row.other(y_items[i], y_name, Access::kRead, Allowed::kSameOrFloat32, "its parameter");
        append(out, Row{row.first().data, left.data, right.data, numel_of(row.first()), 0, static_cast<uint32_t>(i), 1},
               Kind{row.dtype(), right.dtype}, row);
        return row;
      });
}

VectorCapture<AdamWRow, AdamWKind> capture_adamw(py::sequence params, py::object grads, py::sequence exp_avg,
                                                 py::sequence exp_avg_sq, py::object ema, py::object names,
                                                 py::object rounding_keys) {
  const Items param_items(params, "params"), first_items(exp_avg, "exp_avg"), second_items(exp_avg_sq, "exp_avg_sq");
  const size_t count = param_items.size();
  check_length(first_items.size(), count, "exp_avg");
  check_length(second_items.size(), count, "exp_avg_sq");
  const OptionalItems grad_items(grads, "grads", count), ema_items(ema, "ema", count);
  const OptionalItems keys(rounding_keys, "rounding_keys", count);
  using Allowed = RowReader::Allowed;
  return capture_rows<AdamWRow, AdamWKind>(
      count, 5, "params", names, [&](size_t i, const Label& label, Extents& extents, auto& out) {
        RowReader row(param_items[i], label, Access::kWrite, extents);
        const auto moments = row.dtype() == DType::kFloat16 ? Allowed::kFloat32 : Allowed::kSameOrFloat32;
        const auto first = row.other(first_items[i], "exp_avg", Access::kWrite, moments, "its parameter");
        const auto second = row.other(second_items[i], "exp_avg_sq", Access::kWrite, moments, "its parameter");
        if (second.dtype != first.dtype) {
          type_error(Label{"exp_avg_sq", i, &names}, "expected the dtype of exp_avg, got another");
        }
        void* grad = nullptr;
        if (!grad_items[i].is_none()) {
          grad = row.other(grad_items[i], "grads", Access::kWrite, Allowed::kSame, "its parameter").data;
        }
        const auto average = row.gradient(ema_items[i], "ema");
        const auto key = keys[i].is_none() ? static_cast<int64_t>(i) : keys[i].template cast<int64_t>();
        append(out,
               AdamWRow{row.first().data, grad, first.data, second.data, average.data, numel_of(row.first()), 0,
                        static_cast<uint32_t>(key), static_cast<uint32_t>(i)},
               AdamWKind{row.dtype(), first.dtype, average.dtype}, row);
        return row;
      });
}

VectorCapture<SetRow, SetKind> capture_sets(py::sequence grads, py::sequence vectors, py::object names) {
  static constexpr const char* kLists[] = {"sets[0]", "sets[1]", "sets[2]", "sets[3]",
                                           "sets[4]", "sets[5]", "sets[6]", "sets[7]"};
  static_assert(std::size(kLists) == kMaxVectors);
  const Items grad_items(grads, "grads"), lists(vectors, "sets");
  const size_t count = grad_items.size(), num_vectors = lists.size();
  if (num_vectors < 1 || num_vectors > kMaxVectors) {
    throw py::value_error("sets: expected 1 to " + std::to_string(kMaxVectors) + " lists, got " +
                          std::to_string(num_vectors));
  }
  std::vector<Items> vector_items;
  for (size_t j = 0; j < num_vectors; ++j) {
    vector_items.emplace_back(lists[j], kLists[j]);
    check_length(vector_items[j].size(), count, kLists[j]);
  }
  using Allowed = RowReader::Allowed;
  return capture_rows<SetRow, SetKind>(
      count, 1 + num_vectors, kLists[0], names, [&](size_t i, const Label& label, Extents& extents, auto& out) {
        const bool has_grad = !grad_items[i].is_none();
        const Label first{has_grad ? "grads" : label.list, i, &names};
        RowReader row(has_grad ? grad_items[i] : vector_items[0][i], first, has_grad ? Access::kWrite : Access::kRead,
                      extents);
        SetRow found{};
        found.grad = has_grad ? row.first().data : nullptr;
        found.numel = numel_of(row.first());
        found.grad_dtype = row.dtype();
        for (size_t j = 0; j < num_vectors; ++j) {
          if (j == 0 && !has_grad) {
            found.vectors[0] = row.first().data;
            found.is_float32 |= row.dtype() == DType::kFloat32 ? 1u : 0u;
            continue;
          }
          // Without a gradient the vectors alone say what dtype there is beside float32.
          const bool any = !has_grad && row.dtype() == DType::kFloat32;
          const auto part = any ? row.like(vector_items[j][i], kLists[j], kLists[0])
                                : row.other(vector_items[j][i], kLists[j], Access::kRead, Allowed::kSameOrFloat32,
                                            has_grad ? "its gradient" : kLists[0]);
          found.vectors[j] = part.data;
          if (part.dtype == DType::kFloat32) {
            found.is_float32 |= static_cast<uint8_t>(1u << j);
          } else {
            if (any && found.grad_dtype != DType::kFloat32 && found.grad_dtype != part.dtype) {
              type_error({kLists[j], i, &names},
                         "expected float32 or the 16-bit dtype of the sets before, got the other");
            }
            found.grad_dtype = part.dtype;
          }
        }
        append(out, found, SetKind{}, row);
        return row;
      });
}

}  // namespace gru_fast
