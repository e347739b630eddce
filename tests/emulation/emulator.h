// Runs the blocks and threads of a CUDA kernel on the CPU, in an order drawn at random; see emulator.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

namespace emulator {

inline constexpr unsigned kWarp = 32;

extern thread_local unsigned thread_x, block_x, num_blocks;  // of the thread that runs

struct Options {
  unsigned multiprocessors = 2;  // the grid of a launch is at most four blocks for each; ask no kernel before it is set
  uint64_t seed = 1;
};
void configure(const Options& options);

// For A/B tests: whether the kernels of csrc/cuda or those of csrc/cpu serve the tensors of the CPU.
void use(bool on);
bool is_on();

// What has been launched since the last call, in its order; of more than a few the first ones alone.
struct Launched {
  unsigned blocks;
  size_t parameter_bytes;  // which a launch copies
};
void note(const Launched& launched);
std::vector<Launched> take_launched();

unsigned num_multiprocessors();
void launch(unsigned blocks, unsigned threads, const std::function<void()>& body);

// What the running thread does. `site`: where in the kernel, which must be the same place for all that take part.
void barrier(const void* site);
void maybe_yield();
void hand_over();
uint64_t exchange_bits(unsigned mask, uint64_t value, int from, const void* site);

// The `value` that lane `from` of the warp brought.
template <class T>
T exchange(unsigned mask, T value, int from, const void* site) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = exchange_bits(mask, bits, from, site);
  memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace emulator
