#include "int8_linear.h"

#include <algorithm>
#include <stdexcept>

#include "int8_kernel.h"

namespace coda {
namespace {

// The best kernel that this processor has.
const Int8Kernel* choose() {
#if CODA_X86
  for (const Int8Kernel* kernel : {&kAmx, &kVnni, &kAvxVnni, &kAvx2}) {
    if (kernel->here()) return kernel;
  }
#endif
  return nullptr;
}

const Int8Kernel& chosen() {
  const Int8Kernel* kernel = choose();
  if (kernel == nullptr) throw std::runtime_error("this processor has no kernel of Int8Linear");
  return *kernel;
}

int64_t padded(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

}  // namespace

bool Int8Weights::supported() { return choose() != nullptr; }

Int8Weights::Int8Weights(const uint8_t* weight, const float* scale, const float* bias, int64_t inputs, int64_t outputs)
    : kernel_(chosen()),
      inputs_(inputs),
      outputs_(outputs),
      depth_(padded(inputs, kernel_.padding)),
      panels_((outputs + kPanel - 1) / kPanel) {
  const int64_t group = kernel_.group;
  packed_.assign(static_cast<size_t>(panels_ * depth_ * kPanel), 0);
  sums_.assign(static_cast<size_t>(panels_ * kPanel), 0);
  for (int64_t k = 0; k < inputs; ++k) {
    for (int64_t n = 0; n < outputs; ++n) {
      const int64_t at = n / kPanel * depth_ * kPanel + (k / group * kPanel + n % kPanel) * group + k % group;
      const int integer = static_cast<int>(weight[k * outputs + n]) - 128;
      packed_[static_cast<size_t>(at)] = static_cast<int8_t>(integer);
      sums_[static_cast<size_t>(n)] += integer;
    }
  }
  scale_.assign(static_cast<size_t>(panels_ * kPanel), 0.0f);
  bias_ = scale_;
  std::copy(scale, scale + outputs, scale_.begin());
  std::copy(bias, bias + outputs, bias_.begin());
}

void Int8Weights::reserve(int64_t rows, Int8Rows& prepared) const {
  const int64_t room = padded(rows, kernel_.rows);
  prepared.quantised.resize(static_cast<size_t>(room * depth_ * kernel_.element_size));
  prepared.row_scales.resize(static_cast<size_t>(room));
}

void Int8Weights::quantize(const float* x, int64_t first, int64_t last, Int8Rows& prepared) const {
  for (int64_t row = first; row < last; ++row) {
    prepared.row_scales[static_cast<size_t>(row)] =
        kernel_.quantize(x + row * inputs_, inputs_, depth_, row, prepared.quantised.data());
  }
}

void Int8Weights::multiply(const Int8Rows& prepared, int64_t first_row, int64_t last_row, int64_t first_panel,
                           int64_t last_panel, float* y) const {
  const int64_t output = first_panel * kPanel;
  kernel_.multiply({prepared.quantised.data() + first_row * depth_ * kernel_.element_size,
                    prepared.row_scales.data() + first_row, packed_.data() + first_panel * depth_ * kPanel,
                    sums_.data() + output, scale_.data() + output, bias_.data() + output, depth_, last_row - first_row,
                    last_panel - first_panel, y + first_row * outputs_ + output, outputs_,
                    std::min(outputs_, last_panel * kPanel) - output});
}

}  // namespace coda
