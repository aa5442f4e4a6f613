#include "storage/device_profile.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "storage/base/clock.h"
#include "storage/base/status_macros.h"
#include "storage/block_reader.h"
#include "storage/buffer_pool.h"
#include "storage/pread_reader.h"
#include "storage/table_file.h"
#include "storage/uring_reader.h"

namespace embergate::storage {
namespace {

constexpr int kDepthMax = 64;

// Keeps `depth` reads of `read_bytes` in flight for as long as the options say.
absl::StatusOr<DeviceDepth> MeasureDepth(BlockReader& reader, BufferPool& buffers, const TableFile& file,
                                         uint64_t offset, uint64_t bytes, uint32_t read_bytes, int depth,
                                         const DeviceTestOptions& options) {
  std::mt19937_64 random(static_cast<uint64_t>(depth));
  const uint64_t alignment = file.alignment();
  const uint64_t first = (offset + alignment - 1) / alignment;
  const uint64_t places = (offset + bytes - read_bytes) / alignment - first;
  std::vector<uint64_t> submit_ns(static_cast<size_t>(depth));
  std::vector<uint64_t> read_at(static_cast<size_t>(depth));
  std::vector<double> latencies_us;
  std::vector<BlockCompletion> completions(static_cast<size_t>(depth));
  const auto queue = [&](uint32_t slot) {
    BlockRead read;
    read.file_offset = (first + random() % places) * alignment;
    read.bytes = read_bytes;
    read.data = buffers.data(slot);
    read.tag = slot;
    read_at[slot] = read.file_offset;
    submit_ns[slot] = MonotonicNs();
    reader.Queue(absl::MakeConstSpan(&read, 1));
  };
  const uint64_t start_ns = MonotonicNs();
  const uint64_t end_ns = start_ns + static_cast<uint64_t>(options.seconds_per_depth * 1e9);
  for (int i = 0; i < depth; ++i) {
    queue(static_cast<uint32_t>(i));
  }
  int in_flight = depth;
  DeviceDepth result;
  result.depth = depth;
  uint64_t last_ns = start_ns;
  absl::Status failed;
  while (in_flight > 0) {
    const size_t count = reader.Reap(absl::MakeSpan(completions), 1, 10'000'000'000);
    const uint64_t now_ns = MonotonicNs();
    if (count == 0) {
      return absl::UnavailableError(absl::StrCat(file.path(), ": the device did not answer within 10 s"));
    }
    for (size_t i = 0; i < count; ++i) {
      const uint32_t slot = static_cast<uint32_t>(completions[i].tag);
      --in_flight;
      if (completions[i].result < 0) {
        failed =
            absl::UnavailableError(absl::StrCat(file.path(), ": reading failed: ", strerror(-completions[i].result)));
        continue;
      }
      ++result.reads;
      last_ns = now_ns;
      const uint64_t done_ns = completions[i].done_ns != 0 ? completions[i].done_ns : now_ns;
      latencies_us.push_back(static_cast<double>(done_ns - std::min(done_ns, submit_ns[slot])) / 1e3);
      if (!file.direct()) {
        file.DropPages(read_at[slot], read_bytes);
      }
      const uint64_t begun = result.reads + static_cast<uint64_t>(in_flight);
      if (now_ns < end_ns && begun < options.reads_per_depth_max && failed.ok()) {
        queue(slot);
        ++in_flight;
      }
    }
  }
  EMBERGATE_RETURN_IF_ERROR(failed);
  result.reads_per_second = static_cast<double>(result.reads) * 1e9 / static_cast<double>(last_ns - start_ns);
  result.latency_us_mean =
      std::accumulate(latencies_us.begin(), latencies_us.end(), 0.0) / static_cast<double>(latencies_us.size());
  const size_t p99 = latencies_us.size() * 99 / 100;
  std::nth_element(latencies_us.begin(), latencies_us.begin() + static_cast<ptrdiff_t>(p99), latencies_us.end());
  result.latency_us_p99 = latencies_us[p99];
  return result;
}

}  // namespace

absl::StatusOr<DeviceProfile> MeasureDevice(const std::string& path, uint64_t offset, uint64_t bytes,
                                            const DeviceTestOptions& options) {
  EMBERGATE_ASSIGN_OR_RETURN(const TableFile file, TableFile::Open(path, true));
  if (offset > file.bytes() || bytes > file.bytes() - offset) {
    return absl::InvalidArgumentError(absl::StrCat(path, " has only ", file.bytes(), " bytes"));
  }
  if (bytes == 0) {
    bytes = file.bytes() - offset;
  }
  DeviceProfile profile;
  profile.direct_io = file.direct();
  profile.alignment = file.alignment();
  profile.read_bytes = (std::max(options.read_bytes, 1u) + file.alignment() - 1) / file.alignment() * file.alignment();
  if (bytes < (1u << 20) || bytes < 16 * uint64_t{profile.read_bytes}) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", bytes, " bytes are too few to measure a device; use a file of 100 MB or more"));
  }
  const uint32_t buffer_bytes = (profile.read_bytes + 4095) / 4096 * 4096;
  EMBERGATE_ASSIGN_OR_RETURN(BufferPool buffers, BufferPool::Create(kDepthMax, buffer_bytes));
  const int descriptor = file.fd();
  std::unique_ptr<BlockReader> reader;
  if (options.reader != ReaderKind::kPread) {
    UringReaderOptions uring;
    uring.queue_depth = kDepthMax;
    auto made = CreateUringReader(absl::MakeConstSpan(&descriptor, 1), buffers.whole(), uring);
    if (made.ok()) {
      reader = std::move(made).value();
    } else if (options.reader == ReaderKind::kUring) {
      return made.status();
    }
  }
  if (reader == nullptr) {
    PreadReaderOptions pread;
    pread.queue_depth = kDepthMax;
    EMBERGATE_ASSIGN_OR_RETURN(reader, CreatePreadReader(absl::MakeConstSpan(&descriptor, 1), pread));
  }
  profile.backend = std::string(reader->name());
  for (int depth = 1; depth <= kDepthMax; depth *= 2) {
    EMBERGATE_ASSIGN_OR_RETURN(DeviceDepth measured,
                               MeasureDepth(*reader, buffers, file, offset, bytes, profile.read_bytes, depth, options));
    profile.depths.push_back(measured);
    if (options.on_depth) {
      options.on_depth(measured);
    }
  }
  Recommend(profile);
  EMBERGATE_ASSIGN_OR_RETURN(const DeviceDepth small, MeasureDepth(*reader, buffers, file, offset, bytes,
                                                                   file.alignment(), profile.queue_depth, options));
  profile.small_reads_per_second = small.reads_per_second;
  Recommend(profile);
  return profile;
}

void Recommend(DeviceProfile& profile) {
  double best = 0;
  for (const DeviceDepth& depth : profile.depths) {
    best = std::max(best, depth.reads_per_second);
  }
  double rate = 0;
  profile.queue_depth = 0;
  for (const DeviceDepth& depth : profile.depths) {
    if (profile.queue_depth == 0 && depth.reads_per_second >= 0.9 * best) {
      profile.queue_depth = depth.depth;
      rate = depth.reads_per_second;
    }
  }
  // Time per read = fixed + per_byte * bytes, from the two sizes; the gap is fixed / per_byte. Bounded, because both
  // are measurements: a page at least, and no more than rows are usually long.
  profile.merge_gap_bytes = 4096;
  if (rate > 0 && profile.small_reads_per_second > rate && profile.read_bytes > profile.alignment) {
    const double per_byte = (1 / rate - 1 / profile.small_reads_per_second) / (profile.read_bytes - profile.alignment);
    const double fixed = 1 / profile.small_reads_per_second - per_byte * profile.alignment;
    profile.merge_gap_bytes = static_cast<uint32_t>(std::clamp(fixed / per_byte, 4096.0, 32768.0));
  }
}

double ReadAmplification(uint64_t offset, uint64_t row_bytes, uint32_t alignment) {
  // Positions within a block repeat after alignment / gcd rows.
  const uint64_t rows = alignment / std::gcd<uint64_t>(row_bytes, alignment);
  double blocks = 0;
  for (uint64_t i = 0; i < rows; ++i) {
    const uint64_t begin = offset + i * row_bytes;
    blocks += static_cast<double>((begin + row_bytes + alignment - 1) / alignment - begin / alignment);
  }
  return blocks * alignment / static_cast<double>(rows * row_bytes);
}

}  // namespace embergate::storage
