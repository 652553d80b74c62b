// Attention of a block of tokens, compiled once per ISA: all scores, softmax, then the values.
//
// Rows are (token, query head of the group), token-major, in blocks of kRows. Page by page, K is
// brought to [head_dim][16] so that sixteen positions are one vector. Every step of a row runs
// through the head dimension or the positions in one order, whatever the block: a token alone and
// the same token within a prompt get the same bits.
#include "ft/kernels/attention_simd.h"

#include "ft/kernels/simd_types.h"

namespace flexq_ft::FLEXQ_ISA {

namespace {

constexpr int kPage = 16;
constexpr int kRows = kVectorRegisters >= 32 ? 8 : kVectorRegisters / 2;
constexpr int kColumns = kVectorRegisters >= 32 ? 2 : 1;  // vectors of V per tile

struct Sizes {
  int64_t group;  // query heads per KV head
  int64_t rows;
  int64_t padded;  // head_dim, rounded up to whole vectors
  int64_t pages;   // that the last token sees
};

FLEXQ_SIMD Sizes sizes_of(const AttentionTask& a) {
  const int64_t group = a.heads / a.kv_heads;
  return {group, group * (a.end - a.begin), (a.head_dim + kLanes - 1) / kLanes * kLanes,
          (a.context + a.end + kPage - 1) / kPage};
}

struct Scratch {
  float* q;       // [block][head_dim][rows of block]
  float* scores;  // [block][page][rows of block][16]; later the probabilities
  float* sums;    // [rows]: 1 / sum of the exponentials
  float* acc;     // [rows][padded]
  float* page;    // K as [padded][16], or V as [16][padded]
};

FLEXQ_SIMD Scratch scratch_of(const AttentionTask& a, const Sizes& s, float* base) {
  Scratch out;
  out.q = base;
  out.scores = out.q + s.rows * a.head_dim;
  out.sums = out.scores + s.rows * s.pages * kPage;
  out.acc = out.sums + s.rows;
  out.page = out.acc + s.rows * s.padded;
  return out;
}

// Calls f.run<R>() for R = rows, which is 1 … kRows.
template <int R = kRows, typename F>
FLEXQ_SIMD void with_rows(int64_t rows, const F& f) {
  if constexpr (R > 1) {
    if (rows < R) return with_rows<R - 1>(rows, f);
  }
  f.template run<R>();
}

struct ScorePage {
  float* out;      // [R][16]
  const float* q;  // [head_dim][R]
  const float* k;  // [head_dim][16]
  int64_t head_dim;
  float scale;
  template <int R>
  FLEXQ_SIMD void apply(const ScorePage& a) {
    F32x16 acc[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) acc[r] = zero_f32();
    for (int64_t i = 0; i < a.head_dim; ++i) {
      const F32x16 k = load(a.k + i * kPage);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) acc[r] = fma(broadcast(a.q[i * R + r]), k, acc[r]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) store(a.out + r * kPage, mul(acc[r], broadcast(a.scale)));
  }
  template <int R>
  void run() const {
    apply<R>(*this);
  }
};

struct AddValues {
  float* acc;      // [R][padded]
  const float* p;  // [R][16]
  const float* v;  // [count][padded]
  int64_t padded;
  int64_t count;
  template <int R, int C>
  FLEXQ_SIMD void columns(const AddValues& a, int64_t column) {
    F32x16 acc[R][C];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int c = 0; c < C; ++c) acc[r][c] = load(a.acc + r * a.padded + column + c * kLanes);
    }
    for (int64_t t = 0; t < a.count; ++t) {
      F32x16 v[C];
#pragma GCC unroll 2
      for (int c = 0; c < C; ++c) v[c] = load(a.v + t * a.padded + column + c * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const F32x16 p = broadcast(a.p[r * kPage + t]);
#pragma GCC unroll 2
        for (int c = 0; c < C; ++c) acc[r][c] = fma(p, v[c], acc[r][c]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
      for (int c = 0; c < C; ++c) store(a.acc + r * a.padded + column + c * kLanes, acc[r][c]);
    }
  }
  template <int R>
  void run() const {
    int64_t column = 0;
    for (; column + kColumns * kLanes <= padded; column += kColumns * kLanes) {
      columns<R, kColumns>(*this, column);
    }
    if (column < padded) columns<R, 1>(*this, column);
  }
};

template <typename T>
void pack_queries(const AttentionTask& a, const Sizes& s, float* packed) {
  for (int64_t row = 0; row < s.rows; ++row) {
    const int64_t token = a.begin + row / s.group;
    const int64_t head = a.kv_head * s.group + row % s.group;
    const T* q = static_cast<const T*>(a.q) + (token * a.heads + head) * a.head_dim;
    const int64_t block = row / kRows * kRows;
    const int64_t width = s.rows - block < kRows ? s.rows - block : kRows;
    float* out = packed + block * a.head_dim + row % kRows;
    for (int64_t i = 0; i < a.head_dim; ++i) out[i * width] = to_float(q[i]);
  }
}

template <typename T>
void keys_of_page(const T* k, int64_t head_dim, float* out) {
  for (int64_t i = 0; i < head_dim; i += kLanes) {
    F32x16 block[kPage];
    for (int t = 0; t < kPage; ++t) block[t] = load_n(k + t * head_dim + i, head_dim - i);
    transpose(block);
    for (int j = 0; j < kLanes; ++j) store(out + (i + j) * kPage, block[j]);
  }
}

template <typename T>
void values_of_page(const T* v, int64_t head_dim, int64_t padded, int64_t count, float* out) {
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t i = 0; i < head_dim; i += kLanes) {
      store(out + t * padded + i, load_n(v + t * head_dim + i, head_dim - i));
    }
  }
}

template <typename T>
FLEXQ_SIMD const T* page_of(const AttentionTask& a, const void* cache, int64_t page) {
  const int64_t at = (a.pages[page] * a.kv_heads + a.kv_head) * kPage * a.head_dim;
  return static_cast<const T*>(cache) + at;
}

// The last position that a row sees.
FLEXQ_SIMD int64_t limit_of(const AttentionTask& a, const Sizes& s, int64_t row) {
  return a.context + a.begin + row / s.group;
}

template <typename T>
void scores(const AttentionTask& a, const Sizes& s, const Scratch& m) {
  const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(a.head_dim));
  for (int64_t page = 0; page < s.pages; ++page) {
    keys_of_page(page_of<T>(a, a.k, page), a.head_dim, m.page);
    for (int64_t row = 0; row < s.rows; row += kRows) {
      const int64_t width = s.rows - row < kRows ? s.rows - row : kRows;
      if (page * kPage > limit_of(a, s, row + width - 1)) continue;
      float* out = m.scores + (row * s.pages + page * width) * kPage;
      with_rows(width, ScorePage{out, m.q + row * a.head_dim, m.page, a.head_dim, scale});
    }
  }
}

// One row's scores up to the limit, `stride` floats from page to page, become exponentials; the
// rest of the last page becomes zero. Returns 1 / their sum.
float softmax_row(float* row, int64_t stride, int64_t limit) {
  const int64_t last = limit / kPage;
  float* tail = row + last * stride;
  for (int64_t i = limit % kPage + 1; i < kPage; ++i) tail[i] = -__builtin_inff();
  F32x16 best = load(row);
  for (int64_t p = 1; p <= last; ++p) best = max(best, load(row + p * stride));
  const F32x16 top = broadcast(reduce_max(best));
  F32x16 sum = zero_f32();
  for (int64_t p = 0; p <= last; ++p) {
    const F32x16 e = exp(sub(load(row + p * stride), top));
    store(row + p * stride, e);
    sum = add(sum, e);
  }
  return 1.0f / reduce_add(sum);
}

void softmax(const AttentionTask& a, const Sizes& s, const Scratch& m) {
  for (int64_t row = 0; row < s.rows; ++row) {
    const int64_t block = row / kRows * kRows;
    const int64_t width = s.rows - block < kRows ? s.rows - block : kRows;
    float* first = m.scores + (block * s.pages + row % kRows) * kPage;
    m.sums[row] = softmax_row(first, width * kPage, limit_of(a, s, row));
  }
}

// Adds the values of a page to the rows of a block: those that every row sees to all at once, the
// others row by row. What a row does not see is not even multiplied by zero: it may be infinite.
void add_page(const AttentionTask& a, const Sizes& s, const Scratch& m, int64_t row, int64_t width,
              int64_t page) {
  float* acc = m.acc + row * s.padded;
  const float* p = m.scores + (row * s.pages + page * width) * kPage;
  const auto seen = [&](int64_t r) {
    const int64_t count = limit_of(a, s, row + r) + 1 - page * kPage;
    return count < 0 ? 0 : count < kPage ? count : kPage;
  };
  const int64_t common = seen(0);
  with_rows(width, AddValues{acc, p, m.page, s.padded, common});
  for (int64_t r = width - 1; seen(r) > common; --r) {
    AddValues{acc + r * s.padded, p + r * kPage + common, m.page + common * s.padded, s.padded,
              seen(r) - common}
        .run<1>();
  }
}

template <typename T>
void values(const AttentionTask& a, const Sizes& s, const Scratch& m) {
  for (int64_t i = 0; i < s.rows * s.padded; i += kLanes) store(m.acc + i, zero_f32());
  const int64_t positions = a.context + a.end;
  for (int64_t page = 0; page < s.pages; ++page) {
    const int64_t left = positions - page * kPage;
    const int64_t count = left < kPage ? left : kPage;  // the rest was never written
    values_of_page(page_of<T>(a, a.v, page), a.head_dim, s.padded, count, m.page);
    for (int64_t row = 0; row < s.rows; row += kRows) {
      const int64_t width = s.rows - row < kRows ? s.rows - row : kRows;
      if (page * kPage > limit_of(a, s, row + width - 1)) continue;
      add_page(a, s, m, row, width, page);
    }
  }
}

template <typename T>
void block_of(const AttentionTask& a, float* base) {
  const Sizes s = sizes_of(a);
  const Scratch m = scratch_of(a, s, base);
  pack_queries<T>(a, s, m.q);
  scores<T>(a, s, m);
  softmax(a, s, m);
  values<T>(a, s, m);
  for (int64_t row = 0; row < s.rows; ++row) {
    const int64_t token = a.begin + row / s.group;
    const int64_t head = a.kv_head * s.group + row % s.group;
    T* out = static_cast<T*>(a.out) + (token * a.heads + head) * a.head_dim;
    for (int64_t i = 0; i < a.head_dim; i += kLanes) {
      const F32x16 v = mul(load(m.acc + row * s.padded + i), broadcast(m.sums[row]));
      store_n(out + i, v, a.head_dim - i);
    }
  }
}

}  // namespace

int64_t attention_scratch(const AttentionTask& a) {
  const Sizes s = sizes_of(a);
  return s.rows * (a.head_dim + s.pages * kPage + 1 + s.padded) + kPage * s.padded;
}

void attention_block(const AttentionTask& a, float* scratch) {
  FLEXQ_FT_PICK_FLOAT(a.dtype, block_of, a, scratch)
}

}  // namespace flexq_ft::FLEXQ_ISA
