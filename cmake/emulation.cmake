# GRU_FAST_EMULATE: csrc/cuda as ordinary C++ on tests/emulation, which stands where the CUDA runtime would.
set_source_files_properties(${cuda_sources} PROPERTIES
  LANGUAGE CXX
  COMPILE_OPTIONS "-xc++;-Wno-unknown-pragmas;-Wno-unused-value")
add_library(emulated OBJECT ${cuda_sources} tests/emulation/emulator.cpp tests/emulation/bindings.cpp)
target_link_libraries(emulated PRIVATE pybind11::module)
target_include_directories(emulated PRIVATE tests/emulation)
target_compile_options(emulated PRIVATE -O1 -mfma -fno-math-errno)
target_sources(_core PRIVATE $<TARGET_OBJECTS:emulated>)
target_include_directories(_core PRIVATE tests/emulation)
target_compile_definitions(_core PRIVATE GRU_FAST_HAS_CUDA=1 GRU_FAST_EMULATE=1)
