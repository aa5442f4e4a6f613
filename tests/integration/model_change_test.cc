// SIGHUP with another model in the config file, or another file in its place, while clients stream.
#include <grpcpp/grpcpp.h>

#include <atomic>
#include <csignal>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "embergate/v1/inference.grpc.pb.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/engine/model/model_fixture.h"
#include "tests/support/eventually.h"
#include "tests/support/server_process.h"
#include "tests/support/temp_folder.h"

namespace embergate {
namespace {

using engine::GoldenGguf;
using test::Eventually;
using test::ServerProcess;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr int kLong = 3000;  // tokens; far more than are computed while a model of this size is loaded

// A stream with its own connection.
class Stream {
 public:
  Stream(const ServerProcess& server, int tokens)
      : stub_(v1::Inference::NewStub(grpc::CreateChannel(server.address(), grpc::InsecureChannelCredentials()))) {
    v1::GenerateRequest request;
    request.mutable_token_ids()->add_ids(2);
    request.mutable_token_ids()->add_ids(7);
    request.mutable_sampling()->set_temperature(0);
    request.mutable_stopping()->set_max_tokens(tokens);
    request.mutable_stopping()->set_ignore_eos(true);
    context_.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(600));
    reader_ = stub_->Generate(&context_, request);
    v1::GenerateResponse response;
    while (ids_.empty() && reader_->Read(&response)) {
      Take(response);
    }
  }

  // All tokens; a test failure if it has not ended well.
  std::vector<int32_t> Finish() {
    v1::GenerateResponse response;
    while (reader_->Read(&response)) {
      Take(response);
    }
    const grpc::Status status = reader_->Finish();
    EXPECT_TRUE(status.ok()) << status.error_message();
    return ids_;
  }

 private:
  void Take(const v1::GenerateResponse& response) {
    ids_.insert(ids_.end(), response.delta().ids().begin(), response.delta().ids().end());
  }

  const std::unique_ptr<v1::Inference::Stub> stub_;
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::GenerateResponse>> reader_;
  std::vector<int32_t> ids_;
};

std::string ModelName(const ServerProcess& server) {
  const auto stub = v1::Inference::NewStub(grpc::CreateChannel(server.address(), grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  v1::GetModelInfoResponse response;
  const grpc::Status status = stub->GetModelInfo(&context, {}, &response);
  return status.ok() ? absl::StrCat(response.name(), " ", response.layers(), " ", response.limits().context_tokens())
                     : status.error_message();
}

bool HasMetric(const ServerProcess& server, const std::string& line) {
  return absl::StrContains(test::HttpGet(server.metrics_port(), "/metrics"), absl::StrCat("\n", line, "\n"));
}

std::string Config(const std::string& model, int context, const std::string& more = "") {
  return absl::StrCat("model = \"", model, "\"\ncontext = ", context, "\nslots = 4\nthreads = 1\n", more);
}

TEST(ModelChangeTest, StreamsEndOnTheModelThatTheyBeganWith) {
  const std::string old_model = GoldenGguf("gemma4-tiny-e2b");
  const std::string new_model = GoldenGguf("gemma4-tiny-e4b");
  const test::TempFolder folder;
  const std::string config = folder.Write("config.toml", Config(old_model, 4000));
  ServerProcess server(EMBERGATE_BINARY, {"--config", config, "--dram-budget", "0", "--drain-timeout", "600"});
  ASSERT_TRUE(server.WaitReady());
  const std::string old_name = ModelName(server);
  const std::vector<int32_t> old_ids = Stream(server, kLong).Finish();
  ASSERT_EQ(old_ids.size(), static_cast<size_t>(kLong));

  Stream first(server, kLong);
  Stream second(server, kLong);
  folder.Write("config.toml", Config(new_model, 3500, "grpc-buffers = \"8MiB\"\n"));
  server.Signal(SIGHUP);
  ASSERT_TRUE(Eventually([&] { return ModelName(server) != old_name; }));
  const std::vector<int32_t> new_ids = Stream(server, kLong).Finish();
  EXPECT_THAT(new_ids, Not(old_ids));
  EXPECT_EQ(first.Finish(), old_ids);
  EXPECT_EQ(second.Finish(), old_ids);
  EXPECT_THAT(ModelName(server), HasSubstr(" 3500")) << "its settings come with it";
  EXPECT_THAT(server.log(), HasSubstr("only the next start will heed it: grpc-buffers\n"));
  ASSERT_TRUE(Eventually([&] { return HasMetric(server, "embergate_former_model_bytes 0"); }));
  EXPECT_TRUE(HasMetric(server, "embergate_former_model_requests 0"));
  EXPECT_TRUE(HasMetric(server, "embergate_model_changes_total{outcome=\"beside\"} 1"));

  // The end of the process in the middle of a change loses no stream either.
  folder.Write("config.toml", Config(old_model, 4000));
  Stream last(server, kLong);
  server.Signal(SIGHUP);
  server.Signal(SIGTERM);
  EXPECT_EQ(last.Finish(), new_ids);
  EXPECT_EQ(server.WaitExit(), 0);
}

TEST(ModelChangeTest, AnotherFileInTheModelsPlaceIsServedIfItCanBe) {
  const test::TempFolder folder;
  const std::string model = folder.File("model.gguf");
  const auto put = [&](const std::function<void(const std::string&)>& write) {
    write(model + ".new");
    std::filesystem::rename(model + ".new", model);
  };
  const auto copy = [](const std::string& from) {
    return [from](const std::string& to) { std::filesystem::copy_file(from, to); };
  };
  put(copy(GoldenGguf("gemma4-tiny-e2b")));
  ServerProcess server(EMBERGATE_BINARY, {"--model", model, "--dram-budget", "0", "--threads", "1"});
  ASSERT_TRUE(server.WaitReady());
  const std::string old_name = ModelName(server);
  const std::vector<int32_t> old_ids = Stream(server, 20).Finish();

  put([&](const std::string&) { folder.Write("model.gguf.new", "something else"); });
  for (int failures = 1; failures <= 2; ++failures) {  // whoever asks again is told again
    server.Signal(SIGHUP);
    ASSERT_TRUE(Eventually([&] {
      return HasMetric(server, absl::StrCat("embergate_model_changes_total{outcome=\"failed\"} ", failures));
    }));
  }
  EXPECT_THAT(server.log(), HasSubstr("the model stays as it is"));
  EXPECT_EQ(ModelName(server), old_name);
  EXPECT_EQ(Stream(server, 20).Finish(), old_ids) << "the file that was opened is served";

  put(copy(GoldenGguf("gemma4-tiny-e4b")));
  server.Signal(SIGHUP);
  ASSERT_TRUE(Eventually([&] { return ModelName(server) != old_name; }));
  EXPECT_THAT(Stream(server, 20).Finish(), Not(old_ids));
  server.Signal(SIGTERM);
  EXPECT_EQ(server.WaitExit(), 0);
}

}  // namespace
}  // namespace embergate
