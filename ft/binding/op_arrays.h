// What ops take from each other, Product and LinearInput, as NumPy arrays.
#pragma once

#include "ft/binding/arrays.h"
#include "ft/binding/staging.h"
#include "ft/kernels/product.h"

namespace flexq_ft {

inline Product product_of(Staging& stage, const pybind11::array& y,
                          const pybind11::object& act_scale, const pybind11::object& weight_scale,
                          const pybind11::object& bias) {
  const ConstTensor values = stage.in(y);
  return {Tensor(const_cast<void*>(values.raw()), values.dtype(), values.shape(), values.device()),
          stage.optional_in(act_scale), stage.optional_in(weight_scale), stage.optional_in(bias)};
}

// A LinearInput in new arrays: (values, codes or None, scales or None).
struct InputArrays {
  LinearInput input;
  pybind11::array values;
  pybind11::object codes = pybind11::none();
  pybind11::object scales = pybind11::none();

  InputArrays(Staging& stage, DataType dtype, int64_t tokens, int64_t k, int act_bits,
              int64_t group, float static_scale = 0.0f) {
    values = new_array(dtype, Shape{tokens, k});
    input.values = stage.inout(values);
    input.dtype = dtype;
    if (act_bits == 16) return;
    const int64_t groups = (k + group - 1) / group;
    pybind11::array new_codes = new_array(DataType::kInt8, Shape{tokens, groups * group});
    pybind11::array new_scales = new_array(DataType::kFp32, Shape{tokens, groups});
    input.codes = stage.inout(new_codes);
    input.scales = stage.inout(new_scales);
    input.group = group;
    input.act_bits = act_bits;
    input.static_scale = static_scale;
    codes = new_codes;
    scales = new_scales;
  }

  pybind11::tuple tuple() const { return pybind11::make_tuple(values, codes, scales); }
};

}  // namespace flexq_ft
