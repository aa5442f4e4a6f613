// Where the bytes of a model file are: by part of the model, by type, and by the place from which serving it reads
// them. Works on any GGUF file; for an architecture that we serve it knows what the decoder loads, reads per token, or
// never looks at. What `embergate inspect` prints.
#ifndef EMBERGATE_ENGINE_MODEL_FILE_REPORT_H_
#define EMBERGATE_ENGINE_MODEL_FILE_REPORT_H_

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/model/config.h"
#include "storage/gguf_file.h"

namespace embergate::engine {

enum class FilePart {
  kEmbedding,  // the output head too
  kAttention,
  kFeedForward,
  kPleProjections,
  kAltupLaurel,
  kNorms,
  kPleTable,
  kUnusedKv,   // of layers that read another layer's
  kOtherMode,  // vision and audio towers and their projectors
  kOther,
};
inline constexpr int kFilePartCount = 10;
const char* NameOf(FilePart part);

// kUnknown: the file is not served, so nobody reads it from anywhere.
enum class FilePlace { kDram, kFlash, kUnused, kUnknown };
const char* NameOf(FilePlace place);

struct ByteCount {
  int tensors = 0;
  uint64_t elements = 0;
  uint64_t bytes = 0;
};

struct FileReport {
  std::string architecture;  // empty: the file names none
  std::string name;          // general.name
  // How the decoder would run it; empty, and `refusal` says why, if it is not served.
  std::optional<ModelConfig> config;
  std::string refusal;

  uint64_t file_bytes = 0;  // of all shards
  uint64_t table_row_bytes = 0;
  std::string tokenizer;  // tokenizer.ggml.model, or empty
  uint64_t tokens = 0;
  bool has_chat_template = false;

  ByteCount total;
  uint64_t other_bytes = 0;  // metadata, tensor infos, padding: file_bytes - total.bytes
  struct PartCount : ByteCount {
    FilePart part;
    FilePlace place;
    std::vector<std::string> types;  // by bytes, most first
  };
  std::vector<PartCount> parts;  // in the order of FilePart, without empty ones
  struct TypeCount : ByteCount {
    std::string type;
  };
  std::vector<TypeCount> types;          // by bytes, most first
  std::array<ByteCount, 4> places = {};  // by FilePlace

  const ByteCount& at(FilePlace place) const { return places[static_cast<size_t>(place)]; }
};

struct TensorPlacement {
  FilePart part;
  FilePlace place;
};

// `config` is null for a file that is not served.
TensorPlacement PlaceTensor(const storage::GgufTensor& tensor, const ModelConfig* config);

FileReport ReportFile(const storage::GgufFile& file);

}  // namespace embergate::engine

#endif  // EMBERGATE_ENGINE_MODEL_FILE_REPORT_H_
