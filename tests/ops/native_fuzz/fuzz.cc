// Calls of the kernels' loops with random and adversarial sizes and numbers, to be compiled with sanitizers.
//
//   fuzz SEED CALLS
//
// Every input and output is a block of its own, so that the sanitizer sees a step beside it. Each call is made twice, over
// outputs and working memory that hold different garbage: what comes out must be the same.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <set>
#include <vector>

#include "adapter.h"
#include "attention.h"
#include "gelu.h"
#include "int8_linear.h"
#include "norm.h"
#include "route.h"
#include "tokens.h"

namespace {

using namespace coda;
using Floats = std::vector<float>;

std::mt19937_64 rng;

int64_t below(int64_t count) { return static_cast<int64_t>(rng() % static_cast<uint64_t>(count)); }

template <typename T, size_t N>
T one_of(const T (&choices)[N]) {
  return choices[below(N)];
}

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "fuzz: %s\n", what);
  std::abort();
}

// Sizes about the widths of registers, panels and blocks.
int64_t size(int64_t least = 1) {
  const int64_t sizes[] = {0, 1, 2, 3, 4, 6, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 48, 63, 64, 65, 80};
  return std::max(least, one_of(sizes));
}

// Numbers of a few kinds: tame, huge, tiny, all alike, or any bits at all.
Floats numbers(int64_t count) {
  Floats out(static_cast<size_t>(count));
  const int64_t kind = below(6);
  const float alike = static_cast<float>(below(7)) - 3.0f;
  const float odd[] = {0.0f, -0.0f, 1e-45f, -1e-38f, 3e38f, -3e38f, std::numeric_limits<float>::infinity(),
                       -std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()};
  for (float& x : out) {
    const float tame = static_cast<float>(static_cast<int32_t>(rng())) * 1e-9f;
    const uint32_t bits = static_cast<uint32_t>(rng());
    switch (kind) {
      case 0: x = alike; break;
      case 1: x = tame * 1e28f; break;
      case 2: x = below(4) == 0 ? one_of(odd) : tame; break;
      case 3: std::memcpy(&x, &bits, sizeof x); break;
      default: x = tame;
    }
  }
  return out;
}

template <typename T>
std::vector<T> bytes(int64_t count) {
  std::vector<T> out(static_cast<size_t>(count));
  for (T& x : out) x = static_cast<T>(rng());
  return out;
}

// Garbage in all that a vector has room for.
template <typename Vector>
void poison(Vector& vector, int garbage) {
  if (!vector.empty()) std::memset(vector.data(), garbage, vector.size() * sizeof(vector[0]));
}

// Call twice over outputs full of different garbage, and compare all bytes that come out.
template <typename Call>
Floats twice(int64_t count, const Call& call) {
  Floats made[2];
  for (int turn = 0; turn < 2; ++turn) {
    made[turn].resize(static_cast<size_t>(count));
    poison(made[turn], turn == 0 ? 0xff : 0x7b);
    call(made[turn].data(), turn == 0 ? 0xff : 0x7b);
  }
  for (int64_t i = 0; i < count; ++i) {
    const float a = made[0][static_cast<size_t>(i)], b = made[1][static_cast<size_t>(i)];
    if (a != b && !(a != a && b != b)) fail("an output holds what was there before");
  }
  return made[0];
}

void fuzz_route() {
  static RouteScratch scratch;
  struct Ratio { int64_t p, q; };
  const Ratio ratios[] = {{1, 1}, {2, 1}, {7, 2}, {100, 1}, {1001, 1000}, {2147483647, 1}, {2147483647, 2147483646}};
  const auto [p, q] = one_of(ratios);
  const int64_t tokens = size(), slots = slot_count(tokens, p, q);
  const float starts[] = {4.0f, 1e-30f, 1e30f}, decays[] = {0.7f, 1.0f, 1e-20f}, finals[] = {0.03f, 1.0f, 1e-38f, 1e30f};
  const auto schedule = epsilons(1 + below(20), one_of(starts), one_of(decays), one_of(finals));
  const Floats scores = numbers(tokens);
  const auto drawn = bytes<uint8_t>(tokens);
  std::vector<uint8_t> mask(drawn.size());
  const uint64_t share = rng() % 257;
  for (size_t i = 0; i < mask.size(); ++i) mask[i] = drawn[i] < share;
  std::vector<int64_t> indices(static_cast<size_t>(slots), -1);
  std::vector<uint8_t> used(static_cast<size_t>(slots), 0xa5);
  twice(slots, [&](float* gates, int garbage) {
    poison(scratch.valid, garbage), poison(scratch.keys, garbage), poison(scratch.chosen, garbage);
    route_row(scores.data(), reinterpret_cast<const bool*>(mask.data()), tokens, slots, p, q, schedule, scratch,
              indices.data(), gates, reinterpret_cast<bool*>(used.data()));
  });
  int64_t valid = 0, routed = 0;
  for (const uint8_t one : mask) valid += one;
  for (const uint8_t one : used) {
    if (one > 1) fail("a slot is neither used nor idle");
    routed += one;
  }
  if (routed != slot_count(valid, p, q)) fail("as many slots as k are not used");
  const std::set<int64_t> distinct(indices.begin(), indices.end());
  if (static_cast<int64_t>(distinct.size()) != slots || *distinct.begin() < 0 || *distinct.rbegin() >= tokens) {
    fail("slots are no distinct positions of the row");
  }
}

void fuzz_tokens() {
  const int64_t width = size();
  const Floats row = numbers(width), update = numbers(width), before = numbers(width);
  const float gates[] = {0.0f, -1.0f, 1.0f, 0.3f, std::numeric_limits<float>::quiet_NaN()};
  const float gate = one_of(gates);
  const Floats made = twice(width, [&](float* out, int) {
    std::memcpy(out, row.data(), row.size() * sizeof(float));
    if (gate == 0.3f) {
      add_gated_difference(out, update.data(), before.data(), gate, width);
    } else {
      add_gated(out, update.data(), gate, width);
    }
  });
  if (!(gate > 0.0f) && std::memcmp(made.data(), row.data(), row.size() * sizeof(float)) != 0) fail("a closed gate writes");
  twice(1, [&](float* out, int) { *out = score(row.data(), update.data(), width); });
}

void fuzz_norm() {
  const int64_t width = size();
  const Floats x = numbers(width), y = numbers(width), shift = numbers(width), scale = numbers(width), bias = numbers(width);
  const auto word = bytes<int8_t>(width);
  const float epsilons[] = {0.0f, 1e-5f, 1e-12f, 3e38f};
  const float epsilon = one_of(epsilons), row_scale = numbers(1)[0];
  twice(width, [&](float* out, int) {
    add_norm(x.data(), y.data(), shift.data(), scale.data(), bias.data(), epsilon, width, out);
  });
  twice(width, [&](float* out, int) {
    embed_norm(word.data(), row_scale, x.data(), y.data(), scale.data(), bias.data(), epsilon, width, out);
  });
  twice(width, [&](float* out, int) {
    embed_norm(shift.data(), row_scale, x.data(), y.data(), scale.data(), bias.data(), epsilon, width, out);
  });
}

void fuzz_gelu() {
  const int64_t width = size(), rows = 1 + below(4), stride = width + below(3);
  const Floats x = numbers(width), bias = numbers(width), block = numbers((rows - 1) * stride + width);
  twice(width, [&](float* out, int) { add_gelu(x.data(), bias.data(), width, out); });
  const Floats made = twice(static_cast<int64_t>(block.size()), [&](float* out, int) {
    std::memcpy(out, block.data(), block.size() * sizeof(float));
    gelu(out, rows, width, stride);
  });
  for (size_t i = 0; i < block.size(); ++i) {
    const bool between = static_cast<int64_t>(i) % stride >= width;
    if (between && std::memcmp(&made[i], &block[i], sizeof(float)) != 0) fail("GELU writes between rows");
  }
}

void fuzz_attention() {
  static AttentionScratch scratch;
  const int64_t width = size(), heads = 1 + below(3), tokens = size(0), queries = size(), all = heads * width;
  const int64_t head = below(heads), first = below(queries), last = first + 1 + below(queries - first);
  const Floats query = numbers(queries * all), others = numbers(tokens * 2 * all);
  const bool shared = below(2) == 0;
  const Floats bias = numbers(tokens * (shared ? 1 : queries));
  std::vector<const float*> memory(static_cast<size_t>(tokens));
  for (const float*& one : memory) one = others.data() + below(tokens) * 2 * all;
  const float scale = numbers(1)[0];
  twice(queries * all, [&](float* out, int garbage) {
    poison(scratch.keys, garbage), poison(scratch.values, garbage), poison(scratch.scores, garbage);
    poison(scratch.mixed, garbage);
    Floats rows(static_cast<size_t>(queries * all), 1.0f);
    attend({query.data() + head * width, all, memory.data(), head * width, all + head * width, bias.data(),
            shared ? 0 : tokens, scale, tokens, width, rows.data() + head * width, all},
           first, last, scratch);
    std::memcpy(out, rows.data(), rows.size() * sizeof(float));
  });
}

void fuzz_adapter() {
  static AdapterScratch scratch;
  static AdapterWeights weights;
  const int64_t width = size(), bottleneck = size(0), rows = size();
  const Activation kinds[] = {Activation::kNone, Activation::kRelu, Activation::kSwish};
  const Activation kind = one_of(kinds);
  const Floats down = numbers(width * bottleneck), down_bias = numbers(bottleneck), up = numbers(bottleneck * width),
               up_bias = numbers(width), residual = numbers(rows * width), x = numbers(rows * width);
  const bool in_place = below(2) == 0;
  twice(rows * width, [&](float* out, int garbage) {
    poison(scratch.hidden, garbage), poison(scratch.raised, garbage);
    for (auto& one : weights.room) poison(one, garbage);
    weights.set(down.data(), kind == Activation::kNone ? nullptr : down_bias.data(), up.data(), up_bias.data(), width,
                bottleneck);
    if (in_place) std::memcpy(out, residual.data(), residual.size() * sizeof(float));
    add_adapter(weights, kind, in_place ? out : residual.data(), x.data(), rows, out, scratch);
    weights.release();
  });
}

void fuzz_int8() {
  static Int8Rows prepared;
  if (!Int8Weights::supported()) return;
  const int64_t inputs = size(), outputs = size(), rows = size();
  const auto weight = bytes<uint8_t>(inputs * outputs);
  const Floats scale = numbers(outputs), bias = numbers(outputs), x = numbers(rows * inputs);
  const Int8Weights weights(weight.data(), scale.data(), bias.data(), inputs, outputs);
  const int64_t middle = below(weights.panels() + 1), whole = below(rows + 1) / 32 * 32;
  twice(rows * outputs, [&](float* y, int garbage) {
    weights.reserve(rows, prepared);
    poison(prepared.quantised, garbage), poison(prepared.row_scales, garbage);
    weights.quantize(x.data(), 0, rows, prepared);
    const int64_t parts[] = {0, middle, weights.panels()}, blocks[] = {0, whole, rows};
    for (int i = 0; i < 2; ++i) {
      for (int j = 0; j < 2; ++j) {
        if (parts[i] == parts[i + 1] || blocks[j] == blocks[j + 1]) continue;
        weights.multiply(prepared, blocks[j], blocks[j + 1], parts[i], parts[i + 1], y);
      }
    }
  });
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) return 2;
  rng.seed(std::strtoull(arguments[1], nullptr, 10));
  const long long calls = std::atoll(arguments[2]);
  void (*const loops[])() = {fuzz_route, fuzz_tokens, fuzz_norm, fuzz_gelu, fuzz_attention, fuzz_adapter, fuzz_int8};
  for (long long call = 0; call < calls; ++call) one_of(loops)();
  std::printf("%lld calls\n", calls);
}
