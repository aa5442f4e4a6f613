// The real binary and a device that disappoints: what clients are told, what the log says, and when the server is
// ready.
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "embergate/v1/inference.grpc.pb.h"
#include "engine/convert/gguf_keys.h"
#include "engine/convert/synth.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "storage/gguf_file.h"
#include "tests/support/eventually.h"
#include "tests/support/server_process.h"
#include "tests/support/temp_folder.h"

namespace embergate {
namespace {

using test::Eventually;
using test::RunBinary;
using test::RunResult;
using test::ServerProcess;
using ::testing::HasSubstr;
using ::testing::Not;

class FlashTroubleTest : public ::testing::Test {
 protected:
  FlashTroubleTest() {
    const auto made = engine::SynthesiseModel(*engine::FindModelShape("gemma4-tiny"), model_, {});
    EXPECT_TRUE(made.ok()) << made.status();
    const auto file = storage::GgufFile::Open(model_);
    EXPECT_TRUE(file.ok()) << file.status();
    const storage::GgufTensor* const table = (*file)->FindTensor(engine::gguf::kPerLayerTokenEmbd);
    table_offset_ = table->file_offset;
    row_bytes_ = table->row_bytes();
    bytes_ = test::ReadFile(model_);
  }

  uint64_t RowOffset(int64_t row) const { return table_offset_ + static_cast<uint64_t>(row) * row_bytes_; }

  // Writes into the file that is there, from `offset` on.
  void Overwrite(uint64_t offset, const std::string& bytes) {
    std::fstream file(model_, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(offset));
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    ASSERT_TRUE(file.flush().good());
  }

  std::unique_ptr<ServerProcess> Serve() {
    auto server = std::make_unique<ServerProcess>(
        EMBERGATE_BINARY, std::vector<std::string>{"--model", model_, "--context", "64", "--slots", "2", "--threads",
                                                   "1", "--dram-budget", "0", "--row-cache", "0"});
    EXPECT_TRUE(server->WaitReady()) << server->log();
    return server;
  }

  // How a request for a few tokens ends.
  static grpc::Status Generate(const ServerProcess& server, const std::vector<int32_t>& prompt) {
    const auto stub = v1::Inference::NewStub(grpc::CreateChannel(server.address(), grpc::InsecureChannelCredentials()));
    v1::GenerateRequest request;
    request.mutable_token_ids()->mutable_ids()->Add(prompt.begin(), prompt.end());
    request.mutable_sampling()->set_temperature(0);
    request.mutable_stopping()->set_max_tokens(1);
    request.mutable_stopping()->set_ignore_eos(true);
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(60));
    const auto reader = stub->Generate(&context, request);
    v1::GenerateResponse response;
    while (reader->Read(&response)) {
    }
    return reader->Finish();
  }

  static bool Ready(const ServerProcess& server) {
    return absl::StrContains(test::HttpGet(server.metrics_port(), "/metrics"), "\nembergate_ready 1\n");
  }

  const test::TempFolder folder_;
  const std::string model_ = folder_.File("model.gguf");
  std::string bytes_;
  uint64_t table_offset_ = 0;
  uint64_t row_bytes_ = 0;
};

TEST_F(FlashTroubleTest, ADamagedRowEndsItsRequestsAndTheLogNamesRowAndByte) {
  const uint64_t at = RowOffset(100) + 3;
  Overwrite(at, std::string(1, static_cast<char>(bytes_[at] ^ 8)));
  const auto server = Serve();
  EXPECT_THAT(server->log(), HasSubstr("rows are checked by CRC32C"));
  EXPECT_TRUE(Generate(*server, {2, 99, 101}).ok());
  const grpc::Status damaged = Generate(*server, {2, 100});
  EXPECT_EQ(damaged.error_code(), grpc::StatusCode::DATA_LOSS);
  EXPECT_THAT(damaged.error_message(), Not(HasSubstr(folder_.path()))) << "that is the operator's business";
  EXPECT_TRUE(Generate(*server, {2, 99, 101}).ok());
  EXPECT_TRUE(Eventually([&] {
    return absl::StrContains(server->log(),
                             absl::StrCat("row 100 of table 0 (", model_, " at byte ", RowOffset(100), ")"));
  })) << server->log();
  EXPECT_TRUE(Ready(*server)) << "one row is no broken device";
}

TEST_F(FlashTroubleTest, ATruncatedFileTakesTheServerOutOfServiceUntilItIsWhole) {
  const auto server = Serve();
  ASSERT_TRUE(Generate(*server, {2, 10, 20}).ok());
  std::filesystem::resize_file(model_, table_offset_);
  EXPECT_EQ(Generate(*server, {2, 30, 40, 50, 60}).error_code(), grpc::StatusCode::DATA_LOSS);
  EXPECT_TRUE(Eventually([&] { return !Ready(*server); })) << server->log();
  EXPECT_THAT(server->log(), HasSubstr("flash keeps failing"));
  EXPECT_THAT(server->log(), HasSubstr("the file ends before it"));
  // The rows have checksums, so it is enough that they are right again.
  Overwrite(table_offset_, bytes_.substr(table_offset_));
  EXPECT_TRUE(Eventually([&] { return Ready(*server); })) << server->log();
  EXPECT_THAT(server->log(), HasSubstr("flash works again"));
  EXPECT_TRUE(Generate(*server, {2, 30, 40, 50, 60}).ok());
}

// The table of the demo model is just large enough to be measured.
TEST_F(FlashTroubleTest, TheFirstStartMeasuresTheDeviceAndTheNextOneKnowsIt) {
  const std::string state = folder_.File("state/embergate/storage.json");
  setenv("XDG_STATE_HOME", folder_.File("state").c_str(), 1);
  const std::vector<std::string> args = {"--model",       EMBERGATE_SOURCE_DIR "/tests/demo_model/demo.gguf",
                                         "--context",     "64",
                                         "--threads",     "1",
                                         "--dram-budget", "0"};
  {
    ServerProcess server(EMBERGATE_BINARY, args);
    ASSERT_TRUE(server.WaitReady()) << server.log();
    EXPECT_THAT(server.log(), HasSubstr("flash measured"));
  }
  nlohmann::json saved = nlohmann::json::parse(test::ReadFile(state));
  ASSERT_EQ(saved["devices"].size(), 1u) << saved;
  (*saved["devices"].begin())["queue_depth"] = 5;
  folder_.Write("state/embergate/storage.json", saved.dump());
  {
    ServerProcess server(EMBERGATE_BINARY, args);
    ASSERT_TRUE(server.WaitReady()) << server.log();
    EXPECT_THAT(server.log(), Not(HasSubstr("flash measured")));
    EXPECT_THAT(test::HttpGet(server.metrics_port(), "/metrics"),
                HasSubstr("\nembergate_flash_reads_in_flight_max 5\n"));
  }
  unsetenv("XDG_STATE_HOME");
  const RunResult test = RunBinary(EMBERGATE_BINARY, {"storage-test", args[1], "--state", state, "--seconds", "0.02"});
  EXPECT_EQ(test.code, 0) << test.err;
  for (const char* line : {"\n     1 ", "\n     2 ", "\n    16 ", "\n    64 ", "blocks of ", "a row has 1360 bytes",
                           "verdict: ", "recommended: --queue-depth ", "saved in "}) {
    EXPECT_THAT(test.out, HasSubstr(line));
  }
  saved = nlohmann::json::parse(test::ReadFile(state));
  EXPECT_GT(saved["devices"].begin()->at("small_reads_per_second").get<double>(), 0);
}

}  // namespace
}  // namespace embergate
