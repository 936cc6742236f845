// ExecuTorch's runtime behind three C functions, for machines without PyTorch: a library of the runner in Python, and the
// half of a program (program.cpp) that needs no Python.
//
// Compiled against the headers and the library that ExecuTorch's wheel ships (see edgewise.studies.arm64.native), or, for
// a phone, against ExecuTorch built with the NDK. One input of a fixed shape, one float32 output: what a bundle's files have.

#include <executorch/runtime/core/data_loader.h>
#include <executorch/runtime/core/hierarchical_allocator.h>
#include <executorch/runtime/core/memory_allocator.h>
#include <executorch/runtime/executor/memory_manager.h>
#include <executorch/runtime/executor/method.h>
#include <executorch/runtime/executor/program.h>
#include <executorch/runtime/platform/runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

// Declared here: the wheel ships this class but not the header of pthreadpool that its own header includes.
namespace executorch::extension::threadpool {
class ThreadPool {
 public:
  size_t get_thread_count() const;
  bool _unsafe_reset_threadpool(uint32_t threads);
};
ThreadPool* get_threadpool();
}  // namespace executorch::extension::threadpool

namespace {

using namespace executorch::runtime;

constexpr size_t kAlignment = 64;

void* aligned(size_t size, size_t alignment) {
  alignment = alignment < kAlignment ? kAlignment : alignment;
  // XNNPACK reads a little past the end of what it is given.
  return std::aligned_alloc(alignment, (size + 2 * alignment + 127) / alignment * alignment);
}

class Growing final : public MemoryAllocator {
 public:
  Growing() : MemoryAllocator(0, nullptr) {}
  ~Growing() override { reset(); }
  Growing(const Growing&) = delete;
  Growing& operator=(const Growing&) = delete;

  void* allocate(size_t size, size_t alignment = kDefaultAlignment) override {
    held_.push_back(aligned(size, alignment));
    return held_.back();
  }

  void reset() override {
    for (void* block : held_) std::free(block);
    held_.clear();
  }

 private:
  std::vector<void*> held_;
};

class Bytes final : public DataLoader {
 public:
  Bytes(const uint8_t* data, size_t size) : size_(size), data_(static_cast<uint8_t*>(aligned(size, kAlignment))) {
    std::memcpy(data_, data, size);
  }
  ~Bytes() override { std::free(data_); }
  Bytes(const Bytes&) = delete;
  Bytes& operator=(const Bytes&) = delete;

  Result<FreeableBuffer> load(size_t offset, size_t size, const SegmentInfo&) const override {
    if (offset > size_ || size > size_ - offset) return Error::InvalidArgument;
    return FreeableBuffer(data_ + offset, size, nullptr);
  }
  Result<size_t> size() const override { return size_; }

 private:
  size_t size_;
  uint8_t* data_;
};

std::string told(const char* what, Error error) {
  return std::string(what) + ": ExecuTorch's error 0x" + [&] {
    char text[16];
    std::snprintf(text, sizeof text, "%x", static_cast<unsigned>(error));
    return std::string(text);
  }();
}

class Session {
 public:
  Session(const void* data, size_t size) : bytes_(static_cast<const uint8_t*>(data), size) {}

  // Empty where the file is ready.
  std::string open() {
    auto program = Program::load(&bytes_, Program::Verification::InternalConsistency);
    if (!program.ok()) return told("the file is refused", program.error());
    program_ = std::make_unique<Program>(std::move(program.get()));
    auto meta = program_->method_meta("forward");
    if (!meta.ok()) return told("it has no method forward", meta.error());
    for (size_t i = 0; i < meta->num_memory_planned_buffers(); ++i) {
      size_t wanted = static_cast<size_t>(meta->memory_planned_buffer_size(i).get());
      spans_.emplace_back(static_cast<uint8_t*>(planned_.allocate(wanted)), wanted);
    }
    arena_ = std::make_unique<HierarchicalAllocator>(Span<Span<uint8_t>>(spans_.data(), spans_.size()));
    manager_ = std::make_unique<MemoryManager>(&pool_, arena_.get(), &passing_);
    auto method = program_->load_method("forward", manager_.get());
    if (!method.ok()) return told("it cannot be loaded", method.error());
    method_ = std::make_unique<Method>(std::move(method.get()));
    auto given = meta->input_tensor_meta(0);
    if (meta->num_inputs() != 1 || meta->num_outputs() != 1 || !given.ok()) return "wanted one tensor in and one out";
    auto answer = meta->output_tensor_meta(0);
    if (!answer.ok() || answer->scalar_type() != executorch::aten::ScalarType::Float) return "wanted float32 answers";
    classes_ = answer->nbytes() / sizeof(float);
    type_ = given->scalar_type();
    nbytes_ = given->nbytes();
    sizes_.assign(given->sizes().begin(), given->sizes().end());
    order_.assign(given->dim_order().begin(), given->dim_order().end());
    return "";
  }

  // ``image``: one, as the file is fed. Empty where ``answers`` hold what it answered.
  std::string run(const void* image, size_t size, float* answers, size_t count) {
    if (size != nbytes_) return "wanted " + std::to_string(nbytes_) + " bytes of image, found " + std::to_string(size);
    executorch::aten::TensorImpl held(
        type_, static_cast<ssize_t>(sizes_.size()), sizes_.data(), const_cast<void*>(image), order_.data());
    if (Error error = method_->set_input(EValue(executorch::aten::Tensor(&held)), 0); error != Error::Ok)
      return told("it does not take the image", error);
    if (Error error = method_->execute(); error != Error::Ok) return told("it failed", error);
    auto answer = method_->get_output(0).toTensor();
    if (answer.scalar_type() != executorch::aten::ScalarType::Float || static_cast<size_t>(answer.numel()) != count)
      return "wanted " + std::to_string(count) + " float32 answers, found " + std::to_string(answer.numel());
    std::memcpy(answers, answer.const_data_ptr(), count * sizeof(float));
    return "";
  }

  size_t classes() const { return classes_; }

 private:
  Bytes bytes_;
  Growing pool_, passing_, planned_;
  std::vector<Span<uint8_t>> spans_;
  std::unique_ptr<Program> program_;
  std::unique_ptr<HierarchicalAllocator> arena_;
  std::unique_ptr<MemoryManager> manager_;
  std::unique_ptr<Method> method_;
  executorch::aten::ScalarType type_{};
  size_t nbytes_ = 0, classes_ = 0;
  std::vector<executorch::aten::SizesType> sizes_;
  std::vector<executorch::aten::DimOrderType> order_;
};

void tell(const std::string& text, char* place, size_t size) { std::snprintf(place, size, "%s", text.c_str()); }

}  // namespace

extern "C" {

// A file of ``size`` bytes, ready to run on so many threads; nullptr and a sentence where it is not.
void* edgewise_open(const void* data, size_t size, uint32_t threads, char* said, size_t room) {
  runtime_init();
  auto* pool = executorch::extension::threadpool::get_threadpool();
  if (pool != nullptr && pool->get_thread_count() != threads) pool->_unsafe_reset_threadpool(threads);
  auto session = std::make_unique<Session>(data, size);
  std::string refused = session->open();
  tell(refused, said, room);
  // Never taken down: on Arm the tear-down of the runtime's objects was seen to crash.
  return refused.empty() ? session.release() : (static_cast<void>(session.release()), nullptr);
}

// How many answers an image has.
size_t edgewise_classes(void* session) { return static_cast<Session*>(session)->classes(); }

// 0, and ``answers`` [count]; else 1 and a sentence.
int edgewise_run(void* session, const void* image, size_t size, float* answers, size_t count, char* said, size_t room) {
  std::string failed = static_cast<Session*>(session)->run(image, size, answers, count);
  tell(failed, said, room);
  return failed.empty() ? 0 : 1;
}
}
