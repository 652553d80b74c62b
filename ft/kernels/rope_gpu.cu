#include "ft/kernels/rope.cuh"
#include "ft/kernels/twins.h"

namespace flexq_ft::gpu {

namespace {

template <typename T>
struct RopeTarget {
  T* q;
  T* k;
  T* v;
  const float* table;  // null: no rotation
  int64_t positions;   // rows of the table
  int64_t num_pages;
  int heads;
  int kv_heads;
  int head_dim;

  // The row that head h of a token is written to; null where the batch has no page for it.
  __device__ __forceinline__ T* row(const BatchView& batch, int64_t token, int position,
                                    int h) const {
    if (h < heads) return q + (token * heads + h) * head_dim;
    const bool key = h < heads + kv_heads;
    const int head = h - heads - (key ? 0 : kv_heads);
    const int64_t slot = batch.slot(static_cast<int>(token), position, num_pages, kv_heads, head);
    return slot < 0 ? nullptr : (key ? k : v) + slot * head_dim;
  }
};

// Turns eight pairs. A position past the table, which the caller has refused, gives NaN.
template <typename T>
__device__ __forceinline__ void rotate_vectors(float (&a)[kVector], float (&b)[kVector],
                                               const RopeTarget<T>& to, int position, int column,
                                               bool aligned) {
  const int half = to.head_dim / 2;
  const bool known = position >= 0 && position < to.positions;
  const float* row = to.table + (known ? static_cast<int64_t>(position) * to.head_dim : 0);
  const Vector<float> cos = load_vector<true>(row, column, half, aligned);
  const Vector<float> sin = load_vector<true>(row + half, column, half, aligned);
  const float unknown = __int_as_float(0x7fc00000);
#pragma unroll
  for (int e = 0; e < kVector; ++e) {
    a[e] = rounded<T>(a[e]);
    b[e] = rounded<T>(b[e]);
    rotate(a[e], b[e], known ? cos.get(e) : unknown, known ? sin.get(e) : unknown);
  }
}

// A thread takes eight pairs (j, j + half) of one head; `parts` threads take a head. Ten blocks a
// multiprocessor: left to itself the compiler takes registers for eight, and a prompt of W8A8,
// whose product is sums, was 10 % longer in here.
template <typename T, typename In, bool kAligned>
__global__ void __launch_bounds__(kFlatThreads, 10)
    rope_append_kernel(RopeTarget<T> to, ProductView<In> qkv, BatchView batch, int parts) {
  const int at = static_cast<int>(blockIdx.y) * kFlatThreads + static_cast<int>(threadIdx.x);
  const int h = at / parts;
  const int column = at % parts * kVector;
  const int half = (to.head_dim + 1) / 2;  // of an odd head, which is not turned, the longer one
  const int rest = to.head_dim - half;
  const int begin = h * to.head_dim + column;  // in the row of the product
  const bool mine = h < to.heads + 2 * to.kv_heads;
  const int64_t token = blockIdx.x;
  pdl_launch_dependents();
  const int position = batch.positions[token];
  T* row = nullptr;
  if (mine) {
    prefetch_scales(qkv, begin);
    prefetch_scales(qkv, begin + half);
    row = to.row(batch, token, position, h);
  }
  pdl_wait();
  if (row == nullptr) return;
  const In* x = qkv.values + token * qkv.columns + h * to.head_dim;
  const Vector<In> raw_a = load_vector(x, column, half, kAligned);
  const Vector<In> raw_b = load_vector(x + half, column, rest, kAligned);
  const float act_scale = token_scale(qkv, token);
  float a[kVector];
  float b[kVector];
  finish_vector(a, qkv, raw_a, act_scale, begin, kAligned);
  finish_vector(b, qkv, raw_b, act_scale, begin + half, kAligned);
  if (to.table != nullptr && h < to.heads + to.kv_heads) {
    rotate_vectors(a, b, to, position, column, kAligned);
  }
  store_vector(row, column, half, kAligned, rounded_vector<T>(a));
  store_vector(row + half, column, rest, kAligned, rounded_vector<T>(b));
}

}  // namespace

void rope_append(Tensor q, KvPages kv, const Product& qkv, ConstTensor rope,
                 const RaggedBatch& batch, Stream stream) {
  const int64_t kv_heads = kv.k.dim(1);
  const int64_t head_dim = kv.k.dim(3);
  const int64_t heads = q.dim(1) / head_dim;
  if (rope.defined()) FLEXQ_FT_CHECK_EQ(head_dim % 2, 0, "rope: head_dim ", head_dim);
  const int64_t half = (head_dim + 1) / 2;
  const int64_t parts = (half + kVector - 1) / kVector;
  const bool aligned = head_dim % 2 == 0 && rows_aligned(half, qkv) &&
                       rows_aligned(half, {q.raw(), kv.k.raw(), kv.v.raw(), rope.raw()});
  const dim3 grid = flat_grid(q.dim(0), (heads + 2 * kv_heads) * parts * kVector);
  dispatch_compute_type(q.dtype(), [&](auto t) {
    using T = decltype(t);
    const RopeTarget<T> to{static_cast<T*>(q.raw()),         static_cast<T*>(kv.k.raw()),
                           static_cast<T*>(kv.v.raw()),      static_cast<const float*>(rope.raw()),
                           rope.defined() ? rope.dim(0) : 0, kv.k.dim(0),
                           static_cast<int>(heads),          static_cast<int>(kv_heads),
                           static_cast<int>(head_dim)};
    dispatch_any_product_type<T>(qkv, [&](auto in) {
      using In = decltype(in);
      dispatch_aligned(aligned, [&](auto is_aligned) {
        launch(rope_append_kernel<T, In, is_aligned()>, grid, dim3(kFlatThreads), 0, stream, to,
               ProductView<In>(qkv), BatchView(batch), static_cast<int>(parts));
      });
    });
  });
}

}  // namespace flexq_ft::gpu
