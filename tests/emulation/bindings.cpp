// gru_fast._core.emulation, which only a build with GRU_FAST_EMULATE has.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <utility>
#include <vector>

#include "emulator.h"

namespace gru_fast {

void bind_emulation(pybind11::module_& core) {
  using pybind11::arg;
  auto m = core.def_submodule("emulation", "The CUDA kernels on tensors of the CPU.");
  m.def(
      "configure",
      [](unsigned multiprocessors, uint64_t seed) {
        emulator::configure({.multiprocessors = multiprocessors, .seed = seed});
      },
      "The device, and what interleavings are drawn from. The first step of a process fixes its multiprocessors.",
      arg("multiprocessors"), arg("seed"));
  m.def(
      "take_launched",
      [] {
        std::vector<std::pair<unsigned, size_t>> out;
        for (const auto& [blocks, bytes] : emulator::take_launched()) out.emplace_back(blocks, bytes);
        return out;
      },
      "What has been launched since the last call: blocks, and bytes of parameters.");
  m.def("use", &emulator::use, "Whether the kernels of CUDA or those of the CPU serve the tables made from now on.",
        arg("on"));
}

}  // namespace gru_fast
