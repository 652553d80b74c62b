# The library, its headers and its package files.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/flexq_kernels)

install(TARGETS flexq_kernels EXPORT flexq_kernels ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
set(not_built "")
if(NOT FLEXQ_FT_HAS_CUDA)
  set(not_built PATTERN gpu EXCLUDE)
endif()
install(DIRECTORY include/ DESTINATION include ${not_built})
install(FILES ../LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/licenses/flexq_kernels)
install(
  EXPORT flexq_kernels
  NAMESPACE flexq_kernels::
  DESTINATION ${package_dir}
  FILE flexq_kernels-targets.cmake)
configure_package_config_file(
  cmake/flexq_kernels-config.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/flexq_kernels-config.cmake
  INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(
  ${CMAKE_CURRENT_BINARY_DIR}/flexq_kernels-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/flexq_kernels-config.cmake
              ${CMAKE_CURRENT_BINARY_DIR}/flexq_kernels-config-version.cmake
        DESTINATION ${package_dir})
