// The ring itself: it reads what it was made for, and whoever else gets hold of it can do nothing with it.
#include "storage/uring_reader.h"

#include <dirent.h>
#include <liburing.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <thread>
#include <utility>

#include "gtest/gtest.h"
#include "storage/buffer_pool.h"
#include "tests/storage/row_store_fixture.h"

namespace embergate::storage {
namespace {

constexpr uint32_t kDepth = 4;

// The descriptor of this process's only ring; -1 if there is none.
int FindRing() {
  int found = -1;
  DIR* const folder = opendir("/proc/self/fd");
  while (const dirent* const entry = readdir(folder)) {
    char target[64] = {};
    const std::string link = std::string("/proc/self/fd/") + entry->d_name;
    if (readlink(link.c_str(), target, sizeof(target) - 1) > 0 && std::strcmp(target, "anon_inode:[io_uring]") == 0) {
      found = atoi(entry->d_name);
    }
  }
  closedir(folder);
  return found;
}

// A second view of the ring behind `fd`, which has kDepth reads: its parts lie where those of an equal one do.
bool MapRing(int fd, io_uring* ring) {
  io_uring_params params = {};
  params.flags = IORING_SETUP_CQSIZE | IORING_SETUP_R_DISABLED;
  params.cq_entries = 2 * kDepth;
  const int equal = static_cast<int>(syscall(__NR_io_uring_setup, kDepth, &params));
  if (equal < 0) {
    return false;
  }
  close(equal);
  params.flags &= ~static_cast<unsigned>(IORING_SETUP_R_DISABLED);
  if (io_uring_queue_mmap(fd, &params, ring) != 0) {
    return false;
  }
  ring->features = params.features;
  ring->sq.sqe_head = *ring->sq.ktail;  // where its owner has got to
  ring->sq.sqe_tail = *ring->sq.ktail;
  return true;
}

bool KernelIsAtLeast(int major, int minor) {
  utsname name = {};
  int is_major = 0;
  int is_minor = 0;
  return uname(&name) == 0 && std::sscanf(name.release, "%d.%d", &is_major, &is_minor) == 2 &&
         std::pair(is_major, is_minor) >= std::pair(major, minor);
}

TEST(UringReaderTest, TheRingTakesReadsOfItsFilesAndNothingElse) {
  ScratchDir dir;
  const std::string path = dir.File("table");
  const std::vector<uint8_t> data = RandomBytes(64 << 10, 1);
  WriteFile(path, data);
  const int file = open(path.c_str(), O_RDWR | O_CLOEXEC);
  auto buffers = BufferPool::Create(kDepth, 4096);
  ASSERT_TRUE(buffers.ok());
  UringReaderOptions options;
  options.queue_depth = kDepth;
  auto reader = CreateUringReader(absl::MakeConstSpan(&file, 1), buffers->whole(), options);
  if (!reader.ok()) {
    GTEST_SKIP() << reader.status();
  }
  EXPECT_EQ((*reader)->shortcomings().find("restrict"), std::string::npos) << (*reader)->shortcomings();
  BlockRead read;
  read.file_offset = 8192;
  read.bytes = 4096;
  read.data = buffers->data(0);
  read.tag = 7;
  (*reader)->Queue(absl::MakeConstSpan(&read, 1));
  ASSERT_TRUE((*reader)->Flush().ok());
  BlockCompletion done;
  ASSERT_EQ((*reader)->Reap(absl::MakeSpan(&done, 1), 1, 5'000'000'000), 1u);
  EXPECT_EQ(done.tag, 7u);
  EXPECT_EQ(done.result, 4096);
  EXPECT_EQ(std::memcmp(buffers->data(0), data.data() + 8192, 4096), 0);

  const int fd = FindRing();
  ASSERT_GE(fd, 0);
  // What the kernel knows of it.
  std::ifstream known("/proc/self/fdinfo/" + std::to_string(fd));
  const std::string text(std::istreambuf_iterator<char>(known), {});
  if (text.find("UserBufs:") != std::string::npos) {
    EXPECT_NE(text.find("UserFiles:\t1\n"), std::string::npos) << text;
    EXPECT_EQ(text.find("UserBufs:\t1\n") != std::string::npos, (*reader)->shortcomings().empty()) << text;
  }
  if (KernelIsAtLeast(6, 1)) {
    std::thread([&] {
      EXPECT_EQ(syscall(__NR_io_uring_enter, fd, 1, 0, 0, nullptr, 0), -1);
      EXPECT_EQ(errno, EEXIST) << "it belongs to one thread";
    }).join();
  }
  EXPECT_EQ(syscall(__NR_io_uring_register, fd, IORING_UNREGISTER_FILES, nullptr, 0), -1);
  EXPECT_EQ(errno, EACCES);
  io_uring ring = {};
  ASSERT_TRUE(MapRing(fd, &ring));
  const auto result_of = [&](auto prepare) {
    io_uring_sqe* const entry = io_uring_get_sqe(&ring);
    prepare(entry);
    io_uring_cqe* answer = nullptr;
    __kernel_timespec patience = {10, 0};
    if (io_uring_submit_and_wait_timeout(&ring, &answer, 1, &patience, nullptr) < 0 || answer == nullptr) {
      return 1;
    }
    const int result = answer->res;
    io_uring_cqe_seen(&ring, answer);
    return result;
  };
  uint8_t* const memory = buffers->data(1);
  EXPECT_EQ(result_of([&](io_uring_sqe* entry) { io_uring_prep_nop(entry); }), -EACCES);
  EXPECT_EQ(result_of([&](io_uring_sqe* entry) { io_uring_prep_openat(entry, AT_FDCWD, "/etc/passwd", O_RDONLY, 0); }),
            -EACCES);
  EXPECT_EQ(result_of([&](io_uring_sqe* entry) { io_uring_prep_read(entry, file, memory, 512, 0); }), -EACCES)
      << "a file that is open but not registered";
  EXPECT_EQ(result_of([&](io_uring_sqe* entry) {
              io_uring_prep_write(entry, 0, memory, 512, 0);
              entry->flags |= IOSQE_FIXED_FILE;
            }),
            -EACCES);
  // That these are refused for what they are, and not for how they came.
  EXPECT_EQ(result_of([&](io_uring_sqe* entry) {
              io_uring_prep_read(entry, 0, memory, 512, 0);
              entry->flags |= IOSQE_FIXED_FILE;
            }),
            512);
  ring.ring_fd = -1;  // the reader's to close
  munmap(ring.sq.ring_ptr, ring.sq.ring_sz);
  close(file);
}

}  // namespace
}  // namespace embergate::storage
