// Writes a GGUF v3 file in one pass: keys first, then tensor infos, then the data in order. Memory: the header (the
// keys and infos), no data. Written data is handed to the device as it comes and leaves the page cache, so a file
// larger than memory costs about 32 MB of it. The file appears under its final name only when Finish succeeds.
#ifndef EMBERGATE_STORAGE_GGUF_WRITER_H_
#define EMBERGATE_STORAGE_GGUF_WRITER_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "storage/tensor_type.h"

namespace embergate::storage {

// Threads: one. Usage: Create; Add... keys; AddTensor for all; BeginData; for each tensor in the order added,
// AppendData until it is complete; Finish. Destroying an unfinished writer removes the partial file. A mistake in an
// Add... call (an empty or repeated key) is reported by BeginData. "general.alignment" is written by Create's
// argument, not by a call.
class GgufWriter {
 public:
  // Writes to "`path`.partial" beside the final name. `alignment` is a power of two >= 8. Errors: NOT_FOUND (no such
  // folder), PERMISSION_DENIED, INVALID_ARGUMENT, FAILED_PRECONDITION (another process is writing the same file).
  static absl::StatusOr<std::unique_ptr<GgufWriter>> Create(const std::string& path, uint32_t alignment = 32);
  ~GgufWriter();
  GgufWriter(const GgufWriter&) = delete;
  GgufWriter& operator=(const GgufWriter&) = delete;

  void AddUint32(absl::string_view key, uint32_t value);
  void AddInt32(absl::string_view key, int32_t value);
  void AddUint64(absl::string_view key, uint64_t value);
  void AddFloat(absl::string_view key, float value);
  void AddBool(absl::string_view key, bool value);
  void AddString(absl::string_view key, absl::string_view value);
  void AddUint32s(absl::string_view key, absl::Span<const uint32_t> values);
  void AddInt32s(absl::string_view key, absl::Span<const int32_t> values);
  void AddFloats(absl::string_view key, absl::Span<const float> values);
  void AddBools(absl::string_view key, const std::vector<bool>& values);
  void AddStrings(absl::string_view key, const std::vector<std::string>& values);

  // `dims[0]` is the contiguous dimension. `align` (a power of two, 0 = the file's) places this tensor's first
  // byte at a multiple of it *in the file*; used to put the PLE table at 4096. Other readers insist that each tensor
  // starts where the one before ends (rounded up to the file's alignment), so the room is made in the header, by
  // the key "embergate.padding". That aligns the first such tensor and those a multiple of its align away; any other
  // gets a gap before it, which only readers like ours accept.
  absl::Status AddTensor(absl::string_view name, TensorType type, absl::Span<const uint64_t> dims, uint64_t align = 0);

  // Adds the CRC32C of each segment of each row (dims[0] elements) of a tensor added before, as u32 [row][segment]
  // under `key`. They are known only when the data has passed: their place in the header is filled in by Finish.
  // Segments end at `segment_ends`, bytes from the row's start, ascending, the last one the row's. Costs 4 bytes of
  // memory for each.
  absl::Status AddRowChecksums(absl::string_view key, absl::string_view tensor,
                               absl::Span<const uint64_t> segment_ends);

  // Lays the file out and reserves its space. RESOURCE_EXHAUSTED if the disk cannot hold it, with bytes needed and
  // free.
  absl::Status BeginData();
  // More bytes of the current tensor; never past its end. RESOURCE_EXHAUSTED when the disk is full.
  absl::Status AppendData(absl::Span<const uint8_t> bytes);
  // Syncs, closes and renames. Fails if any tensor is incomplete.
  absl::Status Finish();

  uint64_t total_bytes() const;  // of the whole file; valid after BeginData
  uint64_t written_bytes() const;

 private:
  struct Impl;
  explicit GgufWriter(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace embergate::storage

#endif  // EMBERGATE_STORAGE_GGUF_WRITER_H_
