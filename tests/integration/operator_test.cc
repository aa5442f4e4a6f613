// The real binary as an operator handles it: keys, certificates, signals, and what its log says and does not say.
#include <grpcpp/grpcpp.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "embergate/v1/inference.grpc.pb.h"
#include "engine/kernels/kernels.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/engine/model/model_fixture.h"
#include "tests/support/certificates.h"
#include "tests/support/eventually.h"
#include "tests/support/sanitized.h"
#include "tests/support/server_process.h"

namespace embergate {
namespace {

using engine::GoldenGguf;
using test::Eventually;
using test::RunBinary;
using test::RunResult;
using test::ServerProcess;
using ::testing::HasSubstr;
using ::testing::Not;

std::vector<std::string> ServeArgs(const std::vector<std::string>& more) {
  std::vector<std::string> args = {"--context", "160",           "--slots", "4",       "--threads",
                                   "2",         "--dram-budget", "0",       "--model", GoldenGguf("gemma4-tiny-e2b")};
  args.insert(args.end(), more.begin(), more.end());
  return args;
}

RunResult GenerateCommand(const std::string& address, const std::vector<std::string>& more = {},
                          const std::string& prompt = "Hello") {
  std::vector<std::string> args = {"generate", "--address",    address, "--prompt",
                                   prompt,     "--max-tokens", "3",     "--ignore-eos"};
  args.insert(args.end(), more.begin(), more.end());
  return RunBinary(EMBERGATE_BINARY, args);
}

std::string NewKey(const std::vector<std::string>& args) {
  std::vector<std::string> all = {"keygen"};
  all.insert(all.end(), args.begin(), args.end());
  const RunResult made = RunBinary(EMBERGATE_BINARY, all);
  EXPECT_EQ(made.code, 0) << made.err;
  return made.out.substr(0, made.out.find('\n'));
}

// CPU time of all threads of a process; nullopt if the kernel does not tell.
std::optional<double> CpuSeconds(pid_t pid) {
  double seconds = 0;
  std::error_code error;
  const std::string tasks = absl::StrCat("/proc/", pid, "/task");
  for (std::filesystem::directory_iterator it(tasks, error), end; !error && it != end; it.increment(error)) {
    std::ifstream schedstat(it->path() / "schedstat");
    uint64_t ns = 0;
    if (!(schedstat >> ns)) {
      return std::nullopt;
    }
    seconds += 1e-9 * static_cast<double>(ns);
  }
  return error ? std::nullopt : std::optional<double>(seconds);
}

// Once it has answered, a server that nobody asks anything takes less than half a percent of a core.
TEST(OperatorTest, AnIdleServerUsesHardlyAnyCpu) {
  ServerProcess server(EMBERGATE_BINARY, ServeArgs({}));
  ASSERT_TRUE(server.WaitReady());
  EXPECT_EQ(GenerateCommand(server.address()).code, 0);
  double share = 1;
  for (int attempt = 0; attempt < 3 && share >= 0.005; ++attempt) {  // it may still clean up after the request
    const std::optional<double> before = CpuSeconds(server.pid());
    const auto start = std::chrono::steady_clock::now();
    std::this_thread::sleep_for(std::chrono::seconds(2));
    const std::optional<double> after = CpuSeconds(server.pid());
    if (!before.has_value() || !after.has_value()) {
      GTEST_SKIP() << "the kernel does not tell what threads use";
    }
    share = (*after - *before) / std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  std::printf("idle: %.3f %% of a core\n", 100 * share);
  if (!test::kSanitized) {
    EXPECT_LT(share, 0.005);
  }
}

TEST(OperatorTest, SaysWhatComputesAndWhatItTook) {
  ServerProcess server(EMBERGATE_BINARY, ServeArgs({}));
  ASSERT_TRUE(server.WaitReady());
  EXPECT_THAT(server.log(), HasSubstr("computing: 2 threads on "));
  EXPECT_THAT(server.log(), HasSubstr(absl::StrCat(", ", engine::KernelIsa(), " kernels for all products")));
  EXPECT_EQ(GenerateCommand(server.address()).code, 0);
  const std::string page = test::HttpGet(server.metrics_port(), "/metrics");
  const std::string name = "\nembergate_step_threads_cpu_seconds_total ";
  const size_t at = page.find(name);
  ASSERT_NE(at, std::string::npos);
  EXPECT_GT(std::stod(page.substr(at + name.size())), 0) << "the threads' names are not those that the metric counts";
}

TEST(OperatorTest, ListeningBeyondThisMachineWantsADecision) {
  const RunResult refused = RunBinary(EMBERGATE_BINARY, {"serve", "--model", GoldenGguf("gemma4-tiny-e2b"), "--listen",
                                                         "0.0.0.0:0", "--metrics", "off"});
  EXPECT_EQ(refused.code, 2);
  for (const char* way : {"--api-keys", "--tls-client-ca", "127.0.0.1", "--allow-unauthenticated"}) {
    EXPECT_THAT(refused.err, HasSubstr(way));
  }
}

TEST(OperatorTest, KeysAreMadeAskedForAndExchanged) {
  const test::TempFolder folder;
  const std::string keys = folder.File("api-keys");
  const std::string alice = NewKey({"alice", "--file", keys, "--streams", "2"});
  EXPECT_THAT(test::ReadFile(keys), Not(HasSubstr(alice))) << "the key itself is stored";
  ServerProcess server(EMBERGATE_BINARY, ServeArgs({"--api-keys", keys}));
  ASSERT_TRUE(server.WaitReady());
  const RunResult stranger = GenerateCommand(server.address());
  EXPECT_EQ(stranger.code, 1);
  EXPECT_THAT(stranger.err, HasSubstr("UNAUTHENTICATED"));
  EXPECT_EQ(GenerateCommand(server.address(), {"--api-key", alice}).code, 0);
  setenv("EMBERGATE_API_KEY", alice.c_str(), 1);
  const RunResult load = RunBinary(
      EMBERGATE_BINARY, {"load", "--address", server.address(), "--clients", "2", "--tokens", "4", "--verify"});
  const RunResult info = RunBinary(EMBERGATE_BINARY, {"info", "--address", server.address()});
  unsetenv("EMBERGATE_API_KEY");
  EXPECT_EQ(load.code, 0) << load.out << load.err;
  EXPECT_EQ(info.code, 0) << info.err;
  EXPECT_EQ(RunBinary(EMBERGATE_BINARY, {"health", "--address", server.address()}).code, 0) << "asks for no key";

  // One more client; nothing is restarted.
  const std::string bob = NewKey({"bob", "--file", keys});
  EXPECT_EQ(GenerateCommand(server.address(), {"--api-key", bob}).code, 1);
  server.Signal(SIGHUP);
  ASSERT_TRUE(Eventually([&] { return absl::StrContains(server.log(), "API keys read again: 2 clients"); }));
  EXPECT_EQ(GenerateCommand(server.address(), {"--api-key", bob}).code, 0);
  EXPECT_EQ(GenerateCommand(server.address(), {"--api-key", alice}).code, 0);

  // A broken file changes nothing, and says why.
  folder.Write("api-keys", "alice is my friend\n");
  server.Signal(SIGHUP);
  ASSERT_TRUE(Eventually([&] { return absl::StrContains(server.log(), "API keys stay as they are"); }));
  EXPECT_THAT(server.log(), HasSubstr("line 1"));
  EXPECT_EQ(GenerateCommand(server.address(), {"--api-key", bob}).code, 0);
  const std::string page = test::HttpGet(server.metrics_port(), "/metrics");
  EXPECT_THAT(page, HasSubstr("embergate_reload_failures_total 1"));
  EXPECT_THAT(page, HasSubstr("embergate_client_tokens_total{client=\"bob\"}"));
  EXPECT_THAT(page, HasSubstr("embergate_unauthenticated_total{reason=\"missing\"} 1"));
  EXPECT_THAT(server.log(), Not(HasSubstr(alice)));
}

TEST(OperatorTest, CommandsSpeakTls) {
  const test::TempFolder folder;
  const test::CertificateAndKey ca = test::MakeCa("the CA");
  const test::CertificateAndKey own = test::MakeCertificate("server", ca);
  const test::CertificateAndKey client = test::MakeCertificate("board 7", ca);
  const std::string root = folder.Write("ca.pem", ca.certificate);
  ServerProcess server(EMBERGATE_BINARY,
                       ServeArgs({"--tls-cert", folder.Write("cert.pem", own.certificate), "--tls-key",
                                  folder.Write("key.pem", own.key), "--tls-client-ca", root, "--log-level", "debug"}));
  ASSERT_TRUE(server.WaitReady());
  const std::vector<std::string> flags = {"--tls-ca",   root,
                                          "--tls-cert", folder.Write("client.pem", client.certificate),
                                          "--tls-key",  folder.Write("client-key.pem", client.key)};
  const RunResult answered = GenerateCommand(server.address(), flags);
  EXPECT_EQ(answered.code, 0) << answered.err;
  EXPECT_TRUE(Eventually([&] { return absl::StrContains(server.log(), "client=\"board 7\""); })) << server.log();
  EXPECT_EQ(GenerateCommand(server.address(), {"--tls-ca", root, "--timeout", "3"}).code, 1);
  EXPECT_EQ(GenerateCommand(server.address(), {"--timeout", "3"}).code, 1);
  const RunResult unreadable = GenerateCommand(server.address(), {"--tls-ca", folder.File("none")});
  EXPECT_EQ(unreadable.code, 2);
  EXPECT_THAT(unreadable.err, HasSubstr("none"));
}

// Lines of the log that are JSON objects with this message.
std::vector<nlohmann::json> Events(const std::string& log, const std::string& message) {
  std::vector<nlohmann::json> events;
  std::istringstream lines(log);
  for (std::string line; std::getline(lines, line);) {
    const nlohmann::json event = nlohmann::json::parse(line, nullptr, false);
    EXPECT_TRUE(event.is_object()) << line;
    if (event.is_object() && event["message"] == message) {
      events.push_back(event);
    }
  }
  return events;
}

TEST(OperatorTest, EachRequestIsOneLineAndNeverItsText) {
  const test::TempFolder folder;
  const std::string keys = folder.File("api-keys");
  const std::string key = NewKey({"alice", "--file", keys});
  for (const bool asked : {false, true}) {
    std::vector<std::string> args = ServeArgs({"--api-keys", keys, "--log-level", "debug", "--log-json"});
    if (asked) {
      args.push_back("--log-prompts");
    }
    ServerProcess server(EMBERGATE_BINARY, args);
    ASSERT_TRUE(Eventually([&] { return absl::StrContains(server.log(), "\"ready\""); }));
    const std::string log = server.log();
    const std::string before = "listening on ";
    const size_t at = log.find(before) + before.size();
    const std::string address = log.substr(at, log.find('"', at) - at);
    const auto stub = v1::Inference::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
    const auto call = [&](const std::string& id, int tokens) {
      v1::GenerateRequest request;
      request.mutable_text()->set_text("the purple walrus");
      request.mutable_stopping()->set_max_tokens(tokens);
      request.mutable_stopping()->set_ignore_eos(true);
      request.set_request_id(id);
      grpc::ClientContext context;
      context.AddMetadata("x-api-key", key);
      const auto reader = stub->Generate(&context, request);
      v1::GenerateResponse response;
      while (reader->Read(&response)) {
      }
      reader->Finish();
    };
    call("request \"7\"", 5);
    call("too much", 1'000'000);
    ASSERT_TRUE(Eventually([&] { return Events(server.log(), "call").size() >= 2; })) << server.log();
    const std::vector<nlohmann::json> calls = Events(server.log(), "call");
    ASSERT_EQ(calls.size(), 2u);
    EXPECT_EQ(calls[0]["id"], "request \"7\"");
    EXPECT_EQ(calls[0]["method"], "Generate");
    EXPECT_EQ(calls[0]["client"], "alice");
    EXPECT_EQ(calls[0]["code"], "OK");
    EXPECT_EQ(calls[0]["reason"], "");
    EXPECT_EQ(calls[0]["output_tokens"], 5);
    EXPECT_GT(calls[0]["input_tokens"], 3);
    EXPECT_GT(calls[0]["seconds"], 0);
    EXPECT_EQ(calls[1]["code"], "INVALID_ARGUMENT");
    EXPECT_EQ(calls[1]["reason"], "INVALID_REQUEST");
    EXPECT_EQ(absl::StrContains(server.log(), "walrus"), asked);
    EXPECT_EQ(Events(server.log(), "prompt").size(), asked ? 1u : 0u);
    EXPECT_THAT(server.log(), Not(HasSubstr(key)));
  }
}

TEST(OperatorTest, SighupTakesWhatItCanAndNamesTheRest) {
  const test::TempFolder folder;
  const std::string model = absl::StrCat("model = \"", GoldenGguf("gemma4-tiny-e2b"), "\"\ndram-budget = \"0\"\n");
  const std::string config = folder.Write("config.toml", absl::StrCat(model, "context = 96\nslots = 3\n"));
  ServerProcess server(EMBERGATE_BINARY, {"--config", config});
  ASSERT_TRUE(server.WaitReady());
  const auto settings_read = [&](int times) {
    return Eventually([&] {
      int found = 0;
      const std::string log = server.log();
      for (size_t at = 0; (at = log.find("settings read again", at)) != std::string::npos; ++at) ++found;
      return found == times;
    });
  };
  folder.Write("config.toml", absl::StrCat(model,
                                           "context = 96\nslots = 4\nlog-level = \"debug\"\n"
                                           "drain-timeout = 7\n"));
  server.Signal(SIGHUP);
  ASSERT_TRUE(settings_read(1));
  EXPECT_THAT(server.log(), HasSubstr("only the next start will heed it: slots\n"));
  EXPECT_THAT(server.log(), HasSubstr("log level debug, drain timeout 7s"));
  // A file that cannot be used changes nothing.
  folder.Write("config.toml", absl::StrCat(model, "slots = many\n"));
  server.Signal(SIGHUP);
  ASSERT_TRUE(Eventually([&] { return absl::StrContains(server.log(), "settings stay as they are"); }));
  EXPECT_EQ(GenerateCommand(server.address()).code, 0);
  server.Signal(SIGTERM);
  EXPECT_EQ(server.WaitExit(), 0);
  EXPECT_THAT(server.log(), HasSubstr("draining, for at most 7s"));
}

TEST(OperatorTest, SighupWhileDrainingEndsNothing) {
  ServerProcess server(EMBERGATE_BINARY, ServeArgs({}));
  ASSERT_TRUE(server.WaitReady());
  const auto stub = v1::Inference::NewStub(grpc::CreateChannel(server.address(), grpc::InsecureChannelCredentials()));
  v1::GenerateRequest request;
  request.mutable_token_ids()->add_ids(2);
  request.mutable_stopping()->set_max_tokens(150);
  request.mutable_stopping()->set_ignore_eos(true);
  grpc::ClientContext context;
  const auto reader = stub->Generate(&context, request);
  v1::GenerateResponse response;
  ASSERT_TRUE(reader->Read(&response));
  server.Signal(SIGTERM);
  server.Signal(SIGHUP);
  while (reader->Read(&response)) {
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(server.WaitExit(), 0);
}

TEST(OperatorTest, KilledUnderLoadItIsReadyAgainAndItsClientsKnow) {
  for (int round = 0; round < 3; ++round) {
    ServerProcess server(EMBERGATE_BINARY, ServeArgs({}));
    ASSERT_TRUE(server.WaitReady()) << round;
    std::vector<std::thread> clients;
    std::atomic<int> streaming{0};
    std::atomic<int> unexplained{0};
    for (int i = 0; i < 8; ++i) {
      clients.emplace_back([&, i] {
        const auto stub =
            v1::Inference::NewStub(grpc::CreateChannel(server.address(), grpc::InsecureChannelCredentials()));
        for (bool alive = true; alive;) {
          v1::GenerateRequest request;
          request.mutable_token_ids()->add_ids(2 + i);
          request.mutable_stopping()->set_max_tokens(100);
          request.mutable_stopping()->set_ignore_eos(true);
          grpc::ClientContext context;
          context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
          const auto reader = stub->Generate(&context, request);
          v1::GenerateResponse response;
          bool finished = false;
          while (reader->Read(&response)) {
            streaming.fetch_add(1);
            finished = finished || response.has_finished();
          }
          const grpc::Status status = reader->Finish();
          alive = status.ok();
          if (status.ok() ? !finished : status.error_code() != grpc::StatusCode::UNAVAILABLE) {
            unexplained.fetch_add(1);
          }
        }
      });
    }
    EXPECT_TRUE(Eventually([&] { return streaming.load() > 100; }));
    server.Signal(SIGKILL);
    for (std::thread& client : clients) {
      client.join();
    }
    EXPECT_EQ(server.WaitExit(), 128 + SIGKILL);
    EXPECT_EQ(unexplained.load(), 0);
  }
}

}  // namespace
}  // namespace embergate
