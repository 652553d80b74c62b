// Log lines go to stderr, as "flexq-ft: warning: …". Results never pass through here.
#pragma once

#include <string>

namespace flexq_ft {

enum class LogLevel { kError = 0, kWarning = 1, kInfo = 2, kDebug = 3 };

// Default kWarning. Ranks other than 0 are set to kError by whoever starts them.
void set_log_level(LogLevel level);
void log(LogLevel level, const std::string& text);

}  // namespace flexq_ft
