#include "ft/decoding/cgroup.h"

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>

namespace flexq_ft {

namespace {

namespace fs = std::filesystem;

// The first number of a file; false for `max`, for -1, and where there is none.
bool read_number(const fs::path& path, uint64_t* out) {
  std::ifstream file(path);
  int64_t value = 0;
  if (!(file >> value) || value < 0) return false;
  *out = static_cast<uint64_t>(value);
  return true;
}

// What memory.stat counts and the kernel gives back, by the names of its version.
uint64_t reclaimable_bytes(const fs::path& path, bool is_v2) {
  const std::string prefix = is_v2 ? "" : "total_";
  std::ifstream file(path);
  uint64_t sum = 0, value = 0;
  for (std::string key; file >> key >> value;) {
    if (key == prefix + "inactive_file" || key == prefix + "active_file" ||
        key == "slab_reclaimable") {
      sum += value;
    }
  }
  return sum;
}

void limit_memory(const fs::path& group, bool is_v2, CgroupLimits* limits) {
  uint64_t most = 0, taken = 0;
  if (!read_number(group / (is_v2 ? "memory.max" : "memory.limit_in_bytes"), &most)) return;
  if (!read_number(group / (is_v2 ? "memory.current" : "memory.usage_in_bytes"), &taken)) return;
  taken -= std::min(taken, reclaimable_bytes(group / "memory.stat", is_v2));
  const size_t left = most > taken ? most - taken : 0;
  limits->memory_left = std::min(limits->memory_left, left);
}

void limit_cores(const fs::path& group, bool is_v2, CgroupLimits* limits) {
  std::ifstream file(group / (is_v2 ? "cpu.max" : "cpu.cfs_quota_us"));
  int64_t quota = 0, period = 0;
  if (!(file >> quota) || quota < 0) return;
  if (!is_v2) file = std::ifstream(group / "cpu.cfs_period_us");  // version 2 has both in a line
  if (!(file >> period) || period <= 0) return;
  limits->cores = std::min(limits->cores, static_cast<double>(quota) / static_cast<double>(period));
}

// Calls limit for the group and for each that it is in, up to where they are mounted. Within a
// container the path may be that of the host, of which the mount shows the end alone.
template <typename Limit>
void climb(const fs::path& mount, fs::path group, Limit&& limit) {
  while (true) {
    limit(mount / group.relative_path());
    if (!group.has_relative_path()) return;
    group = group.parent_path();
  }
}

}  // namespace

CgroupLimits cgroup_limits(const std::string& root) {
  CgroupLimits limits;
  const fs::path mounts = fs::path(root + "/sys/fs/cgroup");
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // number:controllers:/path
    const size_t first = line.find(':');
    const size_t second = line.find(':', first == std::string::npos ? first : first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const fs::path group = line.substr(second + 1);
    const bool is_v2 = controllers == ",,";
    if (is_v2 || controllers.find(",memory,") != std::string::npos) {
      climb(is_v2 ? mounts : mounts / "memory", group,
            [&](const fs::path& path) { limit_memory(path, is_v2, &limits); });
    }
    if (is_v2 || controllers.find(",cpu,") != std::string::npos) {
      climb(is_v2 ? mounts : mounts / "cpu", group,
            [&](const fs::path& path) { limit_cores(path, is_v2, &limits); });
    }
  }
  return limits;
}

}  // namespace flexq_ft
