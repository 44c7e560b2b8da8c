# SPDX-License-Identifier: Apache-2.0
# HEADRACE_CUDA: ON fails without nvcc, OFF never looks, AUTO builds when it can and says why not.
# The CUDA kernels are a library of their own that links cudart statically, so that the extension
# loads on machines that have no driver.

set(HEADRACE_CUDA_STATE "off: HEADRACE_CUDA=OFF")
string(TOUPPER "${HEADRACE_CUDA}" headrace_cuda)
if(NOT headrace_cuda MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "HEADRACE_CUDA: expected AUTO, ON or OFF, got ${HEADRACE_CUDA}")
endif()
if(NOT headrace_cuda STREQUAL "OFF")
  include(CheckLanguage)
  check_language(CUDA)
  file(GLOB headrace_cuda_sources CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/kernels/*/*.cu)
  if(NOT CMAKE_CUDA_COMPILER)
    if(headrace_cuda STREQUAL "ON")
      message(FATAL_ERROR "HEADRACE_CUDA=ON: expected a working nvcc, found none; put it on PATH or set CUDACXX")
    endif()
    set(HEADRACE_CUDA_STATE "off: no working nvcc was found")
  elseif(NOT headrace_cuda_sources)
    set(HEADRACE_CUDA_STATE "off: no CUDA sources")
  else()
    enable_language(CUDA)
    add_library(_cuda MODULE ${headrace_cuda_sources})
    set_target_properties(_cuda PROPERTIES PREFIX "" CUDA_RUNTIME_LIBRARY Static CUDA_STANDARD 17
      CUDA_VISIBILITY_PRESET hidden CUDA_ARCHITECTURES OFF)
    target_include_directories(_cuda PRIVATE ${CMAKE_SOURCE_DIR})
    # No kernel asks what it is compiled for, so the PTX of all is the same; CMake's own list would
    # make it anew for each, which takes a third of the time.
    list(TRANSFORM HEADRACE_CUDA_ARCHITECTURES REPLACE "-(real|virtual)$" "" OUTPUT_VARIABLE targets)
    list(REMOVE_DUPLICATES targets)
    list(GET targets 0 least)
    list(TRANSFORM targets PREPEND "sm_")
    list(JOIN targets "," targets)
    target_compile_options(_cuda PRIVATE
      "--generate-code=arch=compute_${least},code=[compute_${least},${targets}]")
    if(UNIX)
      target_compile_options(_cuda PRIVATE -Xptxas=-v)
      set_property(TARGET _cuda PROPERTY CUDA_COMPILER_LAUNCHER
        sh ${CMAKE_SOURCE_DIR}/cmake/ptxas.sh ${CMAKE_CUDA_COMPILER_LAUNCHER})
    endif()
    install(TARGETS _cuda LIBRARY DESTINATION headrace)
    set(HEADRACE_CUDA_STATE "on: nvcc ${CMAKE_CUDA_COMPILER_VERSION} for ${HEADRACE_CUDA_ARCHITECTURES}")
  endif()
endif()
message(STATUS "headrace: CUDA kernels ${HEADRACE_CUDA_STATE}")
