// flexq_kernels knows no Error: what it throws, as one.
#pragma once

#include <stdexcept>

#include "ft/core/error.h"

namespace flexq_ft {

// call(), with std::invalid_argument as an Error of kind `arguments` (kConfig where a user chose
// them, kInternal where they follow from what was checked), and std::runtime_error, which the CUDA
// runtime gives rise to, as Error{kDevice}.
template <typename Call>
decltype(auto) with_library_errors(ErrorKind arguments, Call&& call) {
  try {
    return call();
  } catch (const Error&) {
    throw;
  } catch (const std::invalid_argument& error) {
    throw Error(arguments, error.what());
  } catch (const std::runtime_error& error) {
    throw Error(ErrorKind::kDevice, error.what());
  }
}

}  // namespace flexq_ft
