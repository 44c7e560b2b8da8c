# SPDX-License-Identifier: Apache-2.0
# Every kernel body is compiled once per instruction-set level. The files hold nothing but functions
# of internal linkage and one table, so no copy made for AVX-512 can leak into the rest.

set(HEADRACE_ISA_FLAGS_scalar "")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(HEADRACE_ISAS scalar avx2 avx512)
  set(HEADRACE_ISA_FLAGS_avx2 -mavx2 -mfma -mf16c)
  set(HEADRACE_ISA_FLAGS_avx512 ${HEADRACE_ISA_FLAGS_avx2} -mavx512f -mavx512bw -mavx512vl -mavx512dq)
  # Dot products of whole numbers; of bf16 pairs too, beside tables of bytes, which all but one
  # generation of processors with the former have. Older compilers go without.
  set(headrace_vnni -mavx512vnni)
  set(headrace_bf16 -mavx512bf16 -mavx512vnni -mavx512vbmi)
  include(CheckCXXCompilerFlag)
  foreach(added vnni bf16)
    string(TOUPPER HEADRACE_HAS_${added} has)
    list(JOIN headrace_${added} " " flags)
    check_cxx_compiler_flag("${flags}" ${has})
    if(HEADRACE_EMULATE)
      set(headrace_${added} -DHEADRACE_EMULATE)
    endif()
    if(HEADRACE_EMULATE OR ${has})
      list(APPEND HEADRACE_ISAS avx512_${added})
      set(HEADRACE_ISA_FLAGS_avx512_${added} ${HEADRACE_ISA_FLAGS_avx512} ${headrace_${added}})
    endif()
  endforeach()
else()
  set(HEADRACE_ISAS scalar)
endif()

# Checks in every unrolled line make -O3 take minutes a file.
if(HEADRACE_SANITIZE)
  set(headrace_level 1)
else()
  set(headrace_level 3)
endif()
set(HEADRACE_KERNEL_LEVEL ${headrace_level} CACHE STRING "the -O of the kernels; 1 builds quickest")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64" AND HEADRACE_KERNEL_LEVEL EQUAL 3)
  # Hardly a processor is left to this level there, and -O3 takes half as long again to compile.
  set(HEADRACE_ISA_FLAGS_scalar -O2)
endif()
set(HEADRACE_KERNEL_FLAGS "-O${HEADRACE_KERNEL_LEVEL} -ffp-contract=off -fno-math-errno")
separate_arguments(headrace_kernel_options UNIX_COMMAND "${HEADRACE_KERNEL_FLAGS}")
set(HEADRACE_SANITIZE_FLAGS
  -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g)

function(headrace_isa_objects target)
  foreach(isa IN LISTS HEADRACE_ISAS)
    set(sources "")
    foreach(family IN LISTS ARGN)
      set(source kernels/${family}/cpu_${isa}.cpp)
      # Few families have something of their own above AVX-512.
      if(NOT isa MATCHES "^avx512_" OR EXISTS ${CMAKE_SOURCE_DIR}/${source})
        list(APPEND sources ${source})
      endif()
    endforeach()
    add_library(headrace_${isa} OBJECT ${sources})
    target_include_directories(headrace_${isa} PRIVATE ${CMAKE_SOURCE_DIR})
    # The last two warnings are false alarms of GCC 12's own AVX-512 headers.
    target_compile_options(headrace_${isa} PRIVATE ${headrace_kernel_options}
      ${HEADRACE_ISA_FLAGS_${isa}} -Wall -Wextra -Wno-uninitialized -Wno-maybe-uninitialized)
    if(HEADRACE_SANITIZE)
      target_compile_options(headrace_${isa} PRIVATE ${HEADRACE_SANITIZE_FLAGS})
    endif()
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:headrace_${isa}>)
  endforeach()
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    target_compile_definitions(${target} PRIVATE HEADRACE_X86
      $<$<IN_LIST:avx512_vnni,${HEADRACE_ISAS}>:HEADRACE_VNNI>
      $<$<IN_LIST:avx512_bf16,${HEADRACE_ISAS}>:HEADRACE_BF16>
      $<$<BOOL:${HEADRACE_EMULATE}>:HEADRACE_EMULATE>)
  endif()
endfunction()
