// GemmTable: measured choices of how to do a product, for one GPU. A text file (configs/gemm/),
// written by `flexq-ft bench tune`; those in the repository are compiled in.
//
//   # flexq-ft gemm table 1
//   # gpu NVIDIA H100 80GB HBM3
//   # cublaslt 130101
//   scheme  dtype  n  k  m  kernel  config  us  note       (tab-separated)
//
// m is a bucket, a power of two: a row serves every m up to it and above half of it; the largest
// serves all above too. kernel is "skinny", config as SkinnyConfig is printed, or "cublaslt",
// config the words of cublasLtMatmulAlgo_t in hex. The whole struct, since the library promises
// that it can be stored and used again with the same version, which the attributes that it shows
// (in the note) do not: some kernels have parameters that no attribute holds.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "ft/kernels/gpu_gemm.h"

namespace flexq_ft {

// The smallest power of two >= m.
int64_t m_bucket(int64_t m);

struct GemmRow {
  GemmProblem problem;  // m: a bucket
  std::string kernel;   // "skinny" or "cublaslt"
  std::string config;
  double us = 0;     // median, weights cold in L2
  std::string note;  // for the reader
};

class GemmTable {
 public:
  GemmTable() = default;
  GemmTable(std::string gpu, size_t library_version)
      : gpu_(std::move(gpu)), library_version_(library_version) {}

  // Throws Error{kConfig} with the line that is wrong.
  static GemmTable parse(const std::string& text);

  const std::string& gpu() const { return gpu_; }
  size_t library_version() const { return library_version_; }  // of cuBLASLt, as it counts
  size_t size() const;
  std::vector<const GemmRow*> rows() const;  // in the order of the text

  // The row that serves a problem, or null.
  const GemmRow* find(const GemmProblem& problem) const;

  void set(const GemmRow& row);  // replaces the row of that problem
  // Rows of another table of this GPU for problems that have none here; of another version of
  // cuBLASLt only those that it does not decide (skinny).
  void add_missing(const GemmTable& older);
  std::string text() const;  // as parse() reads it, in order

 private:
  using Weight = std::tuple<Scheme, DataType, int64_t, int64_t>;  // n, k

  std::string gpu_;
  size_t library_version_ = 0;
  std::map<Weight, std::map<int64_t, GemmRow>> rows_;
};

// The text of the table for that GPU that was compiled in, or empty.
std::string built_in_gemm_table(const std::string& gpu);

// Texts compiled in, generated from configs/gemm/*.tsv.
const std::vector<std::string>& gemm_table_texts();

}  // namespace flexq_ft
