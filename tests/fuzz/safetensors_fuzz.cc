// Any bytes as a safetensors file: Open either refuses them with a message, or gives a file whose every tensor lies
// inside it and can be read.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "engine/convert/safetensors.h"
#include "tests/fuzz/fuzz_target.h"

namespace {

using embergate::engine::SafetensorsFile;
using embergate::engine::SafetensorsTensor;

void Require(bool condition) {
  if (!condition) {
    std::abort();
  }
}

std::string File(const std::string& header, size_t data_bytes) {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof(length)) + header + std::string(data_bytes, 'x');
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const int fd = memfd_create("safetensors_fuzz", MFD_CLOEXEC);
  Require(fd >= 0 && ftruncate(fd, static_cast<off_t>(size)) == 0);
  Require(pwrite(fd, data, size, 0) == static_cast<ssize_t>(size));
  const auto file = SafetensorsFile::Open("/proc/self/fd/" + std::to_string(fd));
  if (!file.ok()) {
    Require(file.status().message().find("/proc/self/fd/") != absl::string_view::npos);  // names the file
    return 0;
  }
  uint64_t covered = 0;
  for (const SafetensorsTensor& tensor : (*file)->tensors()) {
    Require((*file)->Find(tensor.name) == &tensor);
    Require(tensor.file_offset <= size && tensor.bytes <= size - tensor.file_offset);
    covered += tensor.bytes;
    std::vector<uint8_t> bytes(std::min<uint64_t>(tensor.bytes, 4096));
    Require((*file)->Read(tensor, tensor.bytes - bytes.size(), absl::MakeSpan(bytes)).ok());
    uint8_t beyond = 0;
    Require(!(*file)->Read(tensor, tensor.bytes, absl::MakeSpan(&beyond, 1)).ok());
    std::vector<float> floats(std::min<uint64_t>(tensor.elements, 1024));
    (*file)->ReadFloats(tensor, tensor.elements - floats.size(), absl::MakeSpan(floats)).IgnoreError();
    const auto ints = (*file)->ReadInts(tensor, 4096);
    Require(!ints.ok() || ints->size() == tensor.elements);
  }
  Require(covered < size);
  return 0;
}

std::vector<std::string> FuzzSeeds() {
  return {File("{}", 0), File(R"({"a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}})", 16),
          File(R"({"__metadata__":{"format":"pt"},"s":{"dtype":"BF16","shape":[],"data_offsets":[0,2]},)"
               R"("i":{"dtype":"I64","shape":[2],"data_offsets":[2,18]},"e":{"dtype":"U8","shape":[0,3],)"
               R"("data_offsets":[18,18]},"q":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[18,22]}}   )",
               22)};
}
