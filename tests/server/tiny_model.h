// A synthesised model of the smallest shape, loaded as `serve` does, behind a real gRPC server.
#ifndef EMBERGATE_TESTS_SERVER_TINY_MODEL_H_
#define EMBERGATE_TESTS_SERVER_TINY_MODEL_H_

#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "engine/convert/synth.h"
#include "gtest/gtest.h"
#include "server/grpc_server.h"
#include "server/model_host.h"
#include "tests/server/scripted_server.h"
#include "tests/support/temp_folder.h"

namespace embergate::server {

inline std::string TinyModel(const test::TempFolder& folder, uint64_t seed = 1) {
  const std::string path = folder.File(absl::StrCat("tiny", seed, ".gguf"));
  engine::SynthOptions options;
  options.seed = seed;
  const auto summary = engine::SynthesiseModel(*engine::FindModelShape("gemma4-tiny"), path, options);
  EXPECT_TRUE(summary.ok()) << summary.status();
  return path;
}

inline ModelHostOptions TinyOptions(const std::string& path) {
  ModelHostOptions options;
  options.path = path;
  options.decoder.context_max = 64;
  options.decoder.slots_max = 2;
  return options;
}

class TinyServer {
 public:
  explicit TinyServer(const ModelHostOptions& options) {
    auto host = ModelHost::Load(options, nullptr);
    EXPECT_TRUE(host.ok()) << host.status();
    host_ = *std::move(host);
    auto server = GrpcServer::Start({});
    EXPECT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    server_->lifecycle().SetReady(&host_->served());
    channel_ = server_->grpc_server().InProcessChannel(grpc::ChannelArguments());
    stub_ = v1::Inference::NewStub(channel_);
  }
  ~TinyServer() { server_.reset(); }

  ModelHost& host() { return *host_; }
  GrpcServer& server() { return *server_; }
  v1::Inference::Stub& stub() { return *stub_; }
  const std::shared_ptr<grpc::Channel>& channel() { return channel_; }

 private:
  std::unique_ptr<ModelHost> host_;
  std::unique_ptr<GrpcServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Inference::Stub> stub_;
};

}  // namespace embergate::server

#endif  // EMBERGATE_TESTS_SERVER_TINY_MODEL_H_
