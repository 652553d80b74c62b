// Where this code lies on disk: libraries are looked for from there.
#pragma once

#include <filesystem>

namespace flexq_ft {

// The folder of the module or program that the runtime was linked into.
std::filesystem::path own_folder();

}  // namespace flexq_ft
