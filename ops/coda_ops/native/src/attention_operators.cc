// Operators of attention.
#include <stdexcept>
#include <vector>

#include "attention.h"
#include "operators.h"

namespace coda {
namespace {

// Keys and values are those of the tokens that queries are of; those of a tensor of their own; or the latter, but for the
// tokens that queries are of.
enum class Attention { kSelf, kCross, kKToAll };

constexpr const char* name_of(Attention kind) {
  return kind == Attention::kSelf ? "SelfAttention" : kind == Attention::kCross ? "CrossAttention" : "KToAllAttention";
}

constexpr const char* shapes_of(Attention kind) {
  return kind == Attention::kSelf ? "qkv must be [batch, tokens, 3 * width], its heads of one width, and bias [batch, 1, 1, "
                                    "tokens]"
         : kind == Attention::kCross
             ? "query must be [batch, queries, width], its heads of one width, key_value [batch, tokens, 2 * width] and bias "
               "[batch, heads, queries, tokens], each of its first three 1 where all share"
             : "qkv must be [batch, slots, 3 * width], its heads of one width, key_value [batch, tokens, 2 * width], indices "
               "and used [batch, slots] and bias [batch, heads, slots, tokens], each of its first three 1 where all share";
}

// What a call is about; numbers of either type as floats.
template <Attention kKind, typename T>
struct AttentionInputs {
  static constexpr int64_t kParts = kKind == Attention::kCross ? 1 : 3;  // side by side in a row of queries
  static constexpr size_t kBias = kKind == Attention::kSelf ? 1 : kKind == Attention::kCross ? 2 : 4;

  AttentionInputs(const Ort::KernelContext& context, int64_t heads) {
    check(context, heads);
    query = widened(context.GetInput(0).GetTensorData<T>(), batch * queries * kParts * width, wide_queries);
    const auto added = context.GetInput(kBias);
    const auto count = static_cast<int64_t>(added.GetTensorTypeAndShapeInfo().GetElementCount());
    bias = widened(added.GetTensorData<T>(), count, wide_bias);
    memory.resize(static_cast<size_t>(batch * tokens));
    const float* others = query + width;
    int64_t stride = kParts * width;
    if constexpr (kKind != Attention::kSelf) {
      stride = 2 * width;
      others = widened(context.GetInput(1).GetTensorData<T>(), batch * tokens * stride, wide_others);
    }
    for (int64_t i = 0; i < batch * tokens; ++i) memory[static_cast<size_t>(i)] = others + i * stride;
    if constexpr (kKind == Attention::kKToAll) take_own(context);
  }

  // What is added to the scores of the first query of a text's head.
  const float* bias_of(int64_t text, int64_t head) const {
    return bias + text * bias_strides[0] + head * bias_strides[1];
  }

  const float *query, *bias;
  int64_t bias_strides[3] = {};      // between texts, heads and queries; 0 where all share
  std::vector<const float*> memory;  // [batch * tokens], keys with values behind them
  int64_t batch = 0, queries = 0, tokens = 0, width = 0;

 private:
  void check(const Ort::KernelContext& context, int64_t heads) {
    const auto qs = shape_of(context.GetInput(0));
    bool fits = qs.size() == 3 && qs[2] % (kParts * heads) == 0;
    if (fits) batch = qs[0], tokens = queries = qs[1], width = qs[2] / kParts;
    if constexpr (kKind != Attention::kSelf) {
      const auto os = shape_of(context.GetInput(1));
      fits = fits && os.size() == 3 && os[0] == batch && os[2] == 2 * width;
      if (fits) tokens = os[1];
    }
    if constexpr (kKind == Attention::kKToAll) {
      const std::vector<int64_t> slots{batch, queries};
      fits = fits && shape_of(context.GetInput(2)) == slots && shape_of(context.GetInput(3)) == slots;
    }
    constexpr bool kOfKeys = kKind == Attention::kSelf;  // the same for all heads and queries
    const int64_t most[] = {batch, kOfKeys ? 1 : heads, kOfKeys ? 1 : queries};
    const auto bs = shape_of(context.GetInput(kBias));
    fits = fits && bs.size() == 4 && bs[3] == tokens && (!kOfKeys || bs[0] == batch);
    int64_t stride = tokens;
    for (size_t axis = 3; fits && axis-- > 0; stride *= bs[axis]) {
      fits = bs[axis] == 1 || bs[axis] == most[axis];
      if (bs[axis] != 1) bias_strides[axis] = stride;
    }
    if (!fits) throw std::runtime_error(shapes_of(kKind));
  }

  // Tokens of slots in use have the keys and values beside their queries.
  void take_own(const Ort::KernelContext& context) {
    const auto* indices = context.GetInput(2).GetTensorData<int64_t>();
    const auto* used = context.GetInput(3).GetTensorData<bool>();
    for (int64_t slot = 0; slot < batch * queries; ++slot) {
      if (indices[slot] < 0 || indices[slot] >= tokens) throw std::runtime_error("an index lies outside of the sequence");
      if (used[slot]) {
        memory[static_cast<size_t>(slot / queries * tokens + indices[slot])] = query + slot * kParts * width + width;
      }
    }
  }

  std::vector<float> wide_queries, wide_others, wide_bias;
};

template <Attention kKind, typename T>
struct AttentionKernel {
  explicit AttentionKernel(const OrtKernelInfo* info)
      : heads_(attribute<int64_t>(info, "num_heads")), scale_(attribute<float>(info, "scale")) {
    if (heads_ < 1 || heads_ > INT32_MAX) throw std::runtime_error("num_heads must be 1 to 2^31 - 1");
  }

  OrtStatusPtr ComputeV2(OrtKernelContext* raw) {
    return guarded(name_of(kKind), [&]() -> OrtStatusPtr {
      constexpr int64_t kBlock = 128;  // queries that share a head's keys, as they are laid out for them
      Ort::KernelContext context(raw);
      const AttentionInputs<kKind, T> in(context, heads_);
      const int64_t width = in.width, each = width / heads_, stride = in.kParts * width;
      const int64_t shape[] = {in.batch, in.queries, width};
      auto* result = context.GetOutput(0, shape, 3).template GetTensorMutableData<T>();
      std::vector<float> wide_out;
      float* out = float_output(result, in.batch * in.queries * width, wide_out);
      if (each == 0) return nullptr;  // which any number of heads may have
      const int64_t blocks = (in.queries + kBlock - 1) / kBlock;
      const int64_t work = std::min(kBlock, in.queries) * in.tokens * each / 2;  // as long as walking so many bytes takes
      parallel(raw, in.batch * heads_ * blocks, 1 + work, [&](int64_t task) {
        thread_local AttentionScratch scratch;
        const int64_t text = task / (heads_ * blocks), head = task / blocks % heads_, first = task % blocks * kBlock;
        const int64_t row = text * in.queries, offset = head * each;
        attend({in.query + row * stride + offset, stride, in.memory.data() + text * in.tokens, offset, width + offset,
                in.bias_of(text, head), in.bias_strides[2], scale_, in.tokens, each, out + row * width + offset, width},
               first, std::min(in.queries, first + kBlock), scratch);
      });
      narrow(wide_out, result);
      return nullptr;
    });
  }

 private:
  int64_t heads_;
  float scale_;
};

template <Attention kKind, typename T>
struct AttentionOp : CodaOp<AttentionOp<kKind, T>, AttentionKernel<kKind, T>> {
  static constexpr const char* kName = name_of(kKind);
  static constexpr ONNXTensorElementDataType kOutputs[] = {kElement<T>};

  size_t GetInputTypeCount() const { return AttentionInputs<kKind, T>::kBias + 1; }

  // All are tokens, but for the slots of k-to-all.
  ONNXTensorElementDataType GetInputType(size_t i) const {
    if (kKind == Attention::kKToAll && i == 2) return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    if (kKind == Attention::kKToAll && i == 3) return ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL;
    return kElement<T>;
  }

  static Ort::Status InferOutputShape(Ort::ShapeInferContext& context) {
    Shape out = context.GetInputShape(0);
    if (out.size() != 3 || !out[2].IsInt() || out[2].AsInt() < 0) return Ort::Status(nullptr);
    out[2] = Dim(out[2].AsInt() / AttentionInputs<kKind, T>::kParts);
    return set_shape(context, 0, out, kElement<T>);
  }
};

template <typename T>
struct AttentionOperators {
  AttentionOp<Attention::kSelf, T> self;
  AttentionOp<Attention::kCross, T> cross;
  AttentionOp<Attention::kKToAll, T> k_to_all;

  std::vector<const OrtCustomOp*> all() const { return {&self, &cross, &k_to_all}; }
};

}  // namespace

std::vector<const OrtCustomOp*> attention_operators() {
  static const AttentionOperators<float> floats;
  static const AttentionOperators<Ort::Float16_t> halves;
  auto all = floats.all();
  const auto more = halves.all();
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

}  // namespace coda
