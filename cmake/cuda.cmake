# Decides whether the CUDA kernels are built, and with which compiler. Sets
#   GRU_FAST_HAS_CUDA            and enables the language CUDA if true
#   GRU_FAST_CUDA_VERSION        of the toolkit, GRU_FAST_CUDA_ARCHITECTURES for people to read; empty without CUDA
#   GRU_FAST_NO_CUDA_REASON      empty with CUDA
#
# The switch GRU_FAST_CUDA, a CMake or an environment variable:
#   auto  (default) CUDA kernels if nvcc is there; says so if it is not
#   on    nvcc is required
#   off   CPU only
#   pip   nvcc from PyPI: pyproject.toml adds it to the build requirements
if(NOT DEFINED GRU_FAST_CUDA AND NOT "$ENV{GRU_FAST_CUDA}" STREQUAL "")
  set(GRU_FAST_CUDA "$ENV{GRU_FAST_CUDA}")
endif()
set(GRU_FAST_CUDA "auto" CACHE STRING "CUDA kernels: auto, on, off or pip")
set_property(CACHE GRU_FAST_CUDA PROPERTY STRINGS auto on off pip)
string(TOLOWER "${GRU_FAST_CUDA}" cuda_switch)
if(NOT cuda_switch MATCHES "^(auto|on|off|pip)$")
  message(FATAL_ERROR "GRU_FAST_CUDA: expected auto, on, off or pip, got \"${GRU_FAST_CUDA}\".")
endif()

set(oldest_cuda 12.1)  # the tensor table is a kernel parameter of up to 32,764 bytes
set(GRU_FAST_HAS_CUDA OFF)
set(GRU_FAST_CUDA_VERSION "")
set(GRU_FAST_CUDA_ARCHITECTURES "")
set(GRU_FAST_NO_CUDA_REASON "")

# The nvcc of the Python environment that runs the build: pip's temporary one, or yours with --no-build-isolation.
function(find_pip_nvcc result)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c "
import importlib.util, pathlib
spec = importlib.util.find_spec('nvidia')
roots = map(pathlib.Path, spec.submodule_search_locations) if spec else []
print(next((nvcc for root in roots for nvcc in sorted(root.glob('cu1*/bin/nvcc'))), ''))"
    OUTPUT_VARIABLE nvcc OUTPUT_STRIP_TRAILING_WHITESPACE COMMAND_ERROR_IS_FATAL ANY)
  if(NOT nvcc)
    message(FATAL_ERROR
      "GRU_FAST_CUDA=pip: no nvcc among the build requirements. Set GRU_FAST_CUDA=pip as an environment variable "
      "(a -C or -D option comes too late to add it), or without build isolation install it first: "
      "pip install \"cuda-toolkit[nvcc,cccl]>=13,<14\"")
  endif()
  set(${result} "${nvcc}" PARENT_SCOPE)
endfunction()

set(problem "")
if(cuda_switch STREQUAL "off")
  set(problem "GRU_FAST_CUDA=off at build")
elseif(cuda_switch STREQUAL "pip")
  unset(CMAKE_CUDA_COMPILER CACHE)
  find_pip_nvcc(nvcc)
  set(ENV{CUDACXX} "${nvcc}")
elseif(NOT CMAKE_CUDA_COMPILER AND "$ENV{CUDACXX}" STREQUAL "")
  # CMake itself looks in PATH only.
  find_program(GRU_FAST_NVCC nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATHS /usr/local/cuda PATH_SUFFIXES bin)
  if(GRU_FAST_NVCC)
    set(ENV{CUDACXX} "${GRU_FAST_NVCC}")
  else()
    set(problem "nvcc was not found at build")
  endif()
endif()

if(NOT problem)
  if(DEFINED CMAKE_CUDA_ARCHITECTURES OR NOT "$ENV{CUDAARCHS}" STREQUAL "")
    set(chosen_architectures ON)
  else()
    set(chosen_architectures OFF)
  endif()
  include(CheckLanguage)
  check_language(CUDA)  # a compiler that does not work is a reason, not yet an error
  if(NOT CMAKE_CUDA_COMPILER)
    set(problem "nvcc ($ENV{CUDACXX}) does not work with ${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}")
  else()
    enable_language(CUDA)
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS oldest_cuda)
      set(problem "CUDA ${CMAKE_CUDA_COMPILER_VERSION} is older than ${oldest_cuda}")
    endif()
  endif()
endif()

if(problem)
  set(mend "Put nvcc of CUDA ${oldest_cuda} or newer on PATH (or set CUDACXX), or take it from PyPI: GRU_FAST_CUDA=pip pip install .")
  if(cuda_switch MATCHES "^(on|pip)$")
    message(FATAL_ERROR "GRU_FAST_CUDA=${cuda_switch}, but ${problem}. ${mend}")
  elseif(cuda_switch STREQUAL "auto" AND NOT APPLE)
    message(WARNING "gru_fast is built for the CPU only: ${problem}. CUDA tensors will take the slower PyTorch path. ${mend}")
  endif()
  set(GRU_FAST_NO_CUDA_REASON "${problem}")
  message(STATUS "CUDA kernels: no (${problem})")
  return()
endif()

if(NOT chosen_architectures)
  # Machine code for each; the last one also as PTX, which newer devices translate.
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90)
  else()
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90-real 100-real 120)
  endif()
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)

set(GRU_FAST_HAS_CUDA ON)
set(GRU_FAST_CUDA_VERSION "${CMAKE_CUDA_COMPILER_VERSION}")
set(readable ${CMAKE_CUDA_ARCHITECTURES})
list(TRANSFORM readable REPLACE "^([0-9]+[a-z]?)$" "\\1+ptx")
list(TRANSFORM readable REPLACE "-real$" "")
list(TRANSFORM readable REPLACE "-virtual$" " (ptx)")
list(JOIN readable "," GRU_FAST_CUDA_ARCHITECTURES)
message(STATUS "CUDA kernels: ${CMAKE_CUDA_COMPILER} ${GRU_FAST_CUDA_VERSION}, ${GRU_FAST_CUDA_ARCHITECTURES}")
