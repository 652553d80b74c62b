// From one row of logits to one token: FasterTransformer's order and meaning, without its faults.
//
// Order: bad words, temperature, repetition or presence penalty, minimum length, top-k, top-p,
// min-p, draw. top_k = 0 and top_p = 0: greedy; top_k > 0 and top_p = 0: top_p = 1; both: top-p
// inside the top-k mass. Temperature 0: greedy. Greedy ties go to the lowest id. min-p keeps tokens
// with at least min_p times the best one's probability. The draw walks the kept tokens by id.
//
// Otherwise than FasterTransformer: the temperature divides without its 1e-6, id 0 can be banned,
// top_k has no cap, and logits that are not finite are an error, never a token.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace flexq_ft {

struct SamplingParams {
  double temperature = 0.0;
  int64_t top_k = 0;
  double top_p = 1.0;
  double min_p = 0.0;
  double repetition_penalty = 1.0;  // logit < 0 ? logit * p : logit / p, over prompt and output
  double presence_penalty = 0.0;    // logit - p; not together with repetition_penalty
  int64_t min_tokens = 0;           // end ids are masked until so many were generated
  int64_t max_tokens = 128;
  uint64_t seed = 0;
  bool ignore_eos = false;
  std::vector<int64_t> end_ids;                  // empty: the model's
  std::vector<std::vector<int64_t>> stop_words;  // token sequences; their tokens stay in the output
  std::vector<std::vector<int64_t>> bad_words;   // token sequences that are never completed

  // Throws Error{kConfig} naming the first value out of range.
  void validate(int64_t vocab_size) const;
};

// log of the sum of the exponentials of logits [vocab_size >= 1]. Error{kWeight} naming the first
// that is not finite.
double log_sum_exp(const float* logits, int64_t vocab_size);

struct Sampled {
  int64_t token = 0;
  float logprob = 0.0f;  // log-softmax of the model's own logits, before anything above
};

// logits [vocab] fp32, changed in place; Error{kWeight} if one is not finite, Error{kConfig} if the
// bad words and the minimum length leave no token, or temperature and penalty an infinite one.
// history: prompt and output ids. generated:
// output tokens so far. The draw depends on (seed, generated) only: a counter-based generator,
// Philox4x32-10, the same on every device.
Sampled sample_token(float* logits, int64_t vocab_size, const SamplingParams& params,
                     const std::vector<int64_t>& end_ids, const std::vector<int64_t>& history,
                     int64_t generated);

// One block of Philox4x32-10: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).
std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// A uniform number in [0, 1) from Philox4x32-10 with key = seed and counter = index: the top 53
// bits of the first two words, the first the lower one.
double philox_uniform(uint64_t seed, uint64_t index);

}  // namespace flexq_ft
