# cmake -D SOURCE=... -D HEADER=... -P commit.cmake: writes which commit is built, and whether with changes, where that is news.
execute_process(COMMAND git -C ${SOURCE} describe --always --dirty --abbrev=12
                OUTPUT_VARIABLE TRANSPOOL_COMMIT OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
if(NOT TRANSPOOL_COMMIT)
  set(TRANSPOOL_COMMIT unknown)
endif()
configure_file(${CMAKE_CURRENT_LIST_DIR}/commit.h.in ${HEADER})
