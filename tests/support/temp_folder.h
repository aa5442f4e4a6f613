// A folder of its own for one test, removed with everything in it.
#ifndef EMBERGATE_TESTS_SUPPORT_TEMP_FOLDER_H_
#define EMBERGATE_TESTS_SUPPORT_TEMP_FOLDER_H_

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "absl/strings/string_view.h"
#include "gtest/gtest.h"

namespace embergate::test {

class TempFolder {
 public:
  TempFolder() {
    std::string form = (std::filesystem::temp_directory_path() / "embergate_test_XXXXXX").string();
    const char* const made = ::mkdtemp(form.data());
    EXPECT_NE(made, nullptr) << "cannot make a folder like " << form;
    path_ = form;
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  const std::string& path() const { return path_; }
  std::string File(absl::string_view name) const { return path_ + "/" + std::string(name); }
  // Writes `bytes` to the file `name` and returns its path.
  std::string Write(absl::string_view name, absl::string_view bytes) const {
    std::string path = File(name);
    std::ofstream out(path, std::ios::binary | std::ios::trunc);
    out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    EXPECT_TRUE(out.flush().good()) << path;
    return path;
  }

 private:
  std::string path_;
};

inline std::string ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in.good()) << path;
  return std::string(std::istreambuf_iterator<char>(in), {});
}

}  // namespace embergate::test

#endif  // EMBERGATE_TESTS_SUPPORT_TEMP_FOLDER_H_
