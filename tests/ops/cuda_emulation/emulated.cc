// The fibres behind emulate.h, and the kernels as C functions for ctypes.
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "emulate.h"
#include "launch.h"
#include "route.h"

emulated::Index threadIdx, blockIdx;

namespace {

constexpr size_t kSharedBytes = 48 << 10, kGuardBytes = 4 << 10, kStackBytes = 64 << 10;
constexpr unsigned char kPoison = 0xff;  // as a double, NaN

}  // namespace

namespace coda {
double shared[(kSharedBytes + kGuardBytes) / sizeof(double)];
}

namespace emulated {
namespace {

enum class State { kReady, kAtBlock, kAtWarp, kDone };

struct Fibre {
  ucontext_t context;
  jmp_buf here;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  State state = State::kReady;
  int turn = 0;
  bool started = false;
};

std::vector<Fibre> fibres;
std::vector<uint64_t> handed[2];  // by lanes
jmp_buf scheduler;
ucontext_t first_entry;
size_t current = 0;
void (*job)(void*) = nullptr;
void* job_data = nullptr;
std::mt19937 order(0);

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "emulated CUDA: %s\n", what);
  std::abort();
}

void leave(State state) {
  Fibre& fibre = fibres[current];
  fibre.state = state;
  if (_setjmp(fibre.here) == 0) _longjmp(scheduler, 1);
}

void live() {
  for (;;) {
    job(job_data);
    leave(State::kDone);
  }
}

void resume(size_t thread) {
  Fibre& fibre = fibres[thread];
  current = thread;
  threadIdx.x = static_cast<unsigned>(thread);
  if (_setjmp(scheduler) != 0) return;
  if (fibre.started) _longjmp(fibre.here, 1);
  fibre.started = true;
  getcontext(&fibre.context);
  fibre.context.uc_stack.ss_sp = fibre.stack.get();
  fibre.context.uc_stack.ss_size = kStackBytes;
  makecontext(&fibre.context, live, 0);
  swapcontext(&first_entry, &fibre.context);
}

// Let go of those in a range who wait for each other, once nobody there does anything else.
bool release(size_t first, size_t last, State waiting) {
  bool any = false;
  for (size_t i = first; i < last; ++i) {
    if (fibres[i].state != waiting && fibres[i].state != State::kDone) return false;
    any |= fibres[i].state == waiting;
  }
  for (size_t i = first; i < last; ++i) {
    if (fibres[i].state == waiting) fibres[i].state = State::kReady;
  }
  return any;
}

// Each warp, in an order drawn anew, runs as far as it can alone, its lanes in an order drawn anew at each of its barriers.
void run_block(size_t threads) {
  std::vector<size_t> warps(threads / 32), lanes(32);
  std::iota(warps.begin(), warps.end(), 0);
  std::iota(lanes.begin(), lanes.end(), 0);
  for (Fibre& fibre : fibres) fibre.state = State::kReady;
  do {
    std::shuffle(warps.begin(), warps.end(), order);
    for (const size_t warp : warps) {
      do {
        std::shuffle(lanes.begin(), lanes.end(), order);
        for (const size_t lane : lanes) {
          if (fibres[warp * 32 + lane].state == State::kReady) resume(warp * 32 + lane);
        }
      } while (release(warp * 32, warp * 32 + 32, State::kAtWarp));
    }
  } while (release(0, threads, State::kAtBlock));
  for (const Fibre& fibre : fibres) {
    if (fibre.state != State::kDone) fail("threads wait for each other at different barriers");
  }
}

}  // namespace

void wait_for_block() { leave(State::kAtBlock); }
void wait_for_warp() { leave(State::kAtWarp); }

void exchange(uint64_t bits, int from_lane, uint64_t& found) {
  const size_t thread = current;
  auto& buffer = handed[fibres[thread].turn];
  fibres[thread].turn ^= 1;
  buffer[thread] = bits;
  wait_for_warp();
  found = buffer[thread / 32 * 32 + static_cast<size_t>(from_lane)];
}

cudaError_t run_blocks(int64_t blocks, int threads, size_t shared_bytes, void (*run)(void*), void* data) {
  if (blocks < 1 || blocks > INT32_MAX || shared_bytes > kSharedBytes) return cudaErrorInvalidConfiguration;
  if (fibres.empty()) fibres = std::vector<Fibre>(static_cast<size_t>(threads));
  for (auto& buffer : handed) buffer.resize(fibres.size());
  job = run;
  job_data = data;
  for (int64_t block = 0; block < blocks; ++block) {
    blockIdx.x = static_cast<unsigned>(block);
    std::memset(coda::shared, kPoison, sizeof coda::shared);
    run_block(fibres.size());
    const auto* bytes = reinterpret_cast<const unsigned char*>(coda::shared);
    if (std::any_of(bytes + shared_bytes, bytes + sizeof coda::shared, [](unsigned char b) { return b != kPoison; })) {
      fail("a block wrote behind its shared memory");
    }
  }
  return cudaSuccess;
}

}  // namespace emulated

extern "C" {

void take_turns(unsigned seed) { emulated::order.seed(seed); }

int64_t most_shared_tokens() { return coda::kMostSharedTokens; }

int route(const float* scores, const bool* mask, int64_t* indices, float* gates, bool* used, int64_t batch, int64_t tokens,
          int64_t slots, int64_t numerator, int64_t denominator, const double* epsilons, int64_t iterations) {
  return coda::launch_route(scores, mask, indices, gates, used, batch, tokens, slots, numerator, denominator,
                            {epsilons, epsilons + iterations}, nullptr);
}

int take(const void* x, const int64_t* indices, void* taken, int64_t batch, int64_t tokens, int64_t slots, int64_t bytes) {
  return coda::launch_take(x, indices, taken, batch, tokens, slots, bytes, nullptr);
}

int put_float(float* out, const float* base, const int64_t* indices, const float* gates, const float* now,
              const float* before, int64_t batch, int64_t tokens, int64_t slots, int64_t width) {
  return coda::launch_put(out, base, indices, gates, now, before, batch, tokens, slots, width, nullptr);
}

int put_half(__half* out, const __half* base, const int64_t* indices, const float* gates, const __half* now,
             const __half* before, int64_t batch, int64_t tokens, int64_t slots, int64_t width) {
  return coda::launch_put(out, base, indices, gates, now, before, batch, tokens, slots, width, nullptr);
}

}
