// libflexq_ft_mpi: MPI behind the table of mpi_api.h. Nothing else links MPI.
//
// all_reduce: MPI recommends, but does not promise, that a reduction gives the same bits on every
// rank and at every run. So data is only moved by MPI and added here, in rank order. Both ways of
// moving it below give the same sums.
#include <mpi.h>

#include <algorithm>
#include <climits>
#include <cstdio>
#include <vector>

#include "ft/comm/mpi_api.h"

namespace {

constexpr int kThreadLevelTooLow = -1;

// Below this each rank gathers everything and adds it all: one exchange instead of two.
constexpr size_t kSmallBytes = 32 * 1024;

MPI_Comm g_world = MPI_COMM_NULL;  // ours, so that other users' messages do not meet ours
int g_rank = 0;
int g_size = 1;
bool g_started_here = false;
std::vector<float> g_scratch;

#define FLEXQ_FT_MPI_TRY(expr)                                           \
  do {                                                                   \
    if (const int status = (expr); status != MPI_SUCCESS) return status; \
  } while (0)

int init(FlexqFtMpiWorld* world) {
  int running = 0;
  int level = MPI_THREAD_SINGLE;
  FLEXQ_FT_MPI_TRY(MPI_Initialized(&running));
  if (running) {
    FLEXQ_FT_MPI_TRY(MPI_Query_thread(&level));
  } else {
    FLEXQ_FT_MPI_TRY(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &level));
    g_started_here = true;
  }
  if (level < MPI_THREAD_SERIALIZED) return kThreadLevelTooLow;
  FLEXQ_FT_MPI_TRY(MPI_Comm_dup(MPI_COMM_WORLD, &g_world));
  FLEXQ_FT_MPI_TRY(MPI_Comm_set_errhandler(g_world, MPI_ERRORS_RETURN));
  FLEXQ_FT_MPI_TRY(MPI_Comm_rank(g_world, &g_rank));
  FLEXQ_FT_MPI_TRY(MPI_Comm_size(g_world, &g_size));
  MPI_Comm host = MPI_COMM_NULL;
  int local_rank = 0;
  FLEXQ_FT_MPI_TRY(
      MPI_Comm_split_type(g_world, MPI_COMM_TYPE_SHARED, g_rank, MPI_INFO_NULL, &host));
  FLEXQ_FT_MPI_TRY(MPI_Comm_rank(host, &local_rank));
  FLEXQ_FT_MPI_TRY(MPI_Comm_free(&host));
  *world = {g_rank, g_size, local_rank};
  return MPI_SUCCESS;
}

int barrier() { return MPI_Barrier(g_world); }

int broadcast(void* data, size_t bytes, int root) {
  char* at = static_cast<char*>(data);
  while (bytes > 0) {  // MPI counts in int
    const size_t part = std::min<size_t>(bytes, INT_MAX);
    FLEXQ_FT_MPI_TRY(MPI_Bcast(at, static_cast<int>(part), MPI_BYTE, root, g_world));
    at += part;
    bytes -= part;
  }
  return MPI_SUCCESS;
}

// out[i] = parts[0][i] + parts[1][i] + …; parts is [g_size, count].
void add_in_rank_order(float* out, const float* parts, size_t count) {
  std::copy(parts, parts + count, out);
  for (int r = 1; r < g_size; ++r) {
    const float* part = parts + r * count;
    for (size_t i = 0; i < count; ++i) out[i] += part[i];
  }
}

int all_reduce_small(float* data, int count) {
  g_scratch.resize(static_cast<size_t>(g_size) * count);
  FLEXQ_FT_MPI_TRY(
      MPI_Allgather(data, count, MPI_FLOAT, g_scratch.data(), count, MPI_FLOAT, g_world));
  add_in_rank_order(data, g_scratch.data(), count);
  return MPI_SUCCESS;
}

// Rank r adds up slice r of everybody's data, then the slices are gathered.
int all_reduce_large(float* data, int count) {
  std::vector<int> begins(g_size), lengths(g_size), mine(g_size), places(g_size);
  for (int r = 0; r < g_size; ++r) {
    begins[r] = static_cast<int>(static_cast<int64_t>(count) * r / g_size);
    lengths[r] = static_cast<int>(static_cast<int64_t>(count) * (r + 1) / g_size) - begins[r];
  }
  const int length = lengths[g_rank];
  for (int r = 0; r < g_size; ++r) {
    mine[r] = length;
    places[r] = r * length;
  }
  g_scratch.resize(static_cast<size_t>(g_size) * length);
  FLEXQ_FT_MPI_TRY(MPI_Alltoallv(data, lengths.data(), begins.data(), MPI_FLOAT, g_scratch.data(),
                                 mine.data(), places.data(), MPI_FLOAT, g_world));
  add_in_rank_order(data + begins[g_rank], g_scratch.data(), length);
  return MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_DATATYPE_NULL, data, lengths.data(), begins.data(),
                        MPI_FLOAT, g_world);
}

int all_reduce_f32(float* data, size_t count) {
  if (count == 0 || g_size == 1) return MPI_SUCCESS;
  // Offsets into the scratch buffer, which are a little over count, are int too.
  if (count > static_cast<size_t>(INT_MAX - g_size)) return MPI_ERR_COUNT;
  return count * sizeof(float) <= kSmallBytes ? all_reduce_small(data, static_cast<int>(count))
                                              : all_reduce_large(data, static_cast<int>(count));
}

int all_gather_bytes(void* out, const void* in, size_t bytes) {
  if (bytes > INT_MAX) return MPI_ERR_COUNT;
  const int count = static_cast<int>(bytes);
  return MPI_Allgather(in, count, MPI_BYTE, out, count, MPI_BYTE, g_world);
}

void abort_ranks(int code) { MPI_Abort(g_world == MPI_COMM_NULL ? MPI_COMM_WORLD : g_world, code); }

int finalize() {
  int ended = 0;
  FLEXQ_FT_MPI_TRY(MPI_Finalized(&ended));
  if (!g_started_here || ended) return MPI_SUCCESS;
  FLEXQ_FT_MPI_TRY(MPI_Comm_free(&g_world));
  return MPI_Finalize();
}

void error_text(int status, char* text, size_t size) {
  char from_mpi[MPI_MAX_ERROR_STRING] = "unknown status";
  int length = 0;
  const char* said = from_mpi;
  if (status == kThreadLevelTooLow) {
    said = "MPI was started without MPI_THREAD_SERIALIZED";
  } else {
    MPI_Error_string(status, from_mpi, &length);
  }
  std::snprintf(text, size, "%s", said);
}

constexpr FlexqFtMpiApi kApi = {init,        barrier,  broadcast, all_reduce_f32, all_gather_bytes,
                                abort_ranks, finalize, error_text};

}  // namespace

extern "C" [[gnu::visibility("default")]] const FlexqFtMpiApi* flexq_ft_mpi_api(int version) {
  return version == kFlexqFtMpiVersion ? &kApi : nullptr;
}
