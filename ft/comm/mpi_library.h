// Finds and opens libflexq_ft_mpi (mpi_api.h).
#pragma once

#include <string>

#include "ft/comm/mpi_api.h"

namespace flexq_ft {

// Where the library is, or empty: it was not built, or is not where an installation or a build
// tree puts it. Says nothing about whether it can be opened.
std::string find_mpi_library();

// Opens it once; later calls return the same table. Starts nothing. Throws Error{kDevice}, with the
// command to type, if it or MPI itself is not there.
const FlexqFtMpiApi& open_mpi_library();

}  // namespace flexq_ft
