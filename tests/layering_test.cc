// The rules that keep the modules apart, made executable: who may include whom, which headers stay in one
// place, and that no source or test file is left out of the build.
#include <filesystem>
#include <fstream>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace {

namespace fs = std::filesystem;

struct Include {
  std::string file;  // relative to the source folder
  int line = 0;
  std::string target;  // what stands between the quotes or angle brackets
};

std::vector<fs::path> SourceFiles(const std::string& folder) {
  std::vector<fs::path> files;
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(fs::path(EMBERGATE_SOURCE_DIR) / folder)) {
    const std::string extension = entry.path().extension().string();
    if (entry.is_regular_file() && (extension == ".h" || extension == ".cc")) {
      files.push_back(entry.path());
    }
  }
  return files;
}

std::string Relative(const fs::path& path) { return fs::relative(path, EMBERGATE_SOURCE_DIR).generic_string(); }

std::vector<Include> IncludesIn(const std::string& folder) {
  static const std::regex pattern(R"re(^\s*#\s*include\s*["<]([^">]+)[">])re");
  std::vector<Include> includes;
  for (const fs::path& path : SourceFiles(folder)) {
    std::ifstream stream(path);
    std::string text;
    for (int line = 1; std::getline(stream, text); ++line) {
      std::smatch match;
      if (std::regex_search(text, match, pattern)) {
        includes.push_back({Relative(path), line, match[1].str()});
      }
    }
  }
  return includes;
}

bool StartsWith(const std::string& text, const std::string& prefix) { return text.rfind(prefix, 0) == 0; }

// Fails for every include in `folder` of a header that begins with one of `prefixes`, but for files whose path
// begins with one of `except`.
void ExpectNoInclude(const std::string& folder, const std::vector<std::string>& prefixes,
                     const std::vector<std::string>& except = {}) {
  for (const Include& include : IncludesIn(folder)) {
    bool excepted = false;
    for (const std::string& path : except) {
      excepted = excepted || StartsWith(include.file, path);
    }
    for (const std::string& prefix : prefixes) {
      EXPECT_TRUE(excepted || !StartsWith(include.target, prefix))
          << include.file << ":" << include.line << " must not include " << include.target;
    }
  }
}

const std::vector<std::string> kServerOnly = {"grpc", "grpcpp/", "google/protobuf", "prometheus/",
                                              "CLI/", "spdlog/", "embergate/v1/",   "server/"};

TEST(LayeringTest, StorageIncludesNothingAbove) {
  ExpectNoInclude("storage", {"engine/", "nlohmann/"});
  ExpectNoInclude("storage", kServerOnly);
}

TEST(LayeringTest, EngineIncludesNothingAbove) { ExpectNoInclude("engine", kServerOnly); }

TEST(LayeringTest, OnlyTheRingFileSeesLiburing) {
  for (const char* folder : {"storage", "engine", "server"}) {
    ExpectNoInclude(folder, {"liburing"}, {"storage/uring_reader.cc"});
  }
}

TEST(LayeringTest, OnlyKernelsSeeIntrinsicsAndOneDnn) {
  for (const char* folder : {"storage", "engine", "server"}) {
    ExpectNoInclude(folder,
                    {"immintrin.h", "x86intrin.h", "nmmintrin.h", "arm_neon.h", "arm_acle.h", "dnnl", "oneapi/"},
                    {"engine/kernels/", "storage/crc32c"});
  }
}

TEST(LayeringTest, EveryHeaderIsGuardedByItsPath) {
  for (const char* folder : {"storage", "engine", "server"}) {
    for (const fs::path& path : SourceFiles(folder)) {
      if (path.extension() != ".h") {
        continue;
      }
      std::string guard = "EMBERGATE_" + Relative(path) + "_";
      for (char& c : guard) {
        c = std::isalnum(static_cast<unsigned char>(c)) ? static_cast<char>(std::toupper(c)) : '_';
      }
      std::ifstream stream(path);
      std::stringstream text;
      text << stream.rdbuf();
      EXPECT_NE(text.str().find("#ifndef " + guard), std::string::npos) << Relative(path) << " wants " << guard;
    }
  }
}

// A test that is not built is worse than none: it looks like proof.
TEST(LayeringTest, EverySourceFileIsNamedInItsCMakeLists) {
  for (const char* folder : {"storage", "engine", "server", "tests"}) {
    for (const fs::path& path : SourceFiles(folder)) {
      if (path.extension() != ".cc") {
        continue;
      }
      bool found = false;
      // The file's own folder or one above names it, relative to itself.
      for (fs::path at = path.parent_path(); !found && at != fs::path(EMBERGATE_SOURCE_DIR).parent_path();
           at = at.parent_path()) {
        std::ifstream stream(at / "CMakeLists.txt");
        std::stringstream text;
        text << stream.rdbuf();
        found = text.str().find(fs::relative(path, at).generic_string()) != std::string::npos;
      }
      EXPECT_TRUE(found) << Relative(path) << " is in no CMakeLists.txt";
    }
  }
}

}  // namespace
