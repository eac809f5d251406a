// A stand-in for TensorRT's header: the part that printed programs use, and no more. An engine is what tensorrt.py beside
// this folder builds, a header and the ONNX; its numbers are ONNX Runtime's, by served.h.
#pragma once

#include <cstdio>
#include <map>
#include <memory>

#include "served.h"

namespace nvinfer1 {

class ILogger {
 public:
  enum class Severity { kINTERNAL_ERROR, kERROR, kWARNING, kINFO, kVERBOSE };
  virtual void log(Severity severity, const char* text) noexcept = 0;
  virtual ~ILogger() = default;
};

class IExecutionContext {
 public:
  explicit IExecutionContext(std::shared_ptr<served::Model> model) : model_(std::move(model)) {}
  bool setTensorAddress(const char* name, void* address) {
    addresses_[name] = static_cast<char*>(address);
    return true;
  }
  bool enqueueV3(void*) {
    std::vector<served::Tensor> inputs;
    std::vector<std::string> outputs;
    for (const auto& one : model_->ports) {
      if (addresses_.count(one.name) == 0) return false;  // TensorRT runs nothing whose tensors lie nowhere
      size_t bytes = one.type == 1 || one.type == 6 ? 4 : one.type == 7 ? 8 : one.type == 10 ? 2 : 1;
      for (int64_t size : one.shape) bytes *= static_cast<size_t>(size);
      const char* first = addresses_[one.name];
      if (one.is_input) {
        inputs.push_back({one.name, one.type, one.shape, {first, first + bytes}});
      } else {
        outputs.push_back(one.name);
      }
    }
    for (const served::Tensor& one : model_->run(inputs, outputs)) {
      std::copy(one.bytes.begin(), one.bytes.end(), addresses_[one.name]);
    }
    return true;
  }

 private:
  std::shared_ptr<served::Model> model_;
  std::map<std::string, char*> addresses_;
};

class ICudaEngine {
 public:
  explicit ICudaEngine(const std::string& path) : model_(std::make_shared<served::Model>(path)) {}
  IExecutionContext* createExecutionContext() { return new IExecutionContext(model_); }

 private:
  std::shared_ptr<served::Model> model_;
};

class IRuntime {
 public:
  ICudaEngine* deserializeCudaEngine(const void* bytes, size_t size) {
    constexpr size_t header = 64;
    if (size <= header) return nullptr;
    const char* folder = std::getenv("TMPDIR");
    std::string path = std::string(folder ? folder : "/tmp") + "/standin-XXXXXX";
    const int file = mkstemp(path.data());
    if (file < 0) return nullptr;
    const char* first = static_cast<const char*>(bytes) + header;
    const bool written = write(file, first, size - header) == static_cast<ssize_t>(size - header);
    close(file);
    ICudaEngine* engine = written ? new ICudaEngine(path.c_str()) : nullptr;
    std::remove(path.c_str());
    return engine;
  }
};

inline IRuntime* createInferRuntime(ILogger&) { return new IRuntime; }

}  // namespace nvinfer1
