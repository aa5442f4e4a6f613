// The row store against what else could read the rows: a plain ring at the same block size, fio, mmap. Every figure is
// a ratio of two things measured in turn in this run, so that a busy machine disturbs both alike; medians of several
// rounds. The scratch file lies in the current folder and is deleted at the end.
//
//   row_store_bench            everything, about two minutes, 700 MB of scratch file
//   row_store_bench --smoke    the same code on a small file, about two seconds: run by ctest
//   row_store_bench device|gather|cpu|ngram|hits   one part
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "storage/base/clock.h"
#include "storage/block_reader.h"
#include "storage/buffer_pool.h"
#include "storage/crc32c.h"
#include "storage/row_store.h"
#include "storage/table_file.h"
#include "storage/uring_reader.h"
#include "tests/bench/cache_traces.h"

namespace embergate::bench {
namespace {

using storage::MonotonicNs;
using storage::ReaderKind;
using storage::RowStore;
using storage::RowStoreOptions;
using storage::RowStoreStats;
using storage::RowTicket;
using storage::TableSpec;

bool g_smoke = false;

[[noreturn]] void Die(const std::string& what) {
  std::fprintf(stderr, "row_store_bench: %s\n", what.c_str());
  std::exit(1);
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// A file of `bytes` that no compressing or deduplicating layer below can shortcut, with the table that it holds.
class Scratch {
 public:
  explicit Scratch(uint64_t bytes) {
    spec.path = "row_store_bench.scratch";
    spec.file_offset = 1344;  // unaligned, as a table inside a GGUF is
    spec.row_bytes = 9520;    // Gemma 4 E2B: 35 layers of 256 in Q8_0
    spec.row_count = (bytes - spec.file_offset) / spec.row_bytes;
    const int fd = open(spec.path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    std::vector<uint64_t> piece((1u << 20) / sizeof(uint64_t));
    uint64_t state = 88172645463325252u;
    for (uint64_t done = 0; done < bytes; done += 1u << 20) {
      for (uint64_t& word : piece) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word = state;
      }
      if (write(fd, piece.data(), 1u << 20) != 1 << 20) {
        Die("cannot write the scratch file");
      }
    }
    fsync(fd);
    close(fd);
    DropCache();
  }
  ~Scratch() { unlink(spec.path.c_str()); }

  void DropCache() const {
    const int fd = open(spec.path.c_str(), O_RDONLY | O_CLOEXEC);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    close(fd);
  }
  // Checksums of all rows.
  void AddChecksums() {
    std::vector<uint8_t> row(spec.row_bytes);
    const int fd = open(spec.path.c_str(), O_RDONLY | O_CLOEXEC);
    spec.checksums.crcs.clear();
    for (uint64_t i = 0; i < spec.row_count; ++i) {
      if (pread(fd, row.data(), row.size(), static_cast<off_t>(spec.file_offset + i * spec.row_bytes)) !=
          static_cast<ssize_t>(row.size())) {
        Die("cannot read the scratch file");
      }
      spec.checksums.crcs.push_back(storage::Crc32c(row));
    }
    close(fd);
    DropCache();
  }

  TableSpec spec;
};

std::unique_ptr<RowStore> MakeStore(std::vector<TableSpec> tables, const RowStoreOptions& options) {
  auto store = RowStore::Create(std::move(tables), options);
  if (!store.ok()) {
    Die(store.status().ToString());
  }
  return std::move(store).value();
}

void WaitFor(RowStore& store, RowTicket ticket) {
  const absl::Status status = store.Wait(ticket);
  if (!status.ok()) {
    Die(status.ToString());
  }
}

std::vector<uint64_t> RandomRows(size_t count, uint64_t row_count, std::mt19937_64& random) {
  std::vector<uint64_t> rows(count);
  for (uint64_t& row : rows) {
    row = random() % row_count;
  }
  return rows;
}

double CpuSeconds() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_utime.tv_sec) + static_cast<double>(usage.ru_utime.tv_usec) / 1e6;
}
double SystemSeconds() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_stime.tv_sec) + static_cast<double>(usage.ru_stime.tv_usec) / 1e6;
}

// ---- Random rows at depth 32 ----

// Rows per second, one submission of 512 always under way while the previous one is taken.
double StoreRate(RowStore& store, const TableSpec& spec, double seconds, uint64_t* rows_done = nullptr) {
  std::mt19937_64 random(MonotonicNs());
  const uint64_t start_ns = MonotonicNs();
  RowTicket previous;
  uint64_t rows = 0;
  while (static_cast<double>(MonotonicNs() - start_ns) < seconds * 1e9) {
    auto ticket = store.Submit(0, RandomRows(512, spec.row_count, random));
    if (!ticket.ok()) {
      Die(ticket.status().ToString());
    }
    rows += 512;
    if (previous.valid()) {
      WaitFor(store, previous);
      store.Release(previous);
    }
    previous = *ticket;
  }
  WaitFor(store, previous);
  store.Release(previous);
  if (rows_done != nullptr) {
    *rows_done += rows;
  }
  return static_cast<double>(rows) * 1e9 / static_cast<double>(MonotonicNs() - start_ns);
}

// A bare ring that keeps 32 reads of the same size in flight and does nothing with them.
double PlainRingRate(const Scratch& scratch, uint32_t read_bytes, double seconds) {
  auto file = storage::TableFile::Open(scratch.spec.path, true);
  auto buffers = storage::BufferPool::Create(32, (read_bytes + 4095) / 4096 * 4096);
  if (!file.ok() || !buffers.ok()) {
    Die("plain ring: cannot open");
  }
  const int fd = file->fd();
  storage::UringReaderOptions options;
  auto ring = storage::CreateUringReader(absl::MakeConstSpan(&fd, 1), buffers->whole(), options);
  if (!ring.ok()) {
    return 0;
  }
  std::mt19937_64 random(1);
  const uint64_t blocks = file->bytes() / file->alignment() - read_bytes / file->alignment();
  const auto queue = [&](uint32_t slot) {
    storage::BlockRead read;
    read.file_offset = random() % blocks * file->alignment();
    read.bytes = read_bytes;
    read.data = buffers->data(slot);
    read.tag = slot;
    (*ring)->Queue(absl::MakeConstSpan(&read, 1));
  };
  for (uint32_t slot = 0; slot < 32; ++slot) {
    queue(slot);
  }
  std::vector<storage::BlockCompletion> done(32);
  const uint64_t start_ns = MonotonicNs();
  uint64_t reads = 0;
  uint32_t in_flight = 32;
  while (in_flight > 0) {
    const size_t count = (*ring)->Reap(absl::MakeSpan(done), std::min<size_t>(8, in_flight), 10'000'000'000);
    for (size_t i = 0; i < count; ++i) {
      ++reads;
      --in_flight;
      if (static_cast<double>(MonotonicNs() - start_ns) < seconds * 1e9) {
        queue(static_cast<uint32_t>(done[i].tag));
        ++in_flight;
      }
    }
  }
  return static_cast<double>(reads) * 1e9 / static_cast<double>(MonotonicNs() - start_ns);
}

// 0 if fio is not installed.
double FioRate(const Scratch& scratch, uint32_t read_bytes, double seconds) {
  const std::string command = "fio --name=rows --filename=" + scratch.spec.path +
                              " --rw=randread --direct=1 --ioengine=io_uring --iodepth=32 --norandommap"
                              " --time_based --output-format=terse --terse-version=3 --blockalign=512 --bs=" +
                              std::to_string(read_bytes) +
                              " --runtime=" + std::to_string(std::max(1, static_cast<int>(seconds))) + " 2>/dev/null";
  FILE* pipe = popen(command.c_str(), "r");
  std::string line(4096, '\0');
  const bool any = pipe != nullptr && std::fgets(line.data(), static_cast<int>(line.size()), pipe) != nullptr;
  if (pipe != nullptr) {
    pclose(pipe);
  }
  if (!any) {
    return 0;
  }
  size_t position = 0;
  for (int field = 0; field < 7; ++field) {  // the eighth is the read IOPS
    position = line.find(';', position);
    if (position == std::string::npos) {
      return 0;
    }
    ++position;
  }
  return std::atof(line.c_str() + position);
}

void BenchDevice(const Scratch& scratch) {
  const double seconds = g_smoke ? 0.05 : 2;
  RowStoreOptions options;
  options.cache_bytes = 0;
  options.rows_pinned_max = 1024;
  auto uring = MakeStore({scratch.spec}, options);
  options.reader = ReaderKind::kPread;
  auto pread = MakeStore({scratch.spec}, options);
  const uint32_t read_bytes = 10240;  // the blocks of a row
  std::vector<double> store_rate;
  std::vector<double> pread_rate;
  std::vector<double> plain_rate;
  std::vector<double> fio_rate;
  for (int round = 0; round < (g_smoke ? 1 : 5); ++round) {
    store_rate.push_back(StoreRate(*uring, scratch.spec, seconds));
    plain_rate.push_back(PlainRingRate(scratch, read_bytes, seconds));
    if (!g_smoke) {
      fio_rate.push_back(FioRate(scratch, read_bytes, seconds));
    }
    pread_rate.push_back(StoreRate(*pread, scratch.spec, seconds));
  }
  const double store = Median(store_rate);
  std::printf("\nrandom rows of 9520 bytes, unaligned start, depth 32, through %s\n",
              uring->Snapshot().backend.c_str());
  std::printf("  row store                  %8.0f rows/s\n", store);
  std::printf("  row store, pread threads   %8.0f rows/s  %.2f of it\n", Median(pread_rate),
              Median(pread_rate) / store);
  if (Median(plain_rate) > 0) {
    std::printf("  plain ring, 10240 bytes    %8.0f reads/s; the store reaches %.2f of it\n", Median(plain_rate),
                store / Median(plain_rate));
  }
  if (!fio_rate.empty() && Median(fio_rate) > 0) {
    std::printf("  fio io_uring, 10240 bytes  %8.0f reads/s; the store reaches %.2f of it\n", Median(fio_rate),
                store / Median(fio_rate));
  }
  const RowStoreStats stats = uring->Snapshot();
  std::printf("  bytes read per byte asked for: %.3f\n",
              static_cast<double>(stats.bytes_read) / static_cast<double>(stats.bytes_useful));
}

// ---- Gathering 512 rows ----

uint64_t g_sink = 0;  // keeps the compiler from dropping the reads

void Consume(const uint8_t* row, uint64_t bytes) {
  uint64_t sum = 0;
  for (uint64_t i = 0; i + 8 <= bytes; i += 8) {
    uint64_t word;
    std::memcpy(&word, row + i, 8);
    sum += word;
  }
  g_sink += sum;
}

double StoreGather(RowStore& store, const TableSpec& spec, const std::vector<uint64_t>& rows) {
  const uint64_t start_ns = MonotonicNs();
  auto ticket = store.Submit(0, rows);
  WaitFor(store, *ticket);
  for (size_t i = 0; i < rows.size(); ++i) {
    Consume(store.Row(*ticket, i).data(), spec.row_bytes);
  }
  store.Release(*ticket);
  return static_cast<double>(MonotonicNs() - start_ns) / 1e6;
}

double MapGather(const uint8_t* map, const TableSpec& spec, const std::vector<uint64_t>& rows) {
  const uint64_t start_ns = MonotonicNs();
  for (uint64_t row : rows) {
    Consume(map + spec.file_offset + row * spec.row_bytes, spec.row_bytes);
  }
  return static_cast<double>(MonotonicNs() - start_ns) / 1e6;
}

// A mapping of the scratch file whose faults read `read_ahead_kib` around, which the kernel takes from the device's
// setting when the file is opened. Changing that needs root; without it the device's own stays, and is reported.
const uint8_t* MapFile(const Scratch& scratch, int read_ahead_kib, int* used_kib, uint64_t* bytes) {
  struct stat info = {};
  stat(scratch.spec.path.c_str(), &info);
  const std::string setting = "/sys/dev/block/" + std::to_string(info.st_dev >> 8 & 0xfff) + ":" +
                              std::to_string(info.st_dev & 0xff) + "/queue/read_ahead_kb";
  int before = -1;
  std::ifstream(setting) >> before;
  std::ofstream(setting) << read_ahead_kib << std::flush;
  const int fd = open(scratch.spec.path.c_str(), O_RDONLY | O_CLOEXEC);
  std::ifstream(setting) >> *used_kib;
  if (before >= 0) {
    std::ofstream(setting) << before << std::flush;
  }
  *bytes = static_cast<uint64_t>(info.st_size);
  void* map = mmap(nullptr, *bytes, PROT_READ, MAP_SHARED, fd, 0);
  close(fd);
  if (map == MAP_FAILED) {
    Die("cannot map the scratch file");
  }
  return static_cast<const uint8_t*>(map);
}

void BenchGather(const Scratch& scratch) {
  RowStoreOptions options;
  options.rows_pinned_max = 1024;
  options.cache_bytes = 16u << 20;
  std::mt19937_64 random(5);
  std::vector<double> store_cold;
  std::vector<double> store_warm;
  std::vector<double> map_cold;
  std::vector<double> map_warm;
  int read_ahead_kib = 0;
  for (int round = 0; round < (g_smoke ? 1 : 9); ++round) {
    const std::vector<uint64_t> rows = RandomRows(512, scratch.spec.row_count, random);
    auto store = MakeStore({scratch.spec}, options);
    store_cold.push_back(StoreGather(*store, scratch.spec, rows));
    store_warm.push_back(StoreGather(*store, scratch.spec, rows));
    store_warm.back() = std::min(store_warm.back(), StoreGather(*store, scratch.spec, rows));
    scratch.DropCache();
    uint64_t bytes = 0;
    const uint8_t* map = MapFile(scratch, 128, &read_ahead_kib, &bytes);
    map_cold.push_back(MapGather(map, scratch.spec, rows));
    map_warm.push_back(MapGather(map, scratch.spec, rows));
    map_warm.back() = std::min(map_warm.back(), MapGather(map, scratch.spec, rows));
    munmap(const_cast<uint8_t*>(map), bytes);
    scratch.DropCache();
  }
  std::printf("\ngathering 512 random rows and reading every byte of them (medians)\n");
  std::printf("  cold: row store %.2f ms, mmap with %d KiB read-ahead %.2f ms: %.1f times faster\n", Median(store_cold),
              read_ahead_kib, Median(map_cold), Median(map_cold) / Median(store_cold));
  std::printf("  warm: row store %.2f ms, mmap %.2f ms: %.2f of its time\n", Median(store_warm), Median(map_warm),
              Median(store_warm) / Median(map_warm));
}

// ---- Processor time ----

void BenchCpu(const Scratch& scratch) {
  std::printf("\nprocessor time per row read from the device (512 per submission, depth 32), microseconds\n");
  for (const bool checked : {false, true}) {
    TableSpec spec = scratch.spec;
    if (!checked) {
      spec.checksums = {};
    }
    RowStoreOptions options;
    options.cache_bytes = 0;
    options.rows_pinned_max = 1024;
    auto store = MakeStore({spec}, options);
    std::vector<double> user;
    std::vector<double> system;
    for (int round = 0; round < (g_smoke ? 1 : 5); ++round) {
      uint64_t rows = 0;
      const double user_before = CpuSeconds();
      const double system_before = SystemSeconds();
      StoreRate(*store, spec, g_smoke ? 0.05 : 1.5, &rows);
      user.push_back((CpuSeconds() - user_before) * 1e6 / static_cast<double>(rows));
      system.push_back((SystemSeconds() - system_before) * 1e6 / static_cast<double>(rows));
    }
    std::printf("  %-28s ours %.2f, kernel %.2f\n", checked ? "with CRC32C verification" : "without", Median(user),
                Median(system));
  }
  std::printf("  (CRC32C by %s)\n", std::string(storage::Crc32cBackends().front().name).c_str());
}

// ---- Hashed n-grams: many short rows per token, no reuse ----

// `tables` tables in one file, `keys` rows of each per token; all rows of a step's tokens are one submission.
void BenchNgramShape(const Scratch& scratch, int table_count, int keys) {
  constexpr int kTokens = 8;
  const uint64_t table_bytes = (scratch.spec.row_count * scratch.spec.row_bytes) / static_cast<uint64_t>(table_count);
  std::vector<TableSpec> tables;
  for (int i = 0; i < table_count; ++i) {
    TableSpec table;
    table.path = scratch.spec.path;
    table.file_offset = 1344 + static_cast<uint64_t>(i) * table_bytes;
    table.row_bytes = i % 2 == 0 ? 136 : 272;  // 128 or 256 in Q8_0
    table.row_count = table_bytes / table.row_bytes;
    table.cached = false;
    tables.push_back(table);
  }
  RowStoreOptions options;
  options.rows_pinned_max = 1024;
  auto store = MakeStore(tables, options);
  std::mt19937_64 random(9);
  std::vector<double> rates;
  std::vector<double> step_us;
  for (int round = 0; round < (g_smoke ? 1 : 5); ++round) {
    const uint64_t start_ns = MonotonicNs();
    uint64_t rows = 0;
    uint64_t steps = 0;
    while (MonotonicNs() - start_ns < (g_smoke ? 20'000'000u : 1'000'000'000u)) {
      std::vector<storage::RowId> ids;
      for (int i = 0; i < kTokens * table_count * keys; ++i) {
        const int table = i % table_count;
        ids.push_back({table, random() % tables[static_cast<size_t>(table)].row_count});
      }
      auto ticket = store->SubmitRows(ids);
      if (!ticket.ok()) {
        Die(ticket.status().ToString());
      }
      WaitFor(*store, *ticket);
      store->Release(*ticket);
      rows += ids.size();
      ++steps;
    }
    const double ns = static_cast<double>(MonotonicNs() - start_ns);
    rates.push_back(static_cast<double>(rows) * 1e9 / ns);
    step_us.push_back(ns / 1e3 / static_cast<double>(steps));
  }
  const RowStoreStats stats = store->Snapshot();
  std::printf(
      "  %2d tables, %d keys per token each: %.0f rows/s, %.0f us per step of %d rows, %.1f bytes read per byte\n",
      table_count, keys, Median(rates), Median(step_us), table_count * keys * kTokens,
      static_cast<double>(stats.bytes_read) / static_cast<double>(stats.bytes_useful));
}

void BenchNgram(const Scratch& scratch) {
  std::printf("\nhashed n-grams: rows of 136 and 272 bytes, 8 tokens per step, one submission, no cache\n");
  BenchNgramShape(scratch, 32, 1);
  BenchNgramShape(scratch, 8, 4);
  BenchNgramShape(scratch, 2, 16);
}

// ---- Hit rates ----

void BenchHits() {
  const size_t length = g_smoke ? 20000 : 1000000;
  const struct {
    const char* name;
    Trace trace;
  } traces[] = {{"text", TextTrace(length, 1)}, {"zipf 1.0", ZipfTrace(length, 262144, 1.0, 1)}};
  std::printf(
      "\nhit rates in percent (rows: 16 MiB of E2B rows are 1726; with what a server of the default settings holds\n"
      "anyway for its steps, 2238)\n");
  std::printf("  %-9s %6s %10s %9s %10s %7s %7s %13s %9s\n", "trace", "rows", "row cache", "S3-FIFO", "W-TinyLFU",
              "LRU", "CLOCK", "full history", "optimum");
  for (const auto& [name, trace] : traces) {
    if (trace.empty()) {
      std::printf("  %-9s this machine has no texts to make it from\n", name);
      continue;
    }
    for (const size_t rows : {512, 1726, 2238, 8192}) {
      const auto percent = [&](uint64_t hits) {
        return 100.0 * static_cast<double>(hits) / static_cast<double>(trace.size());
      };
      std::printf("  %-9s %6zu %10.2f %9.2f %10.2f %7.2f %7.2f %13.2f %9.2f\n", name, rows,
                  percent(RowCacheHits(trace, rows)), percent(S3FifoHits(trace, rows)),
                  percent(TinyLfuHits(trace, rows)), percent(LruHits(trace, rows)), percent(ClockHits(trace, rows)),
                  percent(FullHistoryHits(trace, rows)), percent(OptimumHits(trace, rows)));
    }
  }
}

}  // namespace
}  // namespace embergate::bench

int main(int argc, char** argv) {
  using namespace embergate::bench;
  std::string part;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--smoke") == 0) {
      g_smoke = true;
    } else {
      part = argv[i];
    }
  }
  const auto wanted = [&](const char* name) { return part.empty() || part == name; };
  if (wanted("hits")) {
    BenchHits();
  }
  if (part == "hits") {
    return 0;
  }
  Scratch scratch(g_smoke ? 16u << 20 : 700u << 20);
  if (wanted("device")) {
    BenchDevice(scratch);
  }
  if (wanted("gather")) {
    BenchGather(scratch);
  }
  if (wanted("ngram")) {
    BenchNgram(scratch);
  }
  if (wanted("cpu")) {
    scratch.AddChecksums();
    BenchCpu(scratch);
  }
  return g_sink == 42 ? 3 : 0;
}
