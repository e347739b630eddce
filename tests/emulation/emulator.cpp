// CUDA's execution model on the CPU. A block that is resident is a thread of the CPU, of which one at a time runs: who
// runs next is drawn whenever one waits at a barrier, at an atomic, or now and then. The threads of a block are fibers;
// which of those that are ready runs next is drawn too. How many blocks are resident, in which order they start and how
// often threads yield is drawn for each launch from Options::seed, so that a run repeats.
//
// Ends the process, with a message, where a kernel does what a GPU leaves undefined: threads that wait at different
// barriers, a barrier that some have left behind, warps that exchange without all their lanes.
#include "emulator.h"

#if !defined(__x86_64__)
#error "The emulator switches fibers in assembly of x86-64."
#endif

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {

thread_local unsigned thread_x, block_x, num_blocks;

namespace {

using Random = std::mt19937_64;

Options options;
bool on = true;
std::atomic<uint64_t> num_launches = 0;
std::mutex launched_mutex;
std::vector<Launched> launched;

[[noreturn]] void die(const char* what) {
  fprintf(stderr, "emulated CUDA: %s\n", what);
  abort();
}

// ---- fibers ---------------------------------------------------------------------------------------------------------

// Saves the registers that a call preserves on the stack, leaves its pointer in `from`, goes on at `to`.
extern "C" void gru_fast_emulator_switch(void** from, void* to);
asm(R"(
.text
.local gru_fast_emulator_switch
.type gru_fast_emulator_switch,@function
gru_fast_emulator_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
constexpr int kSavedRegisters = 6;
constexpr size_t kStackBytes = 64 << 10;

// Stacks for all threads of a block; those of blocks that are done serve the next ones.
class Stacks {
 public:
  char* take(unsigned threads) {
    const std::lock_guard lock(mutex_);
    for (auto& [memory, size, is_free] : all_) {
      if (!is_free || size != threads) continue;
      is_free = false;
      return memory;
    }
    void* memory = mmap(nullptr, kStackBytes * threads, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) die("no memory for stacks");
    all_.push_back({static_cast<char*>(memory), threads, false});
    return static_cast<char*>(memory);
  }
  void give_back(char* memory) {
    const std::lock_guard lock(mutex_);
    for (auto& one : all_) one.is_free = one.is_free || one.memory == memory;
  }

 private:
  struct One {
    char* memory;
    unsigned threads;
    bool is_free;
  };
  std::mutex mutex_;
  std::vector<One> all_;
} stacks;

enum class State { kReady, kBarrier, kExchange, kDone };

struct Fiber {
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  State state = State::kReady;
  const void* site = nullptr;  // where it waits
  unsigned exchanges = 0;
  uint64_t brought[2] = {};  // to an exchange; two, since a lane may be one exchange ahead of those that still read
};

// ---- blocks ---------------------------------------------------------------------------------------------------------

// One of the blocks that are resident holds it, and runs.
class Token {
 public:
  Token(unsigned blocks, uint64_t seed) : random_(seed), changed_(blocks) {
    for (unsigned i = 0; i < blocks; ++i) alive_.push_back(i);
    draw();
  }
  void wait(unsigned me) {
    std::unique_lock lock(mutex_);
    changed_[me].wait(lock, [&] { return holder_ == me; });
  }
  void pass(unsigned me) {
    std::unique_lock lock(mutex_);
    draw();
    changed_[me].wait(lock, [&] { return holder_ == me; });
  }
  void leave(unsigned me) {
    const std::lock_guard lock(mutex_);
    std::erase(alive_, me);
    if (!alive_.empty()) draw();
  }

 private:
  void draw() {
    holder_ = alive_[random_() % alive_.size()];
    changed_[holder_].notify_one();
  }
  Random random_;
  std::mutex mutex_;
  std::vector<std::condition_variable> changed_;
  std::vector<unsigned> alive_;
  unsigned holder_ = 0;
};

struct Block {
  const std::function<void()>& body;
  Token& token;
  unsigned id;          // among those that are resident
  unsigned yield_rate;  // a thread yields at one of so many accesses; 0: at none
  Random random;
  std::vector<Fiber> fibers = {};
  void* scheduler = nullptr;  // its stack pointer while a fiber runs
  unsigned running = 0, live = 0;
  bool hands_over = false;
#if defined(__SANITIZE_ADDRESS__)
  const void* scheduler_stack = nullptr;
  size_t scheduler_size = 0;
#endif
};

thread_local Block* current = nullptr;

// AddressSanitizer must know which stack is in use.
void to_scheduler([[maybe_unused]] bool for_good = false) {
  Block& block = *current;
  Fiber& fiber = block.fibers[block.running];
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(for_good ? nullptr : &fake, block.scheduler_stack, block.scheduler_size);
#endif
  gru_fast_emulator_switch(&fiber.stack_pointer, block.scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, &block.scheduler_stack, &block.scheduler_size);
#endif
}

void enter() {
  Block& block = *current;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &block.scheduler_stack, &block.scheduler_size);
#endif
  block.body();
  block.fibers[block.running].state = State::kDone;
  --block.live;
  to_scheduler(true);
  die("a thread runs on after its end");
}

void resume(Block& block, unsigned thread) {
  block.running = thread_x = thread;
  Fiber& fiber = block.fibers[thread];
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, fiber.stack, kStackBytes);
#endif
  gru_fast_emulator_switch(&block.scheduler, fiber.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

void start(Block& block, unsigned threads, char* memory) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(memory, kStackBytes * threads);
#endif
  block.fibers.assign(threads, {});
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& fiber = block.fibers[i];
    fiber.stack = memory + kStackBytes * i;
    void** top = reinterpret_cast<void**>(fiber.stack + kStackBytes);
    *--top = nullptr;  // as if called, which aligns the stack
    *--top = reinterpret_cast<void*>(&enter);
    for (int r = 0; r < kSavedRegisters; ++r) *--top = nullptr;
    fiber.stack_pointer = top;
  }
  block.live = threads;
}

// Lets the warps go on that have all exchanged; whether there were any.
bool release_warps(Block& block) {
  bool any = false;
  for (size_t first = 0; first < block.fibers.size(); first += kWarp) {
    Fiber* const lanes = &block.fibers[first];
    const size_t size = std::min<size_t>(kWarp, block.fibers.size() - first);
    const auto waiting = std::count_if(lanes, lanes + size, [](auto& f) { return f.state == State::kExchange; });
    if (waiting == 0) continue;
    if (waiting != kWarp) die("a warp exchanges without all of its lanes");
    if (std::any_of(lanes, lanes + size, [&](auto& f) { return f.site != lanes->site; })) {
      die("the lanes of a warp exchange in different places");
    }
    for (size_t i = 0; i < size; ++i) lanes[i].state = State::kReady;
    any = true;
  }
  return any;
}

void release_barrier(Block& block) {
  if (block.live != block.fibers.size()) die("a barrier without all threads of the block");
  for (Fiber& fiber : block.fibers) {
    if (fiber.site != block.fibers[0].site) die("the threads of a block wait at different barriers");
    fiber.state = State::kReady;
  }
}

void run(Block& block) {
  std::vector<unsigned> ready;
  while (block.live > 0) {
    ready.clear();
    for (unsigned i = 0; i < block.fibers.size(); ++i) {
      if (block.fibers[i].state == State::kReady) ready.push_back(i);
    }
    if (ready.empty()) {
      if (!release_warps(block)) release_barrier(block);
      continue;
    }
    const auto order = block.random() % 4;
    if (order == 0) std::shuffle(ready.begin(), ready.end(), block.random);
    if (order == 1) std::reverse(ready.begin(), ready.end());
    for (const unsigned thread : ready) {
      resume(block, thread);
      if (block.hands_over || (block.yield_rate > 0 && block.random() % 64 == 0)) {
        block.hands_over = false;
        block.token.pass(block.id);
      }
    }
    if (block.random() % 8 == 0) block.token.pass(block.id);
  }
}

}  // namespace

// ---- what a kernel's thread does ------------------------------------------------------------------------------------

void barrier(const void* site) {
  Fiber& fiber = current->fibers[current->running];
  fiber.site = site;
  fiber.state = State::kBarrier;
  to_scheduler();
}

uint64_t exchange_bits(unsigned mask, uint64_t value, int from, const void* site) {
  if (mask != 0xffffffffu) die("an exchange of some lanes is not emulated");
  Block& block = *current;
  const unsigned me = block.running, turn = block.fibers[me].exchanges++ % 2;
  Fiber& fiber = block.fibers[me];
  fiber.brought[turn] = value;
  fiber.site = site;
  fiber.state = State::kExchange;
  to_scheduler();
  return block.fibers[me / kWarp * kWarp + static_cast<unsigned>(from)].brought[turn];
}

void maybe_yield() {
  if (current != nullptr && current->yield_rate > 0 && current->random() % current->yield_rate == 0) to_scheduler();
}

void hand_over() {
  if (current == nullptr || current->random() % 2 == 0) return;
  current->hands_over = true;
  to_scheduler();
}

// ---- launches -------------------------------------------------------------------------------------------------------

void configure(const Options& wanted) { options = wanted; }
void use(bool wanted) { on = wanted; }
bool is_on() { return on; }
unsigned num_multiprocessors() { return options.multiprocessors; }

void note(const Launched& one) {
  constexpr size_t kMost = 1000;
  const std::lock_guard lock(launched_mutex);
  if (launched.size() < kMost) launched.push_back(one);
}
std::vector<Launched> take_launched() {
  const std::lock_guard lock(launched_mutex);
  return std::exchange(launched, {});
}

void launch(unsigned blocks, unsigned threads, const std::function<void()>& body) {
  if (blocks == 0 || threads == 0 || threads % kWarp != 0) {
    if (threads != 1 || blocks == 0) die("a launch needs blocks, and whole warps or one thread");
  }
  Random random(options.seed * 7919 + num_launches++);
  std::vector<unsigned> order(blocks);
  for (unsigned i = 0; i < blocks; ++i) order[i] = i;
  const auto how = random() % 4;
  if (how == 0) std::shuffle(order.begin(), order.end(), random);
  if (how == 1) std::reverse(order.begin(), order.end());
  const unsigned resident = std::min(blocks, 1 + static_cast<unsigned>(random() % 4));
  constexpr unsigned kRates[] = {0, 0, 1000, 50};
  const unsigned yield_rate = kRates[random() % std::size(kRates)];
  const uint64_t seed = random();
  Token token(resident, random());
  unsigned next = 0;  // whoever holds the token may look
  const auto work = [&](unsigned id) {
    char* const memory = stacks.take(threads);
    token.wait(id);
    while (next < blocks) {
      block_x = order[next++];
      num_blocks = blocks;
      Block block{body, token, id, yield_rate, Random(seed + block_x)};
      current = &block;
      start(block, threads, memory);
      run(block);
      current = nullptr;
    }
    token.leave(id);
    stacks.give_back(memory);
  };
  std::vector<std::thread> workers;
  for (unsigned id = 0; id < resident; ++id) workers.emplace_back(work, id);
  for (std::thread& worker : workers) worker.join();
}

}  // namespace emulator
