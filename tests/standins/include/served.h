// Stand-ins of C++ headers hand their numbers to ONNX Runtime in Python: serve_step.py, in a process of its own.
#pragma once

#include <sys/wait.h>
#include <unistd.h>

#include <cstdint>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

namespace served {

struct Tensor {
  std::string name;
  int32_t type = 0;  // ONNX's number
  std::vector<int64_t> shape;
  std::vector<char> bytes;
};

class Model {
 public:
  struct Port {
    std::string name;
    bool is_input = false;
    int32_t type = 0;
    std::vector<int64_t> shape;
  };
  std::vector<Port> ports;

  explicit Model(const std::string& path) {
    int there[2], back[2];
    if (pipe(there) != 0 || pipe(back) != 0) throw std::runtime_error("no pipe");
    child_ = fork();
    if (child_ == 0) {
      dup2(there[0], 0);
      dup2(back[1], 1);
      for (int one : {there[0], there[1], back[0], back[1]}) close(one);
      const char* python = std::getenv("STANDIN_PYTHON");  // by its own path, by which it finds its environment
      execl(python, python, std::getenv("STANDIN_SERVER"), path.c_str(), nullptr);
      _exit(1);
    }
    close(there[0]);
    close(back[1]);
    to_ = there[1];
    from_ = back[0];
    ports.resize(number());
    for (Port& one : ports) {
      one.name = text();
      one.is_input = number() != 0;
      one.type = static_cast<int32_t>(number());
      one.shape = sizes();
    }
  }

  ~Model() {
    close(to_);
    close(from_);
    waitpid(child_, nullptr, 0);
  }

  std::vector<Tensor> run(const std::vector<Tensor>& inputs, const std::vector<std::string>& outputs) {
    put_number(static_cast<int64_t>(inputs.size()));
    for (const Tensor& one : inputs) {
      put_text(one.name);
      put_number(one.type);
      put_number(static_cast<int64_t>(one.shape.size()));
      for (int64_t size : one.shape) put_number(size);
      put_number(static_cast<int64_t>(one.bytes.size()));
      put(one.bytes.data(), one.bytes.size());
    }
    put_number(static_cast<int64_t>(outputs.size()));
    for (const std::string& one : outputs) put_text(one);
    std::vector<Tensor> found(outputs.size());
    for (size_t i = 0; i < found.size(); ++i) {
      found[i].name = outputs[i];
      found[i].type = static_cast<int32_t>(number());
      found[i].shape = sizes();
      found[i].bytes.resize(number());
      get(found[i].bytes.data(), found[i].bytes.size());
    }
    return found;
  }

 private:
  pid_t child_;
  int to_, from_;

  void put(const void* values, size_t size) {
    for (size_t done = 0; done < size;) {
      const ssize_t count = write(to_, static_cast<const char*>(values) + done, size - done);
      if (count <= 0) throw std::runtime_error("the model's process ended");
      done += count;
    }
  }
  void get(void* values, size_t size) {
    for (size_t done = 0; done < size;) {
      const ssize_t count = read(from_, static_cast<char*>(values) + done, size - done);
      if (count <= 0) throw std::runtime_error("the model's process ended");
      done += count;
    }
  }
  void put_number(int64_t value) { put(&value, sizeof(value)); }
  void put_text(const std::string& value) {
    put_number(static_cast<int64_t>(value.size()));
    put(value.data(), value.size());
  }
  size_t number() {
    int64_t value = 0;
    get(&value, sizeof(value));
    return static_cast<size_t>(value);
  }
  std::string text() {
    std::string value(number(), ' ');
    get(value.data(), value.size());
    return value;
  }
  std::vector<int64_t> sizes() {
    std::vector<int64_t> found(number());
    for (int64_t& one : found) one = static_cast<int64_t>(number());
    return found;
  }
};

}  // namespace served
