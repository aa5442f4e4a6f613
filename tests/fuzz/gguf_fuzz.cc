// Any bytes as a GGUF file: Open either refuses them with a message, or gives a file whose every key and tensor can be
// read.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "storage/gguf_file.h"
#include "tests/fuzz/fuzz_target.h"
#include "tests/support/gguf_bytes.h"

namespace {

using embergate::storage::GgufFile;
using embergate::storage::GgufTensor;

void Require(bool condition) {
  if (!condition) {
    std::abort();
  }
}

void ReadEverything(const GgufFile& file) {
  uint64_t used = 0;
  for (const std::string& key : file.keys()) {
    bool is_array = false;
    uint64_t count = 0;
    Require(file.Has(key) && file.TypeOf(key, &is_array, &count).ok());
    // At most one of each pair can succeed; what matters is that none reads where it must not.
    used += file.GetUint(key).ok() + file.GetInt(key).ok() + file.GetFloat(key).ok() + file.GetBool(key).ok();
    if (const auto text = file.GetString(key); text.ok()) {
      used += static_cast<uint64_t>(std::count(text->begin(), text->end(), 'a'));
    }
    if (const auto values = file.GetInts(key); values.ok()) {
      Require(values->size() == count);
    }
    if (const auto values = file.GetFloats(key); values.ok()) {
      Require(values->size() == count);
    }
    if (const auto values = file.GetStrings(key); values.ok()) {
      Require(values->size() == count);
      for (const absl::string_view value : *values) {
        used += static_cast<uint64_t>(std::count(value.begin(), value.end(), 'a'));
      }
    }
  }
  for (const GgufTensor& tensor : file.tensors()) {
    Require(file.FindTensor(tensor.name) == &tensor);
    Require(tensor.bytes > 0 && tensor.file_offset + tensor.bytes <= file.shard_bytes(tensor.shard));
    Require(tensor.row_bytes() * tensor.rows() == tensor.bytes);
    std::vector<uint8_t> bytes(std::min<uint64_t>(tensor.bytes, 4096));
    Require(file.ReadTensor(tensor, tensor.bytes - bytes.size(), absl::MakeSpan(bytes)).ok());
    Require(!file.ReadTensor(tensor, tensor.bytes, absl::MakeSpan(bytes)).ok());
  }
  volatile uint64_t sink = used;
  (void)sink;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const int fd = memfd_create("gguf_fuzz", MFD_CLOEXEC);
  Require(fd >= 0 && ftruncate(fd, static_cast<off_t>(size)) == 0);
  Require(pwrite(fd, data, size, 0) == static_cast<ssize_t>(size));
  const auto file = GgufFile::Open("/proc/self/fd/" + std::to_string(fd));
  if (file.ok()) {
    ReadEverything(**file);
  } else {
    Require(file.status().message().find("/proc/self/fd/") != absl::string_view::npos);  // names the file
  }
  return 0;
}

std::vector<std::string> FuzzSeeds() {
  using namespace embergate::test;  // NOLINT
  GgufBytes aligned = RichGguf();
  aligned.entries[1] = Entry("general.alignment", embergate::storage::GgufValueType::kU32, Le(uint32_t{16}));
  aligned.alignment = 16;
  GgufBytes old = RichGguf();
  old.version = 2;
  return {RichGguf().Build(), aligned.Build(), old.Build(), GgufBytes().Build()};
}
