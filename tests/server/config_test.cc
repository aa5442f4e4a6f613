// Settings from flags, environment and file, and what is refused.
#include "server/config.h"

#include <cstdlib>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/cpus.h"
#include "gtest/gtest.h"
#include "tests/support/temp_folder.h"

namespace embergate::server {
namespace {

class ConfigTest : public ::testing::Test {
 protected:
  ConfigTest() { AddServeOptions(app_, flags_); }
  void Parse(const std::string& line) { app_.parse(line); }

  CLI::App app_;
  ServeFlags flags_;
};

TEST_F(ConfigTest, DefaultsServeOnLoopback) {
  Parse("--model m.gguf");
  const auto config = Resolve(flags_);
  ASSERT_TRUE(config.ok()) << config.status();
  EXPECT_EQ(config->model.path, "m.gguf");
  EXPECT_EQ(config->grpc.addresses, std::vector<std::string>{"127.0.0.1:50051"});
  EXPECT_FALSE(config->grpc.listen_when_ready) << "who asks for health has to reach it";
  EXPECT_EQ(config->metrics_address, "127.0.0.1:9464");
  EXPECT_GE(config->model.threads, 1);
  EXPECT_GT(config->model.decoder.dram_budget_bytes, 0u) << "auto";
}

TEST_F(ConfigTest, StepsPauseForDeliveriesWhereTheyLeaveNoCpu) {
  Parse("--model m.gguf --threads 256");
  EXPECT_TRUE(Resolve(flags_)->model.engine.pause_after_tokens);
  Parse("--model m.gguf --threads 0");
  EXPECT_TRUE(Resolve(flags_)->model.engine.pause_after_tokens) << "one for each CPU";
  Parse("--model m.gguf --threads 1");
  EXPECT_EQ(Resolve(flags_)->model.engine.pause_after_tokens, engine::ThreadsOrAll(0) == 1);
}

TEST_F(ConfigTest, FlagsArrive) {
  Parse(
      "--model m.gguf --dram-budget 1500MiB --threads 3 --context 100 --slots 2 --queue 5 --kv-type q8_0 "
      "--row-cache 1MiB --reader pread --queue-depth 7 --table-resident --listen unix:/tmp/a,127.0.0.1:1 "
      "--metrics off --drain-timeout 1.5 --log-json --queue-tokens 77 --queue-bytes 2MiB --grpc-buffers 8MiB "
      "--listen-when ready");
  const auto config = Resolve(flags_);
  ASSERT_TRUE(config.ok()) << config.status();
  const engine::DecoderOptions& decoder = config->model.decoder;
  EXPECT_EQ(decoder.dram_budget_bytes, 1500ull << 20);
  EXPECT_EQ(config->model.threads, 3);
  EXPECT_EQ(decoder.context_max, 100);
  EXPECT_EQ(decoder.slots_max, 2);
  EXPECT_EQ(config->model.engine.waiting_max, 5);
  EXPECT_EQ(decoder.kv_type, engine::KvType::kQ8_0);
  EXPECT_EQ(decoder.rows.cache_bytes, 1u << 20);
  EXPECT_EQ(decoder.rows.reader, storage::ReaderKind::kPread);
  EXPECT_EQ(decoder.rows.queue_depth, 7);
  EXPECT_TRUE(decoder.table_resident);
  EXPECT_EQ(config->grpc.addresses, (std::vector<std::string>{"unix:/tmp/a", "127.0.0.1:1"}));
  EXPECT_TRUE(config->grpc.listen_when_ready);
  EXPECT_EQ(config->metrics_address, "");
  EXPECT_EQ(config->drain_timeout, absl::Seconds(1.5));
  EXPECT_TRUE(config->log_json);
  EXPECT_EQ(config->model.engine.waiting_tokens_max, 77);
  EXPECT_EQ(config->model.engine.waiting_bytes_max, 2 << 20);
  EXPECT_EQ(config->grpc.transport_bytes_max, 8 << 20);
  EXPECT_EQ(config->model.transport_bytes_max, 8u << 20) << "the budget counts it";
}

TEST_F(ConfigTest, FlagBeatsEnvironmentBeatsFile) {
  const test::TempFolder folder;
  const std::string file = folder.Write("embergate.toml",
                                        "# comment\nmodel = \"file.gguf\"\nslots = 11\nqueue = 12\ncontext = 13\n"
                                        "table-resident = true\nlisten = [\"127.0.0.1:7\", \"127.0.0.1:8\"]\n");
  setenv("EMBERGATE_SLOTS", "21", 1);
  setenv("EMBERGATE_QUEUE", "22", 1);
  Parse("--slots 31");
  unsetenv("EMBERGATE_SLOTS");
  unsetenv("EMBERGATE_QUEUE");
  ApplyConfigFile(file, app_);
  EXPECT_EQ(flags_.model.slots, 31);
  EXPECT_EQ(flags_.model.queue, 22);
  EXPECT_EQ(flags_.model.context, 13);
  EXPECT_EQ(flags_.model.model, "file.gguf");
  EXPECT_TRUE(flags_.model.table_resident);
  EXPECT_EQ(flags_.listen, (std::vector<std::string>{"127.0.0.1:7", "127.0.0.1:8"}));
}

TEST(ConfigFileTest, BadFilesAreRefused) {
  const test::TempFolder folder;
  const auto apply = [](const std::string& path) {
    CLI::App app;
    ServeFlags flags;
    AddServeOptions(app, flags);
    app.parse("");
    ApplyConfigFile(path, app);
  };
  EXPECT_NO_THROW(apply(folder.Write("good", "slots = 3\n")));
  EXPECT_THROW(apply(folder.File("missing")), CLI::FileError);
  EXPECT_THROW(apply(folder.Write("a", "slts = 3\n")), CLI::ConfigError);
  EXPECT_THROW(apply(folder.Write("b", "[serve]\nslots = 3\n")), CLI::ConfigError);
  EXPECT_THROW(apply(folder.Write("c", "slots = many\n")), CLI::Error);
  EXPECT_THROW(apply(folder.Write("d", "slots = 100000\n")), CLI::Error);
}

TEST_F(ConfigTest, ValuesOutOfRangeAreRefused) {
  for (const char* line : {"--slots 0", "--threads -1", "--reader mmap", "--kv-type f64", "--queue-depth -1",
                           "--log-level loud", "--listen-when never", "--no-such-flag"}) {
    EXPECT_THROW(Parse(std::string("--model m ") + line), CLI::ParseError) << line;
  }
}

TEST_F(ConfigTest, WhatOthersCanReachNeedsAKeyACertificateOrAWord) {
  const auto resolves = [](const std::string& line) {
    CLI::App app;
    ServeFlags flags;
    AddServeOptions(app, flags);
    app.parse("--model m.gguf " + line);
    return Resolve(flags).status();
  };
  for (const char* local : {"127.0.0.1:0", "127.9.9.9:1", "localhost:1", "[::1]:1", "unix:/tmp/a", "unix-abstract:a",
                            "ipv4:127.0.0.1:1", "ipv6:[::1]:1"}) {
    EXPECT_TRUE(IsLocalAddress(local)) << local;
    EXPECT_TRUE(resolves(std::string("--listen ") + local).ok()) << local;
  }
  for (const char* open : {"0.0.0.0:1", "[::]:1", "192.168.1.7:1", "board1:1", ":1", "*:1", "127.0.0.1.example.org:1",
                           "128.0.0.1:1", "ipv4:10.0.0.1:1"}) {
    EXPECT_FALSE(IsLocalAddress(open)) << open;
    EXPECT_TRUE(
        absl::StrContains(resolves(std::string("--listen 127.0.0.1:0,") + open).message(), "--allow-unauthenticated"))
        << open;
    EXPECT_TRUE(resolves(absl::StrCat("--allow-unauthenticated --listen ", open)).ok()) << open;
  }
  const test::TempFolder folder;
  const std::string keys = folder.Write("keys", absl::StrCat("alice sha256:", std::string(64, 'a'), "\n"));
  EXPECT_TRUE(resolves("--listen 0.0.0.0:1 --api-keys " + keys).ok());
  EXPECT_TRUE(absl::StrContains(resolves("--listen 0.0.0.0:1 --channelz --api-keys " + keys).message(), "--channelz"));
  EXPECT_TRUE(absl::StrContains(resolves("--tls-cert x").message(), "--tls-key"));
  EXPECT_TRUE(absl::StrContains(resolves("--tls-client-ca x").message(), "--tls-cert"));
  EXPECT_TRUE(absl::StrContains(resolves("--tls-cert /none --tls-key /none").message(), "/none"));
  EXPECT_TRUE(absl::StrContains(resolves("--api-keys /none").message(), "/none"));
}

TEST_F(ConfigTest, BadSizesNameTheFlag) {
  Parse("--model m --row-cache lots");
  const auto config = Resolve(flags_);
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(absl::StrContains(config.status().message(), "--row-cache")) << config.status();
}

TEST_F(ConfigTest, ModelIsRequired) {
  Parse("");
  EXPECT_TRUE(absl::StrContains(Resolve(flags_).status().message(), "--model"));
}

}  // namespace
}  // namespace embergate::server
