// What the control group of this process lets it have: the limits of a container, or of a service.
#pragma once

#include <cstddef>
#include <limits>
#include <string>

namespace flexq_ft {

struct CgroupLimits {
  // Bytes that may still be allocated: the limit less what is taken, without the pages of files
  // and the slabs that the kernel gives back.
  size_t memory_left = std::numeric_limits<size_t>::max();
  double cores = std::numeric_limits<double>::infinity();  // of processor time
};

// Of versions 1 and 2, the strictest of the group and those that it is in. root: where /proc and
// /sys are. What cannot be read limits nothing.
CgroupLimits cgroup_limits(const std::string& root = "");

}  // namespace flexq_ft
