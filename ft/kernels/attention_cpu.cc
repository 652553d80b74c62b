#include <algorithm>
#include <vector>

#include "flexq_kernels/cpu/parallel.h"
#include "ft/kernels/attention_simd.h"
#include "ft/kernels/twins.h"

namespace flexq_ft::cpu {

namespace {

// Tokens per task: enough that a page of keys, once transposed, serves many rows; fewer for long
// contexts, so that the scores stay in a core's cache. Results do not depend on it. positions >= 1.
int64_t tokens_per_task(int64_t group, int64_t positions) {
  constexpr int64_t kScores = 131072;
  return std::clamp<int64_t>(kScores / (group * positions), 1, 16);
}

void add_sequence(const AttentionTask& base, int64_t tokens, std::vector<AttentionTask>& tasks) {
  const int64_t step = tokens_per_task(base.heads / base.kv_heads, base.context + tokens);
  for (int64_t end = tokens; end > 0; end = std::max<int64_t>(end - step, 0)) {  // longest first
    for (int64_t h = 0; h < base.kv_heads; ++h) {
      AttentionTask task = base;
      task.kv_head = h;
      task.begin = std::max<int64_t>(end - step, 0);
      task.end = end;
      tasks.push_back(task);
    }
  }
}

}  // namespace

void attention(Tensor out, ConstTensor q, KvPages kv, const RaggedBatch& batch) {
  thread_local std::vector<AttentionTask> tasks;
  tasks.clear();
  const int32_t* offsets = batch.offsets.data<int32_t>();
  int64_t operations = 0;
  for (int64_t s = 0; s < batch.sequences(); ++s) {
    const int64_t tokens = offsets[s + 1] - offsets[s];
    if (tokens == 0) continue;
    AttentionTask base{};
    base.out = out.rows(offsets[s], offsets[s + 1]).raw();
    base.q = q.rows(offsets[s], offsets[s + 1]).raw();
    base.k = kv.k.raw();
    base.v = kv.v.raw();
    base.pages = batch.pages.data<int32_t>() + s * batch.pages.dim(1);
    base.kv_heads = kv.k.dim(1);
    base.head_dim = kv.k.dim(3);
    base.heads = q.dim(1) / base.head_dim;
    base.context = batch.context.data<int32_t>()[s];
    base.dtype = q.dtype();
    add_sequence(base, tokens, tasks);
    operations += tokens * (base.context + tokens) * q.dim(1);
  }

  const auto run = FLEXQ_ISA_PICK(attention_block);
  const auto scratch_size = FLEXQ_ISA_PICK(attention_scratch);
  int64_t floats = 0;  // for the largest task
  for (const AttentionTask& task : tasks) floats = std::max(floats, scratch_size(task));
  // Made here, because nothing may throw inside the parallel region.
  thread_local std::vector<float> scratch;
  const auto wanted = static_cast<size_t>(floats * flexq_kernels::max_threads());
  if (scratch.size() < wanted) scratch.resize(wanted);
  const AttentionTask* const list = tasks.data();  // this thread's, for all of the team
  float* const base = scratch.data();
  const int64_t count = static_cast<int64_t>(tasks.size());
#pragma omp parallel for schedule(dynamic) if (operations > 32768)
  for (int64_t i = 0; i < count; ++i) run(list[i], base + floats * flexq_kernels::thread_index());
}

}  // namespace flexq_ft::cpu
