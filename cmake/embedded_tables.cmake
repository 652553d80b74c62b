# flexq_embed_tables(TARGET FOLDER SOURCE.in): compiles SOURCE into TARGET, with the *.tsv files of a
# folder as string literals in the place of @tables@.
function(flexq_embed_tables target folder source)
  file(GLOB files CONFIGURE_DEPENDS ${folder}/*.tsv)
  set(tables "")
  foreach(file IN LISTS files)
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${file})
    file(READ ${file} text)
    string(APPEND tables "R\"table(${text})table\",\n")
  endforeach()
  get_filename_component(name ${source} NAME_WLE)
  configure_file(${source} ${CMAKE_CURRENT_BINARY_DIR}/${name} @ONLY)
  target_sources(${target} PRIVATE ${CMAKE_CURRENT_BINARY_DIR}/${name})
endfunction()
