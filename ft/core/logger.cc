#include "ft/core/logger.h"

#include <atomic>
#include <cstdio>

namespace flexq_ft {

namespace {
std::atomic<LogLevel> g_level{LogLevel::kWarning};
constexpr const char* kNames[] = {"error", "warning", "info", "debug"};
}  // namespace

void set_log_level(LogLevel level) { g_level = level; }

void log(LogLevel level, const std::string& text) {
  if (level > g_level.load()) return;
  std::fprintf(stderr, "flexq-ft: %s: %s\n", kNames[static_cast<int>(level)], text.c_str());
}

}  // namespace flexq_ft
