// The activation quantiser for rows in registers (rows_gpu.cuh): the single IEEE operations of
// docs/numerics.md, so that codes and scales are those of flexq_kernels/quant, bit for bit.
#pragma once

#include <algorithm>

#include "flexq_kernels/gpu/quantize.cuh"
#include "ft/kernels/rows_gpu.cuh"

namespace flexq_ft::gpu {

using flexq_kernels::gpu::group_inverse;
using flexq_kernels::gpu::group_scale;
using flexq_kernels::gpu::magnitude_bits;
using flexq_kernels::gpu::quantized;  // of attention's own quantisers

// Vectors of a thread from which on the lanes of a group share its divisions, and the most.
constexpr int kSharedVectors = 4, kMostVectors = 8;

// Codes and scales of a LinearInput as a kernel takes them. codes null: none are asked for.
struct Quantizer {
  int8_t* codes = nullptr;
  float* scales = nullptr;
  int columns = 0;
  int group = 1;
  int groups = 0;
  int limit = 127;
  int scale_token = 1;  // from one token's scale to the next token's, and from group to group
  int scale_group = 1;
  float static_scale = 0.0f;  // 0: each group has its own
  float static_inverse = 0.0f;
  bool fragments = false;  // CodeOrder::kFragment
  bool aligned = false;    // eight codes may be written as one word

  Quantizer(const LinearInput& out, int64_t k) : columns(static_cast<int>(k)) {
    if (!out.quantized()) return;
    codes = static_cast<int8_t*>(out.codes.raw());
    scales = static_cast<float*>(out.scales.raw());
    group = static_cast<int>(out.group);
    groups = static_cast<int>((k + out.group - 1) / out.group);
    limit = out.act_bits == 6 ? 31 : 127;
    static_scale = out.static_scale;
    if (static_scale > 0.0f) static_inverse = 1.0f / static_scale;
    scale_token = out.scale_stride > 0 ? 1 : groups;
    scale_group = out.scale_stride > 0 ? static_cast<int>(out.scale_stride) : 1;
    fragments = out.order == flexq_kernels::gpu::CodeOrder::kFragment;
    aligned = k % kVector == 0 && out.codes.dim(1) % kVector == 0 &&
              reinterpret_cast<uintptr_t>(codes) % kVector == 0;
  }

  // A group is what 1, 2, 4 … 32 neighbouring lanes hold: no other thread has a part in it.
  __host__ __device__ bool in_lanes() const {
    return group % kVector == 0 && group <= 32 * kVector && (group & (group - 1)) == 0;
  }
  // May a row lie in blocks that take many? Groups in_lanes() have a lane there for every vector.
  bool many_rows() const {
    return codes == nullptr || !in_lanes() || group >= kMostVectors * kVector;
  }
  // What a Row in registers can do. The rest is for odd shapes, value by value.
  bool plain() const { return codes == nullptr || (aligned && (in_lanes() || groups == 1)); }
  // Where not in_lanes() maxima meet in shared memory: of the warps, or of odd_groups(), one int32
  // for each.
  __host__ __device__ bool in_shared() const { return codes != nullptr && !in_lanes(); }
  __host__ __device__ bool odd_groups() const { return in_shared() && groups > 1; }
  size_t shared_bytes() const {
    const size_t bytes = in_shared() ? static_cast<size_t>(std::max(groups, 32)) * sizeof(int) : 0;
    FLEXQ_FT_CHECK_LE(bytes, size_t{32768}, "groups of ", group, " in a row of ", columns);
    return bytes;
  }
  // Of a group, from the bits of its max|x|.
  __device__ __forceinline__ bool takes_static(int bits) const {
    return static_scale > 0.0f && bits < flexq_kernels::gpu::kInfinityBits;
  }
  __device__ __forceinline__ float inverse_of(int bits) const {
    return takes_static(bits) ? static_inverse : group_inverse(bits, limit);
  }
  __device__ __forceinline__ float scale_of(int bits) const {
    return takes_static(bits) ? static_scale : group_scale(bits, limit);
  }
  // Eight codes, the first in the lowest byte: quantized(), of which the last bits of its biased
  // float are the code. Only a static scale may be too small for x.
  __device__ __forceinline__ uint2 codes_of(const float (&x)[kVector], float inverse) const {
    float scaled[kVector];
#pragma unroll
    for (int e = 0; e < kVector; ++e) scaled[e] = __fmul_rn(x[e], inverse);
    if (static_scale > 0.0f) {
      const float most = static_cast<float>(limit);
#pragma unroll
      for (int e = 0; e < kVector; ++e) scaled[e] = fminf(fmaxf(scaled[e], -most - 1.0f), most);
    }
    uint32_t words[2];
#pragma unroll
    for (int w = 0; w < 2; ++w) {
      uint32_t biased[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        biased[e] = __float_as_uint(__fadd_rn(scaled[4 * w + e], 12582912.0f));  // 1.5 * 2^23
      }
      const uint32_t low = __byte_perm(biased[0], biased[1], 0x0040);
      const uint32_t high = __byte_perm(biased[2], biased[3], 0x0040);
      words[w] = inverse == 0.0f ? 0 : __byte_perm(low, high, 0x5410);  // x may be NaN
    }
    return make_uint2(words[0], words[1]);
  }
  // The token's codes.
  __device__ __forceinline__ int8_t* row(int64_t token) const {
    return codes + token * groups * group;
  }
  // Where in its row the code of a column lies.
  __device__ __forceinline__ int at(int column) const {
    if (!fragments) return column;
    const unsigned k = static_cast<unsigned>(column) % flexq_kernels::kGroupSize;
    const int word = flexq_kernels::fragment_word(static_cast<int>(k / 4));
    return column - static_cast<int>(k - k % 4) + 4 * word;
  }
  // Eight codes from a column on that is a multiple of eight; `aligned` rows.
  __device__ __forceinline__ void store(int8_t* to, int column, uint32_t low, uint32_t high) const {
    if (!fragments) {
      *reinterpret_cast<uint2*>(to + column) = make_uint2(low, high);
      return;
    }
    uint32_t* first = reinterpret_cast<uint32_t*>(to + at(column));
    first[0] = low;
    first[flexq_kernels::fragment_word(1)] = high;  // of any even word the next one
  }
  __device__ __forceinline__ void store_scale(int64_t token, int group_index, float scale) const {
    scales[token * scale_token + static_cast<int64_t>(group_index) * scale_group] = scale;
  }
};

template <typename T>
__device__ __forceinline__ int max_magnitude(const Vector<T>& x) {
  if constexpr (sizeof(T) == 2) {  // two at a time: magnitudes are ordered as their bits
    uint32_t bits[4];
#pragma unroll
    for (int w = 0; w < 4; ++w)
      bits[w] = reinterpret_cast<const uint32_t*>(x.words)[w] & 0x7fff7fff;
    const uint32_t most = __vmaxu2(__vmaxu2(bits[0], bits[1]), __vmaxu2(bits[2], bits[3]));
    const uint16_t largest = static_cast<uint16_t>(max(most >> 16, most & 0xffff));
    return magnitude_bits(to_float(reinterpret_cast<const T&>(largest)));
  } else {
    int bits = 0;
#pragma unroll
    for (int e = 0; e < kVector; ++e) bits = max(bits, magnitude_bits(x.at(e)));
    return bits;
  }
}

template <typename T>
__device__ __forceinline__ void store_codes(const Quantizer& q, int64_t token, int column,
                                            bool aligned, const Vector<T>& x, float inverse) {
  if (column >= q.columns) return;
  int8_t* to = q.row(token);
  float values[kVector];
#pragma unroll
  for (int e = 0; e < kVector; ++e) values[e] = x.at(e);
  const uint2 words = q.codes_of(values, inverse);
  if (aligned) {
    q.store(to, column, words.x, words.y);
    return;
  }
#pragma unroll
  for (int e = 0; e < kVector; ++e) {
    if (column + e >= q.columns) continue;
    to[q.at(column + e)] = static_cast<int8_t>((e < 4 ? words.x : words.y) >> (e % 4 * 8));
  }
}

// `first`: the column where the block's part of the row begins. The vectors of a thread go through
// each step side by side: shuffles and divisions are slow, and theirs do not wait for each other.
// Of four and more, lane v of a group divides for vector v, and stores its scale.
template <int kVectors, typename T>
__device__ __forceinline__ void quantize_in_lanes(const Quantizer& q, int64_t token, int first,
                                                  Row<T, kVectors>& row) {
  constexpr int kBatch = kVectors > 0 ? kVectors : 1;
  constexpr bool kShared = kBatch >= kSharedVectors;
  const int lane = static_cast<int>(threadIdx.x) & (q.group / kVector - 1);  // in its group
  const int shift = __ffs(q.group) - 1;
  for (int i = 0; i < row.count(); i += kBatch) {
    int bits[kBatch];
    float inverse[kBatch], scale[kBatch];
#pragma unroll
    for (int b = 0; b < kBatch; ++b) bits[b] = max_magnitude(row[i + b]);
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      if (lanes * kVector >= q.group) continue;
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        bits[b] = max(bits[b], __shfl_xor_sync(0xffffffffu, bits[b], lanes));
      }
    }
    if constexpr (kShared) {
      int mine = bits[0];
#pragma unroll
      for (int b = 1; b < kBatch; ++b) mine = lane == b ? bits[b] : mine;
      const float of_mine = q.inverse_of(mine);
      const int begin = static_cast<int>(threadIdx.x) % 32 - lane;
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        inverse[b] = __shfl_sync(0xffffffffu, of_mine, begin + b);
      }
      const int column = first + row.column(lane) - lane * kVector;
      if (lane < kBatch && column < q.columns) {
        q.store_scale(token, column >> shift, q.scale_of(mine));
      }
    } else {
#pragma unroll
      for (int b = 0; b < kBatch; ++b) {
        inverse[b] = q.inverse_of(bits[b]);
        scale[b] = q.scale_of(bits[b]);
      }
    }
#pragma unroll
    for (int b = 0; b < kBatch; ++b) {
      const int column = first + row.column(i + b);
      store_codes(q, token, column, kVectors > 0 || q.aligned, row[i + b], inverse[b]);
      if (!kShared && lane == 0 && column < q.columns) {
        q.store_scale(token, column >> shift, scale[b]);
      }
    }
  }
}

template <int kVectors, typename T>
__device__ __forceinline__ void quantize_whole_row(const Quantizer& q, int64_t token,
                                                   Row<T, kVectors>& row, int* maxima) {
  int bits = 0;
  row.each([&](const Vector<T>& x, int) { bits = max(bits, max_magnitude(x)); });
  bits = block_max(bits, maxima);
  const float inverse = q.inverse_of(bits);
  row.each([&](const Vector<T>& x, int column) {
    store_codes(q, token, column, kVectors > 0 || q.aligned, x, inverse);
  });
  if (threadIdx.x == 0) q.store_scale(token, 0, q.scale_of(bits));
}

// Groups of any size, value by value.
template <typename T>
__device__ __forceinline__ void quantize_odd_groups(const Quantizer& q, int64_t token,
                                                    Row<T, 0>& row, int* maxima) {
  row.each([&](const Vector<T>& x, int first) {
#pragma unroll
    for (int e = 0; e < kVector; ++e) {
      const int column = first + e;
      if (column < q.columns) atomicMax(maxima + column / q.group, magnitude_bits(x.at(e)));
    }
  });
  __syncthreads();
  row.each([&](const Vector<T>& x, int first) {
#pragma unroll
    for (int e = 0; e < kVector; ++e) {
      const int column = first + e;
      if (column >= q.columns) continue;
      const float inverse = q.inverse_of(maxima[column / q.group]);
      q.row(token)[q.at(column)] = static_cast<int8_t>(q.codes_of({x.at(e)}, inverse).x);
    }
  });
  for (int g = static_cast<int>(threadIdx.x); g < q.groups; g += row_threads()) {
    q.store_scale(token, g, q.scale_of(maxima[g]));
  }
}

// To be called, and followed by a barrier, before quantize_row of a Row<T, 0>.
__device__ __forceinline__ void clear_maxima(const Quantizer& q, int* maxima) {
  if (!q.odd_groups()) return;
#pragma unroll 1
  for (int g = static_cast<int>(threadIdx.x); g < q.groups; g += row_threads()) {
    maxima[g] = 0;
  }
}

// Codes and scales of the values that a block holds, which are zero past the end of the row. A
// block that holds only a part of a row, from column `first` on, takes only groups in_lanes().
// maxima: shared_bytes(); between two rows there must be a barrier where they are in_shared().
template <int kVectors, typename T>
__device__ __forceinline__ void quantize_row(const Quantizer& q, int64_t token, int first,
                                             Row<T, kVectors>& row, int* maxima) {
  if (q.codes == nullptr) return;
  if (q.in_lanes()) {
    quantize_in_lanes(q, token, first, row);
  } else if (kVectors > 0 || q.groups == 1) {
    quantize_whole_row(q, token, row, maxima);
  } else if constexpr (kVectors == 0) {
    quantize_odd_groups(q, token, row, maxima);
  }
  if (first != 0) return;
#pragma unroll 1
  for (int c = q.columns + static_cast<int>(threadIdx.x); c < q.groups * q.group;
       c += row_threads()) {
    q.row(token)[q.at(c)] = 0;  // the rest of the last group
  }
}

}  // namespace flexq_ft::gpu
