// The part of gru_fast._core that sets.h is called through.
#pragma once

#include <pybind11/pybind11.h>

namespace gru_fast {

void bind_sets(pybind11::module_& module);

}  // namespace gru_fast
