// A stand-in for CUDA's header: the host's memory in the place of the GPU's, and everything done at once.
#pragma once

#include <cstdlib>
#include <cstring>

using cudaStream_t = void*;
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2, cudaMemcpyDeviceToDevice = 3 };

inline int cudaStreamCreate(cudaStream_t*) { return 0; }
inline int cudaStreamSynchronize(cudaStream_t) { return 0; }
inline int cudaMalloc(void** address, size_t size) { return (*address = std::malloc(size)) == nullptr; }
inline int cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind, cudaStream_t) {
  std::memcpy(to, from, size);
  return 0;
}
