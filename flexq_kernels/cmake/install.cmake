# The library, its headers and its package files.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)
set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/flexq_kernels)

install(TARGETS flexq_kernels EXPORT flexq_kernels ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY include/ DESTINATION include)
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
