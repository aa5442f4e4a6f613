#include "engine/model/weight_reader.h"

#include <sys/mman.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "storage/base/status_macros.h"

namespace embergate::engine {
namespace {

constexpr uint64_t kBlock = 4096;  // alignment of O_DIRECT
// Reading what lies between two parts is quicker than a second request if it is not more than this.
constexpr uint64_t kGapBytesMax = 64u << 10;

uint64_t RoundDown(uint64_t value) { return value / kBlock * kBlock; }
uint64_t RoundUp(uint64_t value) { return RoundDown(value + kBlock - 1); }

uint64_t FileBegin(const WeightPart& part) { return part.tensor->file_offset + part.offset; }
uint64_t FileEnd(const WeightPart& part) { return FileBegin(part) + part.bytes; }

// One read: neighbouring parts of a file.
struct Request {
  int shard = 0;
  uint64_t begin = 0;  // on a block's border
  uint64_t end = 0;    // too, or the file's end
  std::vector<WeightPart> parts;
};

// Cuts parts to what one request takes.
std::vector<WeightPart> Cut(const std::vector<WeightPart>& parts, uint64_t rows_together) {
  std::vector<WeightPart> cut;
  for (const WeightPart& part : parts) {
    const uint64_t bytes = part.row_bytes * rows_together;
    const uint64_t step = bytes <= kWeightReadBytes
                              ? kWeightReadBytes / bytes * bytes
                              : std::max<uint64_t>(1, kWeightReadBytes / part.row_bytes) * part.row_bytes;
    for (uint64_t done = 0; done < part.bytes; done += step) {
      WeightPart piece = part;
      piece.offset = part.offset + done;
      piece.bytes = std::min(step, part.bytes - done);
      cut.push_back(piece);
    }
  }
  return cut;
}

std::vector<Request> Plan(const storage::GgufFile& file, std::vector<WeightPart> parts) {
  std::stable_sort(parts.begin(), parts.end(), [](const WeightPart& a, const WeightPart& b) {
    return std::make_pair(a.tensor->shard, FileBegin(a)) < std::make_pair(b.tensor->shard, FileBegin(b));
  });
  std::vector<Request> requests;
  for (const WeightPart& part : parts) {
    const uint64_t end = std::min(RoundUp(FileEnd(part)), file.shard_bytes(part.tensor->shard));
    Request* last = requests.empty() ? nullptr : &requests.back();
    // Overlapping parts (two tensors on the same bytes) are allowed in a file, so `end` may lie before the last's.
    if (last != nullptr && last->shard == part.tensor->shard && FileBegin(part) <= last->end + kGapBytesMax &&
        std::max(end, last->end) - last->begin <= kWeightReadBytes + 2 * kBlock) {
      last->end = std::max(end, last->end);
      last->parts.push_back(part);
      continue;
    }
    requests.push_back({part.tensor->shard, RoundDown(FileBegin(part)), end, {part}});
  }
  return requests;
}

class ReadAhead {
 public:
  ReadAhead(const storage::GgufFile& file, const std::vector<Request>& requests) : file_(file), requests_(requests) {}

  ~ReadAhead() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    if (thread_.joinable()) {
      thread_.join();
    }
  }

  // False when memory is refused.
  bool Start() {
    uint64_t largest = kBlock;
    for (const Request& request : requests_) {
      largest = std::max(largest, RoundUp(request.end - request.begin));
    }
    for (Buffer& buffer : buffers_) {
      if (!buffer.Map(largest)) {
        return false;
      }
    }
    thread_ = std::thread([this] { Read(); });
    return true;
  }

  // Waits for request `index`; its bytes are valid until Done.
  absl::Status Wait(size_t index, const uint8_t** bytes) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return read_ > index; });
    const Buffer& buffer = buffers_[index % kWeightReadBuffers];
    *bytes = buffer.data;
    return buffer.status;
  }
  void Done() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      ++used_;
    }
    changed_.notify_all();
  }

 private:
  // Mapped rather than allocated: an allocator may keep what it is given back.
  struct Buffer {
    Buffer() = default;
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    ~Buffer() {
      if (data != nullptr) {
        munmap(data, size);
      }
    }
    bool Map(uint64_t bytes) {
      void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (p == MAP_FAILED) {
        return false;
      }
      data = static_cast<uint8_t*>(p);
      size = bytes;
      return true;
    }
    uint8_t* data = nullptr;
    uint64_t size = 0;
    absl::Status status;
  };

  void Read() {
    for (size_t i = 0; i < requests_.size(); ++i) {
      {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return stop_ || i < used_ + kWeightReadBuffers; });
        if (stop_) {
          return;
        }
      }
      const Request& request = requests_[i];
      Buffer& buffer = buffers_[i % kWeightReadBuffers];
      buffer.status =
          file_.ReadBytes(request.shard, request.begin, absl::MakeSpan(buffer.data, request.end - request.begin));
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        read_ = i + 1;
      }
      changed_.notify_all();
    }
  }

  const storage::GgufFile& file_;
  const std::vector<Request>& requests_;
  Buffer buffers_[kWeightReadBuffers];
  std::mutex mutex_;
  std::condition_variable changed_;
  size_t read_ = 0;  // requests that are in their buffers
  size_t used_ = 0;  // of those, given back
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace

absl::Status ReadWeightParts(
    const storage::GgufFile& file, std::vector<WeightPart> parts, uint64_t rows_together,
    absl::FunctionRef<absl::Status(const WeightPart& part, absl::Span<const uint8_t> rows)> take) {
  const std::vector<Request> requests = Plan(file, Cut(parts, rows_together));
  ReadAhead reader(file, requests);
  if (!reader.Start()) {
    return absl::ResourceExhaustedError("no memory for the buffers to read weights into");
  }
  std::vector<uint8_t> again;
  for (size_t i = 0; i < requests.size(); ++i) {
    const uint8_t* bytes = nullptr;
    const absl::Status status = reader.Wait(i, &bytes);
    for (const WeightPart& part : requests[i].parts) {
      absl::Span<const uint8_t> rows;
      if (status.ok()) {
        rows = absl::MakeConstSpan(bytes + (FileBegin(part) - requests[i].begin), part.bytes);
      } else {
        // Part by part, to say which tensor cannot be read, or to go on if the others can.
        again.resize(part.bytes);
        EMBERGATE_RETURN_IF_ERROR(file.ReadTensor(*part.tensor, part.offset, absl::MakeSpan(again)));
        rows = again;
      }
      EMBERGATE_RETURN_IF_ERROR(take(part, rows));
    }
    reader.Done();
  }
  return absl::OkStatus();
}

}  // namespace embergate::engine
