#include "ft/decoding/cgroup.h"

#include <unistd.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>

#include "ft/decoding/host.h"
#include "tests/cpp/check.h"

using namespace flexq_ft;

namespace {

namespace fs = std::filesystem;

constexpr size_t kNoLimit = std::numeric_limits<size_t>::max();

// A root of a file system with these files; the next one takes its place.
class Root {
 public:
  Root() : path_(fs::temp_directory_path() / ("flexq_ft_test_cgroup." + std::to_string(getpid()))) {
    fs::remove_all(path_);
  }
  ~Root() { fs::remove_all(path_); }

  Root& file(const std::string& name, const std::string& text) {
    fs::create_directories((path_ / name).parent_path());
    std::ofstream(path_ / name) << text;
    return *this;
  }
  CgroupLimits limits() const { return cgroup_limits(path_.string()); }

 private:
  fs::path path_;
};

}  // namespace

TEST(without_groups_or_limits_there_is_none) {
  EXPECT_EQ(Root().limits().memory_left, kNoLimit);
  Root root;
  root.file("proc/self/cgroup", "0::/\nnonsense\n:\n")
      .file("sys/fs/cgroup/memory.max", "max\n")
      .file("sys/fs/cgroup/memory.current", "7\n")
      .file("sys/fs/cgroup/cpu.max", "max 100000\n");
  EXPECT_EQ(root.limits().memory_left, kNoLimit);
  EXPECT(std::isinf(root.limits().cores));
}

TEST(what_the_kernel_gives_back_is_not_taken) {
  Root root;
  root.file("proc/self/cgroup", "0::/a/b\n")
      .file("sys/fs/cgroup/a/b/memory.max", "1000\n")
      .file("sys/fs/cgroup/a/b/memory.current", "900\n")
      .file("sys/fs/cgroup/a/b/memory.stat",
            "anon 200\nslab_reclaimable 50\nactive_file 100\ninactive_file 500\n")
      .file("sys/fs/cgroup/a/b/cpu.max", "150000 100000\n");
  EXPECT_EQ(root.limits().memory_left, size_t{750});
  EXPECT_EQ(root.limits().cores, 1.5);
}

TEST(the_strictest_of_the_groups_around_it_counts) {
  Root root;
  root.file("proc/self/cgroup", "0::/a/b\n")
      .file("sys/fs/cgroup/a/b/memory.max", "1000\n")
      .file("sys/fs/cgroup/a/b/memory.current", "100\n")
      .file("sys/fs/cgroup/a/memory.max", "400\n")
      .file("sys/fs/cgroup/a/memory.current", "300\n")
      .file("sys/fs/cgroup/cpu.max", "50000 100000\n");
  EXPECT_EQ(root.limits().memory_left, size_t{100});
  EXPECT_EQ(root.limits().cores, 0.5);
  root.file("sys/fs/cgroup/a/memory.current", "500\n");  // the limit was lowered since
  EXPECT_EQ(root.limits().memory_left, size_t{0});
}

TEST(version_1_has_a_tree_for_each_controller) {
  Root root;
  // In a container the path is the host's, and the mount begins at the container's group.
  root.file("proc/self/cgroup", "4:memory:/docker/1f\n3:cpu,cpuacct:/docker/1f\n0::/\n")
      .file("sys/fs/cgroup/memory/memory.limit_in_bytes", "2000\n")
      .file("sys/fs/cgroup/memory/memory.usage_in_bytes", "1500\n")
      .file("sys/fs/cgroup/memory/memory.stat", "inactive_file 9\ntotal_inactive_file 1000\n")
      .file("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "200000\n")
      .file("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(root.limits().memory_left, size_t{1500});
  EXPECT_EQ(root.limits().cores, 2.0);
  root.file("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
  EXPECT(std::isinf(root.limits().cores));
}

TEST(a_host_always_has_a_core_and_some_memory) {
  EXPECT(usable_cores() >= 1);
  EXPECT(available_memory() >= 1);
}
