// A stand-in for ONNX Runtime's C++ header: the part that printed programs use, and no more. Numbers are ONNX Runtime's
// own, by served.h; what the real header checks of types and lifetimes it does not.
#pragma once

#include <cstring>
#include <memory>

#include "served.h"

#define ORT_TSTR(text) text

enum OrtLoggingLevel { ORT_LOGGING_LEVEL_WARNING = 2 };
enum OrtAllocatorType { OrtDeviceAllocator = 0 };
enum OrtMemType { OrtMemTypeDefault = 0 };
enum ONNXTensorElementDataType {
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 = 2,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8 = 3,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 = 6,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 = 7,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL = 9,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 = 10,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE = 11,
};

namespace Ort {

struct Env {
  Env(OrtLoggingLevel, const char*) {}
};
struct SessionOptions {};
struct RunOptions {};
struct AllocatorWithDefaultOptions {};
struct MemoryInfo {
  static MemoryInfo CreateCpu(OrtAllocatorType, OrtMemType) { return {}; }
};
struct TensorTypeAndShapeInfo {
  std::vector<int64_t> shape;
  size_t GetElementCount() const {
    size_t count = 1;
    for (int64_t size : shape) count *= static_cast<size_t>(size);
    return count;
  }
  std::vector<int64_t> GetShape() const { return shape; }
};

class Value {
 public:
  Value(Value&&) = default;
  Value& operator=(Value&&) = default;
  Value(const Value&) = delete;

  static Value CreateTensor(const MemoryInfo&, void* values, size_t bytes, const int64_t* shape, size_t rank,
                            ONNXTensorElementDataType type) {
    Value made;
    made.data_ = static_cast<char*>(values);
    made.bytes_ = bytes;
    made.type_ = type;
    made.shape_.assign(shape, shape + rank);
    return made;
  }
  template <typename T>
  static Value CreateTensor(AllocatorWithDefaultOptions&, const int64_t* shape, size_t rank) {
    static_assert(std::is_same<T, float>::value, "the stand-in has floats alone");
    served::Tensor tensor;
    tensor.type = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    tensor.shape.assign(shape, shape + rank);
    tensor.bytes.resize(TensorTypeAndShapeInfo{tensor.shape}.GetElementCount() * sizeof(T));
    return Value(std::move(tensor));
  }
  explicit Value(served::Tensor tensor) {
    type_ = tensor.type;
    shape_ = tensor.shape;
    owned_ = std::make_unique<std::vector<char>>(std::move(tensor.bytes));
    data_ = owned_->data();
    bytes_ = owned_->size();
  }
  template <typename T>
  const T* GetTensorData() const {
    return reinterpret_cast<const T*>(data_);
  }
  template <typename T>
  T* GetTensorMutableData() {
    return reinterpret_cast<T*>(data_);
  }
  TensorTypeAndShapeInfo GetTensorTypeAndShapeInfo() const { return {shape_}; }
  served::Tensor handed(const char* name) const {
    return {name, type_, shape_, std::vector<char>(data_, data_ + bytes_)};
  }

 private:
  Value() = default;
  std::unique_ptr<std::vector<char>> owned_;
  char* data_ = nullptr;
  size_t bytes_ = 0;
  int32_t type_ = 0;
  std::vector<int64_t> shape_;
};

class Session {
 public:
  Session(const Env&, const char* path, const SessionOptions&) : model_(path) {}
  std::vector<Value> Run(const RunOptions&, const char* const* input_names, const Value* inputs, size_t input_count,
                         const char* const* output_names, size_t output_count) {
    std::vector<served::Tensor> given;
    for (size_t i = 0; i < input_count; ++i) given.push_back(inputs[i].handed(input_names[i]));
    std::vector<Value> found;
    for (served::Tensor& one : model_.run(given, {output_names, output_names + output_count})) {
      found.emplace_back(std::move(one));
    }
    return found;
  }

 private:
  served::Model model_;
};

}  // namespace Ort
